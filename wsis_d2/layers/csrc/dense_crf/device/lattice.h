// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
// The lattice on a GPU, and filtering with it. Pixels stay row by row; each tile of 16 x 16 has a row
// of its own for every vertex that its pixels touch, so that values are first summed up within the
// tile, from pixels that lie in the nearest cache, and then from tiles to vertices.
#pragma once

#include "dense_crf/device/spatial.h"
#include "dense_crf/lattice_build.h"

namespace wsis_d2 {
namespace crf {

// Slots of a GPU lattice's header beyond kSlotNormalization; offsets into its index tensor, all
// multiples of 4. How many vertices there are, only the device knows: kSlotVertices holds a bound.
enum DeviceHeader : int {
  kDeviceRows = kSlotVertices,       // of all tiles
  kDeviceCount = kSlotTileGroups,    // [1]: vertices
  kDeviceCorners,                    // [N][6]: vertex of each corner
  kDeviceTileRows,                   // [tiles + 1]: first row of each tile
  kDevicePairBegin,                  // [rows + 1]: into the pairs
  kDevicePairs,                      // uint16 [6 N]: (pixel of the tile) * 8 + corner, by row
  kDeviceVertexBegin,                // [vertices + 1]: into the order
  kDeviceOrder,                      // [rows]: rows by vertex
  kDeviceNeighbours,                 // [6][rows][2]: before and after along each axis; -1: none
};
constexpr int64_t kDeviceMagic = kMagic ^ 1;

template <typename T>
struct DeviceLattice {
  int height, width, tiles_x, tiles_y;
  int64_t rows;
  int normalization;
  const Record<T>* records;
  const int32_t* count;
  const int32_t* corners;
  const int32_t* tile_rows;
  const int32_t* pair_begin;
  const uint16_t* pairs;
  const int32_t* vertex_begin;
  const int32_t* order;
  const int32_t* neighbours;

  WSIS_HOST_DEVICE int64_t pixels() const { return int64_t(height) * width; }
  int64_t tiles() const { return int64_t(tiles_x) * tiles_y; }
};

// Pixels to tiles' rows, and to the cells of the spatial grid; a block a tile. Either may be absent.
template <typename T, typename S, int W>
struct SplatTile {
  static constexpr int kPhases = 1;
  struct Local {};
  struct Shared {};
  DeviceLattice<T> lattice;
  DevicePlan<T> plan;
  const S* values;  // [pixel][label]
  T* sums;          // [row][label]
  T* grid;          // [cell][label]
  uint32_t row_width;
  int parts;
  bool norm;  // multiply by the records' norms
  Scalar<T> bilateral, spatial;

  template <int PHASE>
  WSIS_DEVICE void phase(const Place& place, Local&, Shared&) const {
    const int ty = place.block / lattice.tiles_x, tx = place.block - ty * lattice.tiles_x;
    if (sums != nullptr) {
      const T factor = bilateral.get();
      const uint32_t corner =
          static_cast<uint32_t>(ty) * kDeviceTile * lattice.width + tx * kDeviceTile;
      const int last = lattice.tile_rows[place.block + 1];
      for (int row = lattice.tile_rows[place.block] + place.y; row < last; row += place.height) {
        const int begin = lattice.pair_begin[row], end = lattice.pair_begin[row + 1];
        for (int part = place.x; part < parts; part += place.width) {
          Pack<T, W> sum = Pack<T, W>::zero();
          for (int j = begin; j < end; ++j) {
            const uint32_t pair = lattice.pairs[j];
            const uint32_t pixel = corner + (pair >> 7) * lattice.width + ((pair >> 3) & 15);
            const Record<T>& record = lattice.records[pixel];
            const T weight = record.w[pair & 7];
            sum.fma(Pack<T, W>::load(values + static_cast<uint64_t>(pixel) * row_width + part * W),
                    norm ? weight * record.norm : weight);
          }
          sum.scale(factor);
          sum.store(sums + static_cast<uint64_t>(row) * row_width + part * W);
        }
      }
    }
    if (grid != nullptr) {
      const T factor = spatial.get();
      const int x0 = first_cell(tx, lattice.tiles_x, plan.stride, plan.grid_x);
      const int y0 = first_cell(ty, lattice.tiles_y, plan.stride, plan.grid_y);
      const int wide = first_cell(tx + 1, lattice.tiles_x, plan.stride, plan.grid_x) - x0;
      const int tall = first_cell(ty + 1, lattice.tiles_y, plan.stride, plan.grid_y) - y0;
      for (int cell = place.y; cell < wide * tall; cell += place.height) {
        const int cy = y0 + cell / wide, cx = x0 + cell % wide;
        for (int part = place.x; part < parts; part += place.width) {
          Pack<T, W> sum = gather_cell<T, S, W>(plan, values, row_width, cx, cy, part);
          sum.scale(factor);
          sum.store(grid + (static_cast<uint64_t>(cy) * plan.grid_x + cx) * row_width + part * W);
        }
      }
    }
  }
};

// Tiles' rows to vertices.
template <typename T, int W>
struct SumRows {
  DeviceLattice<T> lattice;
  const T* rows;
  T* vertices;
  uint32_t row_width;

