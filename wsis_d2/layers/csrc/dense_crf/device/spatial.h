// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
// The spatial kernel on a GPU, by the CPU's plan: down to the grid (in lattice.h, beside the splat),
// FIR along x and y, up again. Grids are [cell][label] with rows as in pack.h.
#pragma once

#include <cstring>

#include "dense_crf/device/pack.h"
#include "dense_crf/mean_field.h"
#include "dense_crf/spatial.h"

namespace wsis_d2 {
namespace crf {

constexpr int kDeviceTile = 16;  // pixels along each side

// Both directions share everything but the taps.
template <typename T>
struct DevicePlan {
  int height, width, grid_x, grid_y, stride, radius;
  const T* kernel;
  const Tap<T>* x;
  const Tap<T>* y;
  int64_t cells() const { return int64_t(grid_x) * grid_y; }
};

// Pixels that may write to a cell; a tap's cells rise with its pixel.
WSIS_DEVICE int first_pixel(int cell, int stride) {
  const int pixel = stride == 1 ? cell : (cell - 2) * stride;
  return pixel < 0 ? 0 : pixel;
}
WSIS_DEVICE int last_pixel(int cell, int stride, int size) {
  const int pixel = stride == 1 ? cell : (cell + 1) * stride;
  return pixel < size - 1 ? pixel : size - 1;
}

// The first cell that the tile of this number sums up: those whose pixels it has in its middle.
WSIS_DEVICE int first_cell(int tile, int tiles, int stride, int cells) {
  if (tile == 0) return 0;
  if (tile >= tiles) return cells;
  const int cell = stride == 1 ? tile * kDeviceTile
                               : (tile * kDeviceTile + (stride + 1) / 2 - 1) / stride + 1;
  return cell < cells ? cell : cells;
}

// What a pixel adds to a cell along one axis.
template <typename T>
WSIS_DEVICE T tap_weight(const Tap<T>& tap, int cell) {
  return tap.index == cell ? tap.write0 : tap.index + 1 == cell ? tap.write1 : T(0);
}

// sum over the cell's pixels of values [pixel][label], one pack of labels
template <typename T, typename S, int W>
WSIS_DEVICE Pack<T, W> gather_cell(const DevicePlan<T>& plan, const S* values, uint32_t row_width,
                                   int cx, int cy, int part) {
  Pack<T, W> total = Pack<T, W>::zero();
  const int x_first = first_pixel(cx, plan.stride), y_first = first_pixel(cy, plan.stride);
  const int x_last = last_pixel(cx, plan.stride, plan.width);
  const int y_last = last_pixel(cy, plan.stride, plan.height);
  for (int y = y_first; y <= y_last; ++y) {
    const T wy = tap_weight(plan.y[y], cy);
    if (wy == T(0)) continue;
    const S* row = values + (static_cast<uint64_t>(y) * plan.width) * row_width + part * W;
    Pack<T, W> sum = Pack<T, W>::zero();
    for (int x = x_first; x <= x_last; ++x) {
      const T wx = tap_weight(plan.x[x], cx);
      if (wx != T(0)) {
        sum.fma(Pack<T, W>::load(row + static_cast<uint64_t>(x) * row_width), wx);
      }
    }
    total.fma(sum, wy);
  }
  return total;
}

// Along x or y.
template <typename T, int W, bool ALONG_X>
struct FirAxis {
  DevicePlan<T> plan;
  const T* from;
  T* to;
  uint32_t row_width;

