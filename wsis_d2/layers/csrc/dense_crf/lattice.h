// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
// The permutohedral lattice of one image (Adams, Baek, Davis, Eurographics 2010), as three tensors.
//
// Pixels are grouped by (tile of 32 x 32, simplex), because pixels of one simplex share their six
// lattice vertices. Tiles belong to bands of whole tile rows; bands are what threads work on.
// A vertex that several bands touch has one "home" row and, for every band but the first, a private
// extra row, so that splatting needs no atomics and its sums do not depend on the thread count.
#pragma once

#include <cstdint>

namespace wsis_d2 {
namespace crf {

constexpr int kTile = 32;
constexpr int kFeatures = 5;   // x, y, r, g, b
constexpr int kVertices = 6;   // of a simplex
constexpr int kBlock = 64;     // pixels worked on together; also the most a group may hold
constexpr int kHeaderSize = 48;
constexpr int64_t kMagic = 0x3244535732465243;

enum Normalization : int { kNone = 0, kAfter = 1, kSymmetric = 2 };

// One pixel: barycentric weights with the normalisation folded in (see Lattice::normalization),
// the kernel's row sum (kAfter; else 1) and the place inside its tile, y * 32 + x.
template <typename T>
struct Record {
  T w[kVertices];
  T norm;
  int32_t code;
};
template <>
struct alignas(8) Record<double> {
  double w[kVertices];
  double norm;
  int32_t code;
  int32_t unused;
};
static_assert(sizeof(Record<float>) == 32 && sizeof(Record<double>) == 64, "eight numbers a pixel");

// Pixels [begin, next group's begin) of one simplex: where to read its vertices, where to add.
struct Group {
  int32_t begin;
  int32_t slice[kVertices];
  int32_t splat[kVertices];
};

// Slots of the header tensor (int64, on the CPU).
enum Header : int {
  kSlotMagic, kSlotHeight, kSlotWidth, kSlotBytes, kSlotNormalization, kSlotVertices, kSlotExtras,
  kSlotGroups, kSlotBands, kSlotTilesX, kSlotTilesY, kSlotShared, kSlotIndexSize,
  // offsets into the index tensor (int32)
  kSlotTileGroups, kSlotBandRows, kSlotGroupTable, kSlotSharedHome, kSlotSharedBegin,
  kSlotChains,                                      // kVertices offsets
  kSlotChainSizes = kSlotChains + kVertices,        // kVertices sizes
  kSlotEnd = kSlotChainSizes + kVertices,
};
static_assert(kSlotEnd <= kHeaderSize, "header too small");

template <typename T>
struct Lattice {
  int64_t height, width, pixels;
  int normalization;
  int64_t vertices, extras, groups_count, shared_count;
  int bands;
  int64_t tiles_x, tiles_y;
  const Record<T>* records;
  const int32_t* tile_groups;   // first group of each tile, tiles row by row; one more at the end
  const int32_t* band_rows;     // first tile row of each band; one more at the end
  const Group* groups;          // one more at the end, for its begin
  const int32_t* shared_home;   // vertices with extra rows
  const int32_t* shared_begin;  // their extra rows: vertices + [begin, next begin)
  // Along each of the six axes: runs of neighbouring vertices, the last of a run as ~id.
  const int32_t* chains[kVertices];
  int64_t chain_sizes[kVertices];
  int64_t rows() const { return vertices + extras; }
};

}  // namespace crf
}  // namespace wsis_d2
