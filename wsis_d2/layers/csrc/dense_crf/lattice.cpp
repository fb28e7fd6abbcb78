// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
// Layout of a lattice: its keys, its bands, its three tensors.
#include "dense_crf/lattice_build.h"

#include <algorithm>

namespace wsis_d2 {
namespace crf {

void check_pixel_count(int64_t height, int64_t width) {
  TORCH_CHECK_VALUE(height <= (int64_t(1) << 28) && width <= (int64_t(1) << 28) &&
                        height * width <= (int64_t(1) << 28),
                    "image: ", height, " x ", width,
                    " pixels overflow 32-bit indices of their vertices; at most 2^28 are allowed.");
}

KeyLayout checked_layout(int64_t height, int64_t width, const double* low, const double* high,
                         double sigma_xy, double sigma_rgb) {
  double least[kFeatures], most[kFeatures];
  feature_ranges(height, width, low, high, sigma_xy, sigma_rgb, least, most);
  KeyLayout layout;
  check_layout_fits(fit_layout(least, most, layout), height, width, sigma_xy, sigma_rgb);
  return layout;
}

void check_layout_fits(bool fits, int64_t height, int64_t width, double sigma_xy,
                       double sigma_rgb) {
  TORCH_CHECK_VALUE(
      fits, "bilateral_xy, bilateral_rgb: ", sigma_xy, " and ",
      sigma_rgb, " are too small for a ", height, " x ", width,
      " image of these colours: lattice coordinates would overflow their 64-bit keys; use larger "
      "bandwidths.");
}

std::vector<int32_t> band_rows(int64_t height, int64_t width) {
  const int64_t tiles = (height + kTile - 1) / kTile;
  const int64_t wanted = std::max<int64_t>(1, std::min<int64_t>(16, height * width / 48000));
  const int64_t each = (tiles + wanted - 1) / wanted;
  std::vector<int32_t> rows;
  for (int64_t row = 0; row < tiles; row += each) rows.push_back(static_cast<int32_t>(row));
  rows.push_back(static_cast<int32_t>(tiles));
  return rows;
}

template <typename T>
Lattice<T> view_lattice(const at::Tensor& header, const at::Tensor& records,
                        const at::Tensor& index) {
  TORCH_CHECK_VALUE(header.device().is_cpu() && header.scalar_type() == at::kLong &&
                        header.dim() == 1 && header.size(0) == kHeaderSize &&
                        header.is_contiguous() && header.const_data_ptr<int64_t>()[0] == kMagic,
                    "header: not that of wsis_d2::build_lattice.");
  const int64_t* slot = header.const_data_ptr<int64_t>();
  Lattice<T> lattice;
  lattice.height = slot[kSlotHeight];
  lattice.width = slot[kSlotWidth];
  lattice.pixels = lattice.height * lattice.width;
  TORCH_CHECK_VALUE(slot[kSlotBytes] == sizeof(T), "header: the lattice was built for ",
                    slot[kSlotBytes] * 8, "-bit numbers, found ", sizeof(T) * 8, "-bit ones.");
  TORCH_CHECK_VALUE(records.dim() == 2 && records.size(0) == lattice.pixels &&
                        records.size(1) == 8 && records.is_contiguous(),
                    "records: they do not belong to this header.");
  TORCH_CHECK_VALUE(index.dim() == 1 && index.scalar_type() == at::kInt && index.is_contiguous() &&
                        index.size(0) == slot[kSlotIndexSize],
                    "index: it does not belong to this header.");
  lattice.normalization = static_cast<int>(slot[kSlotNormalization]);
  lattice.vertices = slot[kSlotVertices];
  lattice.extras = slot[kSlotExtras];
  lattice.groups_count = slot[kSlotGroups];
  lattice.shared_count = slot[kSlotShared];
  lattice.bands = static_cast<int>(slot[kSlotBands]);
  lattice.tiles_x = slot[kSlotTilesX];
  lattice.tiles_y = slot[kSlotTilesY];
  lattice.records = reinterpret_cast<const Record<T>*>(records.const_data_ptr<T>());
  const int32_t* base = index.const_data_ptr<int32_t>();
  lattice.tile_groups = base + slot[kSlotTileGroups];
  lattice.band_rows = base + slot[kSlotBandRows];
  lattice.groups = reinterpret_cast<const Group*>(base + slot[kSlotGroupTable]);
  lattice.shared_home = base + slot[kSlotSharedHome];
  lattice.shared_begin = base + slot[kSlotSharedBegin];
  for (int a = 0; a < kVertices; ++a) {
    lattice.chains[a] = base + slot[kSlotChains + a];
    lattice.chain_sizes[a] = slot[kSlotChainSizes + a];
  }
  return lattice;
}

template Lattice<float> view_lattice(const at::Tensor&, const at::Tensor&, const at::Tensor&);
template Lattice<double> view_lattice(const at::Tensor&, const at::Tensor&, const at::Tensor&);

}  // namespace crf
}  // namespace wsis_d2
