// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
// The operators on CUDA. All inputs on one device; work is queued on its current stream.
#include <torch/library.h>

#include "dense_crf/checks.h"
#include "dense_crf/device/mean_field.h"

namespace wsis_d2 {
namespace crf {
namespace {

#if defined(WSIS_CRF_HOST_CHECK)
struct DeviceScope {
  explicit DeviceScope(const at::Device&) {}
};
#define WSIS_CRF_KEY CPU
#else
using DeviceScope = c10::cuda::CUDAGuard;
#define WSIS_CRF_KEY CUDA
#endif

void check_same_device(const at::Tensor& t, const at::Tensor& other, const char* name) {
  TORCH_CHECK_VALUE(t.device() == other.device(), name, ": it is on ", t.device(),
                    ", the other tensors are on ", other.device(), ".");
}

LatticeTensors build_lattice_op(const at::Tensor& image, double sigma_xy, double sigma_rgb,
                                int64_t normalization) {
  check_lattice_arguments(image, sigma_xy, sigma_rgb, normalization);
  const DeviceScope scope(image.device());
  return image.scalar_type() == at::kDouble
             ? build_device_lattice<double>(image, sigma_xy, sigma_rgb, normalization)
             : build_device_lattice<float>(image, sigma_xy, sigma_rgb, normalization);
}

std::tuple<at::Tensor, at::Tensor> mean_field_op(
    const at::Tensor& scores, const at::Tensor& header, const at::Tensor& records,
    const at::Tensor& index, const at::Tensor& weight_bilateral, const at::Tensor& weight_spatial,
    double gaussian_xy, bool exact_spatial, int64_t iterations, int64_t save_every) {
  check_volume(scores, "scores");
  check_belongs(scores, header, "scores");
  check_same_device(records, scores, "records");
  check_same_device(index, scores, "index");
  const double bilateral = checked_weight(weight_bilateral, "bilateral_weight");
  const double spatial = checked_weight(weight_spatial, "gaussian_weight");
  const MeanFieldOptions options =
      make_options(gaussian_xy, exact_spatial, iterations, save_every);
  const DeviceScope scope(scores.device());
  if (scores.scalar_type() == at::kDouble) {
    return device_forward<double>(scores, view_device_lattice<double>(header, records, index),
                                  bilateral, spatial, options);
  }
  return device_forward<float>(scores, view_device_lattice<float>(header, records, index),
                               bilateral, spatial, options);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> mean_field_backward_op(
    const at::Tensor& grad, const at::Tensor& saved, const at::Tensor& scores,
    const at::Tensor& header, const at::Tensor& records, const at::Tensor& index,
    const at::Tensor& weight_bilateral, const at::Tensor& weight_spatial, double gaussian_xy,
    bool exact_spatial, int64_t iterations, int64_t save_every) {
  check_volume(grad, "grad");
  check_belongs(grad, header, "grad");
  check_same_device(saved, grad, "saved");
  check_same_device(scores, grad, "scores");
  check_same_device(records, grad, "records");
  check_same_device(index, grad, "index");
  const MeanFieldOptions options =
      make_options(gaussian_xy, exact_spatial, iterations, save_every);
  check_backward(grad, saved, scores, options);
  if (iterations == 0) {
    return {grad.clone(), at::zeros_like(weight_bilateral), at::zeros_like(weight_spatial)};
  }
  const double bilateral = checked_weight(weight_bilateral, "bilateral_weight");
  const double spatial = checked_weight(weight_spatial, "gaussian_weight");
  const DeviceScope scope(grad.device());
  auto [result, grad_bilateral, grad_spatial] =
      grad.scalar_type() == at::kDouble
          ? device_backward<double>(grad, saved, scores,
                                    view_device_lattice<double>(header, records, index), bilateral,
                                    spatial, options)
          : device_backward<float>(grad, saved, scores,
                                   view_device_lattice<float>(header, records, index), bilateral,
                                   spatial, options);
  return {result, at::full_like(weight_bilateral, grad_bilateral),
          at::full_like(weight_spatial, grad_spatial)};
}

template <typename T>
at::Tensor lattice_filter(const at::Tensor& values, const DeviceLattice<T>& lattice,
                          bool transpose) {
  // Without normalisation the kernel's height is restored: 1 / (1 + 2^-5).
  const T factor = lattice.normalization == kNone ? T(32.0 / 33.0) : T(1);
  return to_volume(device_lattice_filter<T>(lattice, to_pixels(values), transpose, factor),
                   lattice.height, lattice.width);
}

at::Tensor lattice_filter_op(const at::Tensor& values, const at::Tensor& header,
                             const at::Tensor& records, const at::Tensor& index, bool transpose) {
  check_volume(values, "values");
  check_belongs(values, header, "values");
  check_same_device(records, values, "records");
  check_same_device(index, values, "index");
  const DeviceScope scope(values.device());
  check_finite(values, "values: they hold");
  return values.scalar_type() == at::kDouble
             ? lattice_filter(values, view_device_lattice<double>(header, records, index), transpose)
             : lattice_filter(values, view_device_lattice<float>(header, records, index), transpose);
}

template <typename T>
at::Tensor spatial_filter(const at::Tensor& values, double sigma, bool exact, int normalization,
                          bool transpose) {
  const int64_t height = values.size(1), width = values.size(2);
  const DevicePlan<T> plan =
      make_device_plan<T>(height, width, sigma, exact, normalization, transpose, values);
  return to_volume(device_spatial_filter<T>(plan, to_pixels(values), T(1)), height, width);
}

at::Tensor spatial_filter_op(const at::Tensor& values, double sigma, bool exact,
                             int64_t normalization, bool transpose) {
  check_volume(values, "values");
  check_positive(sigma, "sigma");
  check_normalization(normalization);
  const DeviceScope scope(values.device());
  check_finite(values, "values: they hold");
  const int mode = static_cast<int>(normalization);
  return values.scalar_type() == at::kDouble
             ? spatial_filter<double>(values, sigma, exact, mode, transpose)
             : spatial_filter<float>(values, sigma, exact, mode, transpose);
}

}  // namespace

TORCH_LIBRARY_IMPL(wsis_d2, WSIS_CRF_KEY, m) {
  m.impl("build_lattice", &build_lattice_op);
  m.impl("mean_field", &mean_field_op);
  m.impl("mean_field_backward", &mean_field_backward_op);
  m.impl("lattice_filter", &lattice_filter_op);
  m.impl("spatial_filter", &spatial_filter_op);
}

}  // namespace crf
}  // namespace wsis_d2
