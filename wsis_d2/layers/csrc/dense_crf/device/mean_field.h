// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
// Mean field on a GPU: filters by the kernels here, softmax and sums by torch's own.
#pragma once

#include "dense_crf/device/lattice.h"
#include "dense_crf/device/spatial.h"

namespace wsis_d2 {
namespace crf {

// (L, H, W) <-> (N, L)
inline at::Tensor to_pixels(const at::Tensor& volume) {
  return volume.reshape({volume.size(0), -1}).t().contiguous();
}
inline at::Tensor to_volume(const at::Tensor& pixels, int64_t height, int64_t width) {
  return pixels.t().contiguous().reshape({pixels.size(1), height, width});
}

inline void check_finite(const at::Tensor& t, const char* name) {
  TORCH_CHECK_VALUE(at::isfinite(t).all().item<bool>(), name,
                    " NaN or infinity; all values must be finite.");
}

// The t-th kept marginals, (N, L).
inline at::Tensor kept(const at::Tensor& saved, int64_t t, int64_t pixels, int64_t labels) {
  return saved.select(0, t).slice(0, 0, pixels * labels).reshape({pixels, labels});
}

// The messages of both kernels to marginals q, added up.
template <typename T>
struct DeviceMessages {
  DeviceLattice<T> lattice;
  DevicePlan<T> plan;
  double weight_bilateral, weight_spatial;

  at::Tensor operator()(const at::Tensor& q) const {
    at::Tensor total;
    if (weight_bilateral != 0) {
      total = device_lattice_filter<T>(lattice, q, false, static_cast<T>(weight_bilateral));
    }
    if (weight_spatial != 0) {
      at::Tensor spatial = device_spatial_filter<T>(plan, q, static_cast<T>(weight_spatial));
      total = total.defined() ? total.add_(spatial) : spatial;
    }
    return total.defined() ? total : at::zeros_like(q);
  }
};

template <typename T>
std::tuple<at::Tensor, at::Tensor> device_forward(const at::Tensor& scores,
                                                  const DeviceLattice<T>& lattice, double bilateral,
                                                  double spatial, const MeanFieldOptions& options) {
  check_finite(scores, "scores: they hold");
  const int64_t labels = scores.size(0);
  const at::Tensor start = to_pixels(scores);
  at::Tensor saved = at::empty(
      {options.saved_count(), lattice.pixels * ((labels + 7) / 8 * 8)}, scores.options());
  const DeviceMessages<T> messages{
      lattice,
      make_device_plan<T>(lattice.height, lattice.width, options.gaussian_xy,
                          options.exact_spatial, lattice.normalization, false, scores),
      bilateral, spatial};
  at::Tensor current = start;
  for (int64_t t = 0; t < options.iterations; ++t) {
    const at::Tensor q = at::softmax(current, 1);
    if (options.save_every > 0 && t % options.save_every == 0) {
      kept(saved, t / options.save_every, lattice.pixels, labels).copy_(q);
    }
    current = messages(q).add_(start);
  }
  // Without an iteration, and with one label or pixel, the volume may be `scores` itself.
  at::Tensor result = to_volume(current, lattice.height, lattice.width);
  if (result.is_alias_of(scores)) result = result.clone();
  return {result, saved};
}

template <typename T>
std::tuple<at::Tensor, double, double> device_backward(const at::Tensor& grad,
                                                       const at::Tensor& saved,
                                                       const at::Tensor& scores,
                                                       const DeviceLattice<T>& lattice,
                                                       double bilateral, double spatial,
                                                       const MeanFieldOptions& options) {
  check_finite(grad, "grad: it holds");
  const int64_t labels = grad.size(0), every = options.save_every;
  auto plan = [&](bool transpose) {
    return make_device_plan<T>(lattice.height, lattice.width, options.gaussian_xy,
                               options.exact_spatial, lattice.normalization, transpose, grad);
  };
  const DevicePlan<T> transposed = plan(true);
  const DeviceMessages<T> messages{lattice, plan(false), bilateral, spatial};
  const at::Tensor start = every > 1 ? to_pixels(scores) : at::Tensor();
  at::Tensor incoming = to_pixels(grad);
  at::Tensor total = incoming.clone();
  at::Tensor grad_bilateral = at::zeros({}, grad.options().dtype(at::kDouble));
  at::Tensor grad_spatial = at::zeros_like(grad_bilateral);
  std::vector<at::Tensor> stretch;  // marginals of iterations first .. t
  for (int64_t t = options.iterations - 1; t >= 0; --t) {
    const int64_t first = t / every * every;
    if (stretch.empty()) {
      stretch.push_back(kept(saved, t / every, lattice.pixels, labels));
      while (first + static_cast<int64_t>(stretch.size()) <= t) {
        stretch.push_back(at::softmax(messages(stretch.back()).add_(start), 1));
      }
    }
    const at::Tensor q = stretch.back();
    stretch.pop_back();
    const at::Tensor from_bilateral = device_lattice_filter<T>(lattice, incoming, true, T(1));
    const at::Tensor from_spatial = device_spatial_filter<T>(transposed, incoming, T(1));
    grad_bilateral += (from_bilateral * q).sum(at::kDouble);
    grad_spatial += (from_spatial * q).sum(at::kDouble);
    const at::Tensor to_q = from_bilateral * bilateral + from_spatial * spatial;
    incoming = at::_softmax_backward_data(to_q, q, 1, q.scalar_type());
    total += incoming;
  }
  return {to_volume(total, lattice.height, lattice.width), grad_bilateral.item<double>(),
          grad_spatial.item<double>()};
}

}  // namespace crf
}  // namespace wsis_d2
