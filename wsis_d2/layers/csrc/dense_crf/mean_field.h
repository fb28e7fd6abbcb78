// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
// The operators' implementations on the CPU.
#pragma once

#include <ATen/ATen.h>

#include <tuple>
#include <vector>

#include "dense_crf/lattice_build.h"

namespace wsis_d2 {
namespace crf {

struct MeanFieldOptions {
  double gaussian_xy;
  bool exact_spatial;
  int64_t iterations;
  int64_t save_every;  // keep every so many iterations' marginals; 0: none
  int64_t saved_count() const {
    return save_every > 0 ? (iterations + save_every - 1) / save_every : 0;
  }
};

// -> (L, H, W) scores of the last iteration; kept marginals (count, N * padded labels)
std::tuple<at::Tensor, at::Tensor> mean_field_cpu(
    const at::Tensor& scores, const at::Tensor& header, const at::Tensor& records,
    const at::Tensor& index, const at::Tensor& weight_bilateral, const at::Tensor& weight_spatial,
    const MeanFieldOptions& options);

// -> gradients of the scores and of the two weights
std::tuple<at::Tensor, double, double> mean_field_backward_cpu(
    const at::Tensor& grad, const at::Tensor& saved, const at::Tensor& scores,
    const at::Tensor& header, const at::Tensor& records, const at::Tensor& index,
    const at::Tensor& weight_bilateral, const at::Tensor& weight_spatial,
    const MeanFieldOptions& options);

at::Tensor lattice_filter_cpu(const at::Tensor& values, const at::Tensor& header,
                              const at::Tensor& records, const at::Tensor& index, bool transpose);

at::Tensor spatial_filter_cpu(const at::Tensor& values, double sigma, bool exact,
                              int64_t normalization, bool transpose);

// Tiles and pixels as a lattice has them, without any vertices: for the spatial kernel alone.
template <typename T>
struct PlainLattice {
  Lattice<T> lattice;
  std::vector<Record<T>> records;
  std::vector<int32_t> tile_groups, rows;
  std::vector<Group> groups;

  PlainLattice(int64_t height, int64_t width) : rows(band_rows(height, width)) {
    lattice = Lattice<T>{};
    lattice.height = height;
    lattice.width = width;
    lattice.pixels = height * width;
    lattice.normalization = kNone;
    lattice.bands = static_cast<int>(rows.size()) - 1;
    lattice.tiles_x = (width + kTile - 1) / kTile;
    lattice.tiles_y = (height + kTile - 1) / kTile;
    records.reserve(lattice.pixels);
    for (int64_t y0 = 0; y0 < height; y0 += kTile) {
      for (int64_t x0 = 0; x0 < width; x0 += kTile) {
        tile_groups.push_back(static_cast<int32_t>(groups.size()));
        const int64_t first = static_cast<int64_t>(records.size());
        for (int64_t y = 0; y < std::min<int64_t>(kTile, height - y0); ++y) {
          for (int64_t x = 0; x < std::min<int64_t>(kTile, width - x0); ++x) {
            Record<T> record{};
            record.norm = 1;
            record.code = static_cast<int32_t>(y * kTile + x);
            records.push_back(record);
          }
        }
        for (int64_t p = first; p < static_cast<int64_t>(records.size()); p += kBlock) {
          groups.push_back(Group{static_cast<int32_t>(p), {}, {}});
        }
      }
    }
    tile_groups.push_back(static_cast<int32_t>(groups.size()));
    groups.push_back(Group{static_cast<int32_t>(lattice.pixels), {}, {}});
    lattice.records = records.data();
    lattice.tile_groups = tile_groups.data();
    lattice.band_rows = rows.data();
    lattice.groups = groups.data();
  }
  PlainLattice(const PlainLattice&) = delete;
};

}  // namespace crf
}  // namespace wsis_d2
