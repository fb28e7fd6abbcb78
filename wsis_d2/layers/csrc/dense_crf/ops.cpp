// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
// Schemas of the operators, checks of their arguments, and the CPU's registrations. Fake and
// autograd registrations are in wsis_d2/layers/native_crf.py.
#include <torch/library.h>

#include "dense_crf/checks.h"
#include "dense_crf/kernels_name.h"
#include "dense_crf/mean_field.h"
#include "dense_crf/pass.h"
#include "dense_crf/workspace.h"

namespace wsis_d2 {
namespace crf {
namespace {

LatticeTensors build_lattice_op(const at::Tensor& image, double sigma_xy, double sigma_rgb,
                                int64_t normalization, at::TensorList, std::vector<std::string>) {
  check_lattice_arguments(image, sigma_xy, sigma_rgb, normalization);
  return build_lattice_cpu(image, sigma_xy, sigma_rgb, normalization);
}

std::tuple<at::Tensor, at::Tensor> mean_field_op(
    const at::Tensor& scores, const at::Tensor& header, const at::Tensor& records,
    const at::Tensor& index, const at::Tensor& weight_bilateral, const at::Tensor& weight_spatial,
    double gaussian_xy, bool exact_spatial, int64_t iterations, int64_t save_every) {
  check_volume(scores, "scores");
  check_belongs(scores, header, "scores");
  checked_weight(weight_bilateral, "bilateral_weight");
  checked_weight(weight_spatial, "gaussian_weight");
  return mean_field_cpu(scores, header, records, index, weight_bilateral, weight_spatial,
                        make_options(gaussian_xy, exact_spatial, iterations, save_every));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> mean_field_backward_op(
    const at::Tensor& grad, const at::Tensor& saved, const at::Tensor& scores,
    const at::Tensor& header, const at::Tensor& records, const at::Tensor& index,
    const at::Tensor& weight_bilateral, const at::Tensor& weight_spatial, double gaussian_xy,
    bool exact_spatial, int64_t iterations, int64_t save_every) {
  check_volume(grad, "grad");
  check_belongs(grad, header, "grad");
  const MeanFieldOptions options = make_options(gaussian_xy, exact_spatial, iterations, save_every);
  check_backward(grad, saved, scores, options, padded_labels(grad.size(0)),
                 grad.scalar_type());
  if (iterations == 0) {
    return {grad.clone(at::MemoryFormat::Contiguous), at::zeros_like(weight_bilateral),
            at::zeros_like(weight_spatial)};
  }
  auto [result, bilateral, spatial] =
      mean_field_backward_cpu(grad, saved, scores, header, records, index, weight_bilateral,
                              weight_spatial, options);
  return {result, at::full_like(weight_bilateral, bilateral),
          at::full_like(weight_spatial, spatial)};
}

at::Tensor lattice_filter_op(const at::Tensor& values, const at::Tensor& header,
                             const at::Tensor& records, const at::Tensor& index, bool transpose) {
  check_volume(values, "values");
  check_belongs(values, header, "values");
  return lattice_filter_cpu(values, header, records, index, transpose);
}

at::Tensor spatial_filter_op(const at::Tensor& values, double sigma, bool exact,
                             int64_t normalization, bool transpose) {
  check_volume(values, "values");
  check_positive(sigma, "sigma");
  check_normalization(normalization);
  return spatial_filter_cpu(values, sigma, exact, normalization, transpose);
}

std::string cpu_kernels() { return kernels_name(); }

}  // namespace

TORCH_LIBRARY(wsis_d2, m) {
  m.def(
      // On a GPU `finite`, named by `names`, are checked in the one wait for the build; on the CPU by
      // those who read them.
      "build_lattice(Tensor image, float sigma_xy, float sigma_rgb, int normalization, "
      "Tensor[] finite, str[] names) -> "
      "(Tensor header, Tensor records, Tensor index)");
  m.def(
      "mean_field(Tensor scores, Tensor header, Tensor records, Tensor index, "
      "Tensor bilateral_weight, Tensor gaussian_weight, float gaussian_xy, bool exact_spatial, "
      "int iterations, int save_every) -> (Tensor scores, Tensor saved)");
  m.def(
      "mean_field_backward(Tensor grad, Tensor saved, Tensor scores, Tensor header, "
      "Tensor records, Tensor index, Tensor bilateral_weight, Tensor gaussian_weight, "
      "float gaussian_xy, bool exact_spatial, int iterations, int save_every) -> "
      "(Tensor scores, Tensor bilateral_weight, Tensor gaussian_weight)");
  m.def(
      "lattice_filter(Tensor values, Tensor header, Tensor records, Tensor index, "
      "bool transpose) -> Tensor");
  m.def(
      "spatial_filter(Tensor values, float sigma, bool exact, int normalization, "
      "bool transpose) -> Tensor");
  // For environment reports and for tests.
  m.def("cpu_kernels() -> str", &cpu_kernels);
  m.def("clear_workspace() -> ()", &clear_workspace);
}

TORCH_LIBRARY_IMPL(wsis_d2, CPU, m) {
  m.impl("build_lattice", &build_lattice_op);
  m.impl("mean_field", &mean_field_op);
  m.impl("mean_field_backward", &mean_field_backward_op);
  m.impl("lattice_filter", &lattice_filter_op);
  m.impl("spatial_filter", &spatial_filter_op);
}

}  // namespace crf
}  // namespace wsis_d2
