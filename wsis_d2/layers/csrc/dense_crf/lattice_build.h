// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
#pragma once

#include <torch/library.h>
#include <ATen/ATen.h>

#include <tuple>
#include <vector>

#include "dense_crf/lattice.h"
#include "dense_crf/simplex.h"

namespace wsis_d2 {
namespace crf {

using LatticeTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor>;  // header, records, index

// image: (3, H, W), float32 or float64, on the CPU.
LatticeTensors build_lattice_cpu(const at::Tensor& image, double sigma_xy, double sigma_rgb,
                                 int64_t normalization);

// Check the three tensors against each other and look into them.
template <typename T>
Lattice<T> view_lattice(const at::Tensor& header, const at::Tensor& records,
                        const at::Tensor& index);

// Raises ValueError where 32-bit indices do not suffice.
void check_pixel_count(int64_t height, int64_t width);

// The key layout for colours in [low[c], high[c]]; raises ValueError where 64 bits do not suffice.
KeyLayout checked_layout(int64_t height, int64_t width, const double* low, const double* high,
                         double sigma_xy, double sigma_rgb);

// The same error where `fits` is false.
void check_layout_fits(bool fits, int64_t height, int64_t width, double sigma_xy,
                       double sigma_rgb);

// Bands of tile rows: about 48 000 pixels each, whatever the number of threads.
std::vector<int32_t> band_rows(int64_t height, int64_t width);

}  // namespace crf
}  // namespace wsis_d2
