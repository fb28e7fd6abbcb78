// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
// The operators on CUDA. All inputs on one device; work is queued on its current stream.
#include <torch/library.h>

#include "dense_crf/checks.h"
#include "dense_crf/device/build.h"
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

// Calls body(T(), std::integral_constant<int, W>) for the dtype and the label count of `t`.
template <typename F>
auto with_types(const at::Tensor& t, F&& body) {
  const bool one = lanes_of(t.size(0)) == 1;
  using One = std::integral_constant<int, 1>;
  using Many = std::integral_constant<int, kLanes>;
  if (t.scalar_type() == at::kDouble) {
    return one ? body(double(), One()) : body(double(), Many());
  }
  return one ? body(float(), One()) : body(float(), Many());
}

// A number on the CPU is read and checked here; one on the device by the kernels, unchecked.
template <typename T>
Scalar<T> scalar(const at::Tensor& weight, const at::Tensor& like, const char* name) {
  if (weight.is_cpu()) return {nullptr, static_cast<T>(checked_weight(weight, name))};
  check_same_device(weight, like, name);
  TORCH_CHECK_VALUE(weight.numel() == 1 && weight.scalar_type() == like.scalar_type(), name,
                    ": expected one number of dtype ", like.scalar_type(), ", found shape ",
                    weight.sizes(), ", dtype ", weight.scalar_type(), ".");
  return {weight.const_data_ptr<T>(), T(0)};
}

LatticeTensors build_lattice_op(const at::Tensor& image, double sigma_xy, double sigma_rgb,
                                int64_t normalization, at::TensorList finite,
                                std::vector<std::string> names) {
  check_lattice_arguments(image, sigma_xy, sigma_rgb, normalization);
  for (const at::Tensor& t : finite) check_same_device(t, image, "finite");
  const DeviceScope scope(image.device());
  return image.scalar_type() == at::kDouble
             ? build_device_lattice<double>(image, sigma_xy, sigma_rgb, normalization, finite,
                                            names)
             : build_device_lattice<float>(image, sigma_xy, sigma_rgb, normalization, finite,
                                           names);
}

std::tuple<at::Tensor, at::Tensor> mean_field_op(
    const at::Tensor& scores, const at::Tensor& header, const at::Tensor& records,
    const at::Tensor& index, const at::Tensor& weight_bilateral, const at::Tensor& weight_spatial,
    double gaussian_xy, bool exact_spatial, int64_t iterations, int64_t save_every) {
  check_volume(scores, "scores");
  check_belongs(scores, header, "scores");
  check_same_device(records, scores, "records");
  check_same_device(index, scores, "index");
  const MeanFieldOptions options =
      make_options(gaussian_xy, exact_spatial, iterations, save_every);
  const DeviceScope scope(scores.device());
  return with_types(scores, [&](auto type, auto lanes) {
    using T = decltype(type);
    return device_forward<T, lanes.value>(
        scores, view_device_lattice<T>(header, records, index),
        scalar<T>(weight_bilateral, scores, "bilateral_weight"),
        scalar<T>(weight_spatial, scores, "gaussian_weight"), options);
  });
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
  check_backward(grad, saved, scores, options, row_width(grad.size(0)),
                 grad.scalar_type() == at::kFloat ? Kept<float>::kType : Kept<double>::kType);
  check_aligned(saved, "saved");
  const DeviceScope scope(grad.device());
  // On the device, also for weights that are not.
  const auto like = [&](const at::Tensor& weight) {
    return at::zeros(weight.sizes(), grad.options().dtype(weight.scalar_type()));
  };
  at::Tensor grad_bilateral = like(weight_bilateral), grad_spatial = like(weight_spatial);
  if (iterations == 0) {
    return {grad.clone(at::MemoryFormat::Contiguous), grad_bilateral, grad_spatial};
  }
  auto [result, sums] = with_types(grad, [&](auto type, auto lanes) {
    using T = decltype(type);
    return device_backward<T, lanes.value>(
        grad, saved, scores, view_device_lattice<T>(header, records, index),
        scalar<T>(weight_bilateral, grad, "bilateral_weight"),
        scalar<T>(weight_spatial, grad, "gaussian_weight"), options);
  });
  grad_bilateral.copy_(sums.select(0, 0).expand_as(grad_bilateral));
  grad_spatial.copy_(sums.select(0, 1).expand_as(grad_spatial));
  return {result, grad_bilateral, grad_spatial};
}

// `values` are checked by build_lattice.
at::Tensor lattice_filter_op(const at::Tensor& values, const at::Tensor& header,
                             const at::Tensor& records, const at::Tensor& index, bool transpose) {
  check_volume(values, "values");
  check_belongs(values, header, "values");
  check_same_device(records, values, "records");
  check_same_device(index, values, "index");
  const DeviceScope scope(values.device());
  return with_types(values, [&](auto type, auto lanes) {
    using T = decltype(type);
    return device_lattice_filter<T, lanes.value>(
        values, view_device_lattice<T>(header, records, index), transpose);
  });
}

at::Tensor spatial_filter_op(const at::Tensor& values, double sigma, bool exact,
                             int64_t normalization, bool transpose) {
  check_volume(values, "values");
  check_positive(sigma, "sigma");
  check_normalization(normalization);
  check_pixel_count(values.size(1), values.size(2));
  const DeviceScope scope(values.device());
  const auto [least, most] = at::aminmax(values);  // nothing is built where it could be checked
  TORCH_CHECK_VALUE(at::isfinite(at::stack({least, most})).all().item<bool>(),
                    "values: they hold NaN or infinity; all values must be finite.");
  return with_types(values, [&](auto type, auto lanes) {
    return device_spatial_filter<decltype(type), lanes.value>(
        values, sigma, exact, static_cast<int>(normalization), transpose);
  });
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
