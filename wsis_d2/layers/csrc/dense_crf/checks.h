// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
// Checks of the operators' arguments: ValueErrors (TypeErrors for dtypes) that name the argument.
#pragma once

#include <ATen/ATen.h>

#include <cmath>

#include "dense_crf/mean_field.h"

namespace wsis_d2 {
namespace crf {

inline void check_floating(const at::Tensor& t, const char* name) {
  TORCH_CHECK_TYPE(t.scalar_type() == at::kFloat || t.scalar_type() == at::kDouble, name,
                   ": expected float32 or float64, found ", t.scalar_type(), ".");
}

inline void check_volume(const at::Tensor& t, const char* name) {
  check_floating(t, name);
  TORCH_CHECK_VALUE(t.dim() == 3, name, ": expected shape (L, H, W), found ", t.sizes(), ".");
  TORCH_CHECK_VALUE(t.numel() > 0, name, ": it is empty, shape ", t.sizes(), ".");
}

inline void check_positive(double value, const char* name) {
  TORCH_CHECK_VALUE(std::isfinite(value) && value > 0, name,
                    ": expected a finite number above 0, found ", value, ".");
}

inline void check_normalization(int64_t value) {
  TORCH_CHECK_VALUE(value >= kNone && value <= kSymmetric,
                    "normalization: expected 0 (none), 1 (after) or 2 (symmetric), found ", value,
                    ".");
}

inline void check_belongs(const at::Tensor& t, const at::Tensor& header, const char* name) {
  TORCH_CHECK_VALUE(header.dim() == 1 && header.size(0) == kHeaderSize && header.is_cpu() &&
                        header.scalar_type() == at::kLong && header.is_contiguous() &&
                        (header.const_data_ptr<int64_t>()[kSlotMagic] | 1) == (kMagic | 1),
                    "header: not that of wsis_d2::build_lattice.");
  const int64_t* slot = header.const_data_ptr<int64_t>();
  TORCH_CHECK_VALUE(t.size(1) == slot[kSlotHeight] && t.size(2) == slot[kSlotWidth], name,
                    ": its size ", t.size(1), " x ", t.size(2), " is not the lattice's, ",
                    slot[kSlotHeight], " x ", slot[kSlotWidth], ".");
}

inline double checked_weight(const at::Tensor& weight, const char* name) {
  TORCH_CHECK_VALUE(weight.numel() == 1, name, ": expected one number, found shape ",
                    weight.sizes(), ".");
  const double value = weight.item<double>();
  TORCH_CHECK_VALUE(std::isfinite(value), name, ": expected a finite number, found ", value, ".");
  return value;
}

inline MeanFieldOptions make_options(double gaussian_xy, bool exact_spatial, int64_t iterations,
                              int64_t save_every) {
  check_positive(gaussian_xy, "gaussian_xy");
  TORCH_CHECK_VALUE(iterations >= 0, "iterations: expected at least 0, found ", iterations, ".");
  TORCH_CHECK_VALUE(save_every >= 0, "save_every: expected at least 0, found ", save_every, ".");
  return {gaussian_xy, exact_spatial, iterations, save_every};
}

inline void check_lattice_arguments(const at::Tensor& image, double sigma_xy, double sigma_rgb,
                                    int64_t normalization) {
  check_volume(image, "image");
  TORCH_CHECK_VALUE(image.size(0) == 3, "image: expected shape (3, H, W), found ", image.sizes(),
                    ".");
  check_positive(sigma_xy, "bilateral_xy");
  check_positive(sigma_rgb, "bilateral_rgb");
  check_normalization(normalization);
}

// What the backward pass reads: `scores` and `saved` as the forward pass had and kept them, a pixel's
// marginals in row_width numbers of type `kept`.
inline void check_backward(const at::Tensor& grad, const at::Tensor& saved,
                           const at::Tensor& scores, const MeanFieldOptions& options,
                           int64_t row_width, at::ScalarType kept) {
  TORCH_CHECK_VALUE(scores.sizes() == grad.sizes() && scores.scalar_type() == grad.scalar_type(),
                    "scores: their shape ", scores.sizes(), " or dtype ", scores.scalar_type(),
                    " is not that of grad, ", grad.sizes(), " and ", grad.scalar_type(), ".");
  TORCH_CHECK_VALUE(options.iterations == 0 || options.save_every > 0,
                    "save_every: 0 keeps nothing for the backward pass.");
  TORCH_CHECK_VALUE(saved.dim() == 2 && saved.size(0) == options.saved_count() &&
                        saved.size(1) == grad.size(1) * grad.size(2) * row_width &&
                        saved.scalar_type() == kept && saved.is_contiguous(),
                    "saved: it is not what wsis_d2::mean_field kept, shape ", saved.sizes(), ".");
}

}  // namespace crf
}  // namespace wsis_d2
