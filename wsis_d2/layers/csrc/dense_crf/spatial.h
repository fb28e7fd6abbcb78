// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
// The spatial Gaussian kernel: a separable FIR filter on a grid of every `stride`-th pixel, between
// a linear down-sampling and its transpose (so the whole is symmetric).
#pragma once

#include <cstdint>
#include <vector>

#include "dense_crf/lattice.h"

namespace wsis_d2 {
namespace crf {

// Where a row (or column) of pixels reads and writes on the grid: cells `index` and `index + 1`.
template <typename T>
struct Tap {
  int32_t index;
  T read0, read1;    // weights of slicing
  T write0, write1;  // weights of splatting
};

template <typename T>
struct SpatialPlan {
  int stride = 1;
  int radius = 0;
  int64_t grid_x = 0, grid_y = 0;
  std::vector<T> kernel;            // radius + 1 weights: centre, then outwards
  std::vector<Tap<T>> x, y;
  // Bands splat into strips of their own: grid rows [strip_row[b], + strip_rows[b]).
  std::vector<int64_t> strip_row, strip_rows, strip_begin;  // begin: in rows of all strips
  int64_t strip_total = 0;
};

// The plan for one image. `exact`: stride 1 and a radius of 5.5 sigma. `transpose`: of the
// normalised kernel.
template <typename T>
SpatialPlan<T> plan_spatial(const Lattice<T>& lattice, double sigma, bool exact,
                            int normalization, bool transpose);

}  // namespace crf
}  // namespace wsis_d2