  WSIS_DEVICE void operator()(uint32_t vertex, int part) const {
    if (vertex >= static_cast<uint32_t>(*lattice.count)) return;
    Pack<T, W> sum = Pack<T, W>::zero();
    const int end = lattice.vertex_begin[vertex + 1];
    for (int j = lattice.vertex_begin[vertex]; j < end; ++j) {
      const uint32_t row = lattice.order[j];
      sum.add(Pack<T, W>::load(rows + static_cast<uint64_t>(row) * row_width + part * W));
    }
    sum.store(vertices + static_cast<uint64_t>(vertex) * row_width + part * W);
  }
};

template <typename T, int W>
struct BlurAxis {
  const int32_t* count;
  const Pack<int32_t, 2>* neighbours;  // of the axis
  const T* from;
  T* to;
  uint32_t row_width;

  WSIS_DEVICE void operator()(uint32_t vertex, int part) const {
    if (vertex >= static_cast<uint32_t>(*count)) return;
    const Pack<int32_t, 2> beside = neighbours[vertex];
    auto row = [&](uint32_t v) { return static_cast<uint64_t>(v) * row_width + part * W; };
    Pack<T, W> sides = Pack<T, W>::zero();
    if (beside.v[0] >= 0) sides = Pack<T, W>::load(from + row(beside.v[0]));
    if (beside.v[1] >= 0) sides.add(Pack<T, W>::load(from + row(beside.v[1])));
    Pack<T, W> here = Pack<T, W>::load(from + row(vertex));
    here.fma(sides, T(0.5));
    here.store(to + row(vertex));
  }
};

// The lattice's message to a pixel.
template <typename T, int W>
WSIS_DEVICE Pack<T, W> read_lattice(const DeviceLattice<T>& lattice, const T* vertices,
                                    uint32_t row_width, uint32_t pixel, int part, bool norm) {
  using Corners = Pack<int32_t, 2>;
  const Record<T>& record = lattice.records[pixel];
  const Pack<T, 4> low = Pack<T, 4>::load(record.w);
  const Pack<T, 2> high = Pack<T, 2>::load(record.w + 4);
  const Corners* corners = reinterpret_cast<const Corners*>(lattice.corners) + 3 * uint64_t(pixel);
  Pack<T, W> sum = Pack<T, W>::zero();
  for (int k = 0; k < kVertices; ++k) {
    const uint32_t vertex = corners[k / 2].v[k % 2];
    sum.fma(Pack<T, W>::load(vertices + static_cast<uint64_t>(vertex) * row_width + part * W),
            k < 4 ? low.v[k % 4] : high.v[k % 2]);
  }
  if (norm) sum.scale(record.norm);
  return sum;
}

// Values of vertices and cells between two passes over the pixels.
template <typename T>
struct Filtered {
  at::Tensor a, b, grid, other;  // a, grid: results
  const T* vertices() const { return a.defined() ? a.const_data_ptr<T>() : nullptr; }
  const T* cells() const { return grid.defined() ? grid.const_data_ptr<T>() : nullptr; }
};

// Room for `labels` labels; `bilateral`, `spatial`: which kernels are used.
template <typename T>
Filtered<T> make_filtered(const DeviceLattice<T>& lattice, const DevicePlan<T>& plan,
                          int64_t labels, bool bilateral, bool spatial,
                          const at::TensorOptions& options) {
  Filtered<T> values;
  if (bilateral) {
    values.a = at::empty({lattice.rows, row_width(labels)}, options);
    values.b = at::empty_like(values.a);
  }
  if (spatial) {
    values.grid = at::empty({plan.cells(), row_width(labels)}, options);
    values.other = at::empty_like(values.grid);
  }
  return values;
}

// values [pixel][label] -> `filtered`: each kernel applied to the values times its factor, up to
// slicing. Nine launches with both kernels.
template <typename T, typename S, int W>
void filter(const DeviceLattice<T>& lattice, const DevicePlan<T>& plan, const S* values,
            int64_t labels, bool transpose, Scalar<T> bilateral, Scalar<T> spatial,
            Filtered<T>& filtered) {
  const uint32_t width = static_cast<uint32_t>(row_width(labels));
  const int parts = static_cast<int>(width / W);
  const bool with_lattice = filtered.a.defined(), with_grid = filtered.grid.defined();
  auto data = [](at::Tensor& t) { return t.defined() ? t.data_ptr<T>() : nullptr; };
  launch_blocks(lattice.tiles(), block_shape(parts),
                SplatTile<T, S, W>{lattice, plan, values, data(filtered.a), data(filtered.grid),
                                   width, parts, lattice.normalization == kAfter && !transpose,
                                   bilateral, spatial});
  // Each step of one kernel beside a step of the other.
  const FirAxis<T, W, true> along_x{plan, data(filtered.grid), data(filtered.other), width};
  const FirAxis<T, W, false> along_y{plan, data(filtered.other), data(filtered.grid), width};
  const int64_t cells = with_grid ? plan.cells() : 0, rows = with_lattice ? lattice.rows : 0;
  launch_both(rows, SumRows<T, W>{lattice, data(filtered.a), data(filtered.b), width}, cells,
              along_x, parts);
  for (int i = 0; i < kVertices; ++i) {
    const int axis = transpose ? kVertices - 1 - i : i;
    const auto* neighbours = reinterpret_cast<const Pack<int32_t, 2>*>(lattice.neighbours);
    const BlurAxis<T, W> blur{lattice.count, neighbours + axis * lattice.rows, data(filtered.b),
                              data(filtered.a), width};
    if (i == 0) {
      launch_both(rows, blur, cells, along_y, parts);
    } else {
      launch_rows(rows, parts, blur);
    }
    std::swap(filtered.a, filtered.b);
  }
  std::swap(filtered.a, filtered.b);
}

// Packs are loaded whole, which a view that begins anywhere in its memory does not allow.
inline void check_aligned(const at::Tensor& t, const char* name) {
  TORCH_CHECK_VALUE(reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 32 == 0, name,
                    ": expected memory that begins at a multiple of 32 bytes, found a view with an "
                    "offset; pass a clone.");
}

template <typename T>
DeviceLattice<T> view_device_lattice(const at::Tensor& header, const at::Tensor& records,
                                     const at::Tensor& index) {
  const int64_t* slot = header.const_data_ptr<int64_t>();
  TORCH_CHECK_VALUE(slot[kSlotMagic] == kDeviceMagic,
                    "header: the lattice was not built on this kind of device.");
  TORCH_CHECK_VALUE(slot[kSlotBytes] == sizeof(T), "header: the lattice was built for ",
                    slot[kSlotBytes] * 8, "-bit numbers, found ", sizeof(T) * 8, "-bit ones.");
  const int64_t pixels = slot[kSlotHeight] * slot[kSlotWidth];
  TORCH_CHECK_VALUE(records.dim() == 2 && records.size(0) == pixels && records.size(1) == 8 &&
                        records.is_contiguous(),
                    "records: they do not belong to this header.");
  TORCH_CHECK_VALUE(index.dim() == 1 && index.scalar_type() == at::kInt && index.is_contiguous() &&
                        index.size(0) == slot[kSlotIndexSize],
                    "index: it does not belong to this header.");
  check_aligned(records, "records");
  check_aligned(index, "index");
  const int32_t* base = index.const_data_ptr<int32_t>();
  const int height = static_cast<int>(slot[kSlotHeight]);
  const int width = static_cast<int>(slot[kSlotWidth]);
  return {height,
          width,
          (width + kDeviceTile - 1) / kDeviceTile,
          (height + kDeviceTile - 1) / kDeviceTile,
          slot[kDeviceRows],
          static_cast<int>(slot[kSlotNormalization]),
          reinterpret_cast<const Record<T>*>(records.const_data_ptr<T>()),
          base + slot[kDeviceCount],
          base + slot[kDeviceCorners],
          base + slot[kDeviceTileRows],
          base + slot[kDevicePairBegin],
          reinterpret_cast<const uint16_t*>(base + slot[kDevicePairs]),
          base + slot[kDeviceVertexBegin],
          base + slot[kDeviceOrder],
          base + slot[kDeviceNeighbours]};
}

}  // namespace crf
}  // namespace wsis_d2
