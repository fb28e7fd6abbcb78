// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
#include "dense_crf/spatial.h"

#include <algorithm>
#include <cmath>

namespace wsis_d2 {
namespace crf {
namespace {

constexpr int kMostStride = 1 << 20;

// Row sums of the one-dimensional kernel (down, FIR, up), applied to ones.
std::vector<double> row_sums(const std::vector<int64_t>& index, const std::vector<double>& fraction,
                             const std::vector<double>& kernel, int64_t cells) {
  std::vector<double> down(cells, 0.0), blurred(cells, 0.0), sums(index.size());
  for (size_t i = 0; i < index.size(); ++i) {
    down[index[i]] += 1.0 - fraction[i];
    down[index[i] + 1] += fraction[i];
  }
  const int64_t radius = static_cast<int64_t>(kernel.size()) - 1;
  for (int64_t c = 0; c < cells; ++c) {
    for (int64_t k = std::max<int64_t>(0, c - radius); k <= std::min(cells - 1, c + radius); ++k) {
      blurred[c] += kernel[std::llabs(c - k)] * down[k];
    }
  }
  for (size_t i = 0; i < index.size(); ++i) {
    sums[i] = (1.0 - fraction[i]) * blurred[index[i]] + fraction[i] * blurred[index[i] + 1];
  }
  return sums;
}

template <typename T>
std::vector<Tap<T>> make_taps(int64_t size, int stride, const std::vector<double>& kernel,
                              int64_t cells, int normalization, bool transpose) {
  std::vector<int64_t> index(size);
  std::vector<double> fraction(size, 0.0);
  for (int64_t i = 0; i < size; ++i) {
    index[i] = i;
    if (stride > 1) {
      const double place = (i + 0.5) / stride - 0.5;  // grid cells sit amid their pixels
      const double cell = std::floor(place);
      index[i] = static_cast<int64_t>(cell) + 1;  // one cell of margin
      fraction[i] = place - cell;
    }
  }
  const std::vector<double> sums = row_sums(index, fraction, kernel, cells);
  std::vector<Tap<T>> taps(size);
  for (int64_t i = 0; i < size; ++i) {
    double read = 1.0, write = 1.0;
    if (normalization == kSymmetric) read = write = 1.0 / std::sqrt(sums[i]);
    if (normalization == kAfter) (transpose ? write : read) = 1.0 / sums[i];
    const double near = 1.0 - fraction[i], far = fraction[i];
    taps[i] = {static_cast<int32_t>(index[i]), static_cast<T>(read * near),
               static_cast<T>(read * far), static_cast<T>(write * near),
               static_cast<T>(write * far)};
  }
  return taps;
}

int64_t grid_cells(int64_t size, int stride) {
  // Stride 1 has a spare cell too, as the taps' second weight (0) points at it.
  if (stride == 1) return size + 1;
  return static_cast<int64_t>(std::floor((size - 0.5) / stride - 0.5)) + 3;
}

}  // namespace

template <typename T>
SpatialPlan<T> plan_spatial(const Lattice<T>& lattice, double sigma, bool exact,
                            int normalization, bool transpose) {
  SpatialPlan<T> plan;
  if (!exact) {
    // Beyond kMostStride 32 bits would overflow, and images are a few cells long already.
    while (plan.stride < kMostStride && sigma / (2 * plan.stride) >= 1.2) plan.stride *= 2;
  }
  double variance = sigma * sigma;
  if (plan.stride > 1) {
    // Both linear resamplings blur too: by s^2 (1 - 1 / s^2) / 6 + 1 / 12 each on average.
    double mean = 0;
    for (int i = 0; i < plan.stride; ++i) {
      const double place = (i + 0.5) / plan.stride;
      mean += place * (1 - place) * plan.stride * plan.stride / plan.stride;
    }
    variance -= 2 * mean;
  }
  const double cell_sigma = std::sqrt(variance) / plan.stride;
  const int64_t longest = std::max(lattice.height, lattice.width);
  const double reach = std::ceil((exact ? 5.5 : 3.4) * cell_sigma);
  plan.radius = static_cast<int>(
      std::max(1.0, std::min(reach, static_cast<double>(longest / plan.stride + 2))));
  std::vector<double> kernel(plan.radius + 1);
  double total = 0;
  for (int k = 0; k <= plan.radius; ++k) {
    kernel[k] = std::exp(-0.5 * k * k / (cell_sigma * cell_sigma));
    total += k ? 2 * kernel[k] : kernel[k];
  }
  // Un-normalised kernels have the height of exp(-d^2 / 2 sigma^2); a coarse grid is matched in sum,
  // that of the whole kernel where a small image needs a part of it.
  const double sum = sigma * std::sqrt(2 * M_PI);
  if (normalization == kNone && plan.radius < reach) total = cell_sigma * std::sqrt(2 * M_PI);
  const double scale =
      normalization != kNone ? 1.0 / total
                             : (plan.stride == 1 ? 1.0 : sum / (total * plan.stride));
  for (double& k : kernel) k *= scale;
  plan.grid_x = grid_cells(lattice.width, plan.stride);
  plan.grid_y = grid_cells(lattice.height, plan.stride);
  plan.x = make_taps<T>(lattice.width, plan.stride, kernel, plan.grid_x, normalization, transpose);
  plan.y = make_taps<T>(lattice.height, plan.stride, kernel, plan.grid_y, normalization, transpose);
  plan.kernel.assign(kernel.begin(), kernel.end());
  for (int b = 0; b < lattice.bands; ++b) {
    const int64_t first = static_cast<int64_t>(lattice.band_rows[b]) * kTile;
    const int64_t last =
        std::min(static_cast<int64_t>(lattice.band_rows[b + 1]) * kTile, lattice.height) - 1;
    plan.strip_row.push_back(plan.y[first].index);
    plan.strip_rows.push_back(plan.y[last].index + 2 - plan.y[first].index);
    plan.strip_begin.push_back(plan.strip_total);
    plan.strip_total += plan.strip_rows.back();
  }
  return plan;
}

template SpatialPlan<float> plan_spatial(const Lattice<float>&, double, bool, int, bool);
template SpatialPlan<double> plan_spatial(const Lattice<double>&, double, bool, int, bool);

}  // namespace crf
}  // namespace wsis_d2