  WSIS_DEVICE void operator()(uint32_t cell, int part) const {
    const uint32_t line = cell / plan.grid_x;
    const int at = ALONG_X ? cell - line * plan.grid_x : line;
    const int size = ALONG_X ? plan.grid_x : plan.grid_y;
    const int64_t step = (ALONG_X ? int64_t(1) : plan.grid_x) * int64_t(row_width);
    const T* centre = from + static_cast<uint64_t>(cell) * row_width + part * W;
    Pack<T, W> sum = Pack<T, W>::load(centre);
    sum.scale(plan.kernel[0]);
    for (int k = 1; k <= plan.radius; ++k) {
      Pack<T, W> pair = Pack<T, W>::zero();
      if (at >= k) pair = Pack<T, W>::load(centre - k * step);
      if (at + k < size) pair.add(Pack<T, W>::load(centre + k * step));
      sum.fma(pair, plan.kernel[k]);
    }
    sum.store(to + static_cast<uint64_t>(cell) * row_width + part * W);
  }
};

// The message to a pixel: its four cells, interpolated (one at stride 1).
template <typename T, int W>
WSIS_DEVICE Pack<T, W> read_grid(const DevicePlan<T>& plan, const T* grid, uint32_t row_width,
                                 int px, int py, int part) {
  const Tap<T> x = plan.x[px], y = plan.y[py];
  const T* cell =
      grid + (static_cast<uint64_t>(y.index) * plan.grid_x + x.index) * row_width + part * W;
  Pack<T, W> sum = Pack<T, W>::load(cell);
  sum.scale(y.read0 * x.read0);
  if (plan.stride > 1) {
    const T* below = cell + static_cast<uint64_t>(plan.grid_x) * row_width;
    sum.fma(Pack<T, W>::load(cell + row_width), y.read0 * x.read1);
    sum.fma(Pack<T, W>::load(below), y.read1 * x.read0);
    sum.fma(Pack<T, W>::load(below + row_width), y.read1 * x.read1);
  }
  return sum;
}

// A plan on the device, and the memory that it points into. Copied from pinned memory: the host
// does not wait.
template <typename T>
struct OwnedPlan {
  DevicePlan<T> plan;
  at::Tensor storage;
};

template <typename T>
OwnedPlan<T> make_device_plan(int64_t height, int64_t width, double sigma, bool exact,
                              int normalization, bool transpose, const at::Tensor& like) {
  // Only sizes are asked of the lattice.
  const std::vector<int32_t> rows = {0, static_cast<int32_t>((height + kTile - 1) / kTile)};
  Lattice<T> sizes{};
  sizes.height = height;
  sizes.width = width;
  sizes.bands = 1;
  sizes.band_rows = rows.data();
  const SpatialPlan<T> plan = plan_spatial<T>(sizes, sigma, exact, normalization, transpose);
  const int64_t kernel_bytes = (plan.kernel.size() * sizeof(T) + 63) / 64 * 64;
  const int64_t x_bytes = (plan.x.size() * sizeof(Tap<T>) + 63) / 64 * 64;
  const int64_t y_bytes = plan.y.size() * sizeof(Tap<T>);
  at::Tensor host =
      at::empty({kernel_bytes + x_bytes + y_bytes},
                at::TensorOptions().dtype(at::kByte).pinned_memory(like.is_cuda()));
  uint8_t* bytes = host.data_ptr<uint8_t>();
  std::memcpy(bytes, plan.kernel.data(), plan.kernel.size() * sizeof(T));
  std::memcpy(bytes + kernel_bytes, plan.x.data(), plan.x.size() * sizeof(Tap<T>));
  std::memcpy(bytes + kernel_bytes + x_bytes, plan.y.data(), y_bytes);
  const at::Tensor storage = host.to(like.device(), /*non_blocking=*/true);
  const uint8_t* base = storage.const_data_ptr<uint8_t>();
  return {{static_cast<int>(height), static_cast<int>(width), static_cast<int>(plan.grid_x),
           static_cast<int>(plan.grid_y), plan.stride, plan.radius,
           reinterpret_cast<const T*>(base), reinterpret_cast<const Tap<T>*>(base + kernel_bytes),
           reinterpret_cast<const Tap<T>*>(base + kernel_bytes + x_bytes)},
          storage};
}

}  // namespace crf
}  // namespace wsis_d2
