// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
// The spatial kernel on a GPU, by the CPU's plan: down to the grid, FIR along x and y, up again.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>

#include "dense_crf/device/launch.h"
#include "dense_crf/mean_field.h"
#include "dense_crf/spatial.h"

namespace wsis_d2 {
namespace crf {

template <typename T>
struct DevicePlan {
  int64_t height, width, grid_x, grid_y;
  int stride, radius;
  const T* kernel;
  const Tap<T>* x;
  const Tap<T>* y;
  at::Tensor storage;  // keeps the three above alive
};

// Pixels that may write to a cell; a tap's cells rise with its pixel.
WSIS_DEVICE int64_t first_pixel(int64_t cell, int stride) {
  const int64_t pixel = stride == 1 ? cell : (cell - 2) * stride;
  return pixel < 0 ? 0 : pixel;
}
WSIS_DEVICE int64_t last_pixel(int64_t cell, int stride, int64_t size) {
  const int64_t pixel = stride == 1 ? cell : (cell + 1) * stride;
  return pixel < size - 1 ? pixel : size - 1;
}

// grid[cy][cx][label] = factor * sum of values over the pixels whose taps hold the cell
template <typename T>
struct Down {
  const T* values;
  T* grid;
  const Tap<T>* tx;
  const Tap<T>* ty;
  int64_t height, width, grid_x, labels;
  int stride;
  T factor;

  WSIS_DEVICE void operator()(int64_t i) const {
    const int64_t label = i % labels, cx = i / labels % grid_x, cy = i / labels / grid_x;
    T total = 0;
    const int64_t x_last = last_pixel(cx, stride, width), y_last = last_pixel(cy, stride, height);
    for (int64_t y = first_pixel(cy, stride); y <= y_last; ++y) {
      const T wy = ty[y].index == cy ? ty[y].write0 : ty[y].index + 1 == cy ? ty[y].write1 : T(0);
      if (wy == T(0)) continue;
      T row = 0;
      for (int64_t x = first_pixel(cx, stride); x <= x_last; ++x) {
        const T wx =
            tx[x].index == cx ? tx[x].write0 : tx[x].index + 1 == cx ? tx[x].write1 : T(0);
        if (wx != T(0)) row += wx * values[(y * width + x) * labels + label];
      }
      total += wy * row;
    }
    grid[i] = total * factor;
  }
};

// Along x (step = labels) or y (step = grid_x * labels).
template <typename T>
struct FirAxis {
  const T* from;
  T* to;
  const T* kernel;
  int radius;
  int64_t step, size;

  WSIS_DEVICE void operator()(int64_t i) const {
    const int64_t at = i / step % size;
    T sum = kernel[0] * from[i];
    for (int k = 1; k <= radius; ++k) {
      T pair = 0;
      if (at >= k) pair += from[i - k * step];
      if (at + k < size) pair += from[i + k * step];
      sum += kernel[k] * pair;
    }
    to[i] = sum;
  }
};

template <typename T>
struct Up {
  const T* grid;
  T* values;
  const Tap<T>* tx;
  const Tap<T>* ty;
  int64_t width, grid_x, labels;
  int stride;

  WSIS_DEVICE void operator()(int64_t i) const {
    const int64_t label = i % labels;
    const Tap<T>& x = tx[i / labels % width];
    const Tap<T>& y = ty[i / labels / width];
    const T* cell = grid + (y.index * grid_x + x.index) * labels + label;
    T sum = y.read0 * x.read0 * cell[0];
    if (stride > 1) {
      const T* below = cell + grid_x * labels;
      sum += y.read0 * x.read1 * cell[labels] + y.read1 * x.read0 * below[0] +
             y.read1 * x.read1 * below[labels];
    }
    values[i] = sum;
  }
};

template <typename T>
DevicePlan<T> make_device_plan(int64_t height, int64_t width, double sigma, bool exact,
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
  at::Tensor host = at::empty({kernel_bytes + x_bytes + y_bytes},
                              at::TensorOptions().dtype(at::kByte));
  uint8_t* bytes = host.data_ptr<uint8_t>();
  std::memcpy(bytes, plan.kernel.data(), plan.kernel.size() * sizeof(T));
  std::memcpy(bytes + kernel_bytes, plan.x.data(), plan.x.size() * sizeof(Tap<T>));
  std::memcpy(bytes + kernel_bytes + x_bytes, plan.y.data(), y_bytes);
  const at::Tensor storage = host.to(like.device());
  const uint8_t* base = storage.const_data_ptr<uint8_t>();
  return {height,
          width,
          plan.grid_x,
          plan.grid_y,
          plan.stride,
          plan.radius,
          reinterpret_cast<const T*>(base),
          reinterpret_cast<const Tap<T>*>(base + kernel_bytes),
          reinterpret_cast<const Tap<T>*>(base + kernel_bytes + x_bytes),
          storage};
}

// values (N, labels) -> K values (N, labels), times `factor`.
template <typename T>
at::Tensor device_spatial_filter(const DevicePlan<T>& plan, const at::Tensor& values, T factor) {
  const int64_t labels = values.size(1), cells = plan.grid_x * plan.grid_y * labels;
  at::Tensor here = at::empty({cells}, values.options());
  at::Tensor other = at::empty_like(here);
  T* a = here.template data_ptr<T>();
  T* b = other.template data_ptr<T>();
  launch(cells, Down<T>{values.const_data_ptr<T>(), a, plan.x, plan.y, plan.height, plan.width,
                        plan.grid_x, labels, plan.stride, factor});
  launch(cells, FirAxis<T>{a, b, plan.kernel, plan.radius, labels, plan.grid_x});
  launch(cells, FirAxis<T>{b, a, plan.kernel, plan.radius, plan.grid_x * labels, plan.grid_y});
  at::Tensor result = at::empty_like(values);
  launch(values.numel(), Up<T>{a, result.template data_ptr<T>(), plan.x, plan.y, plan.width,
                               plan.grid_x, labels, plan.stride});
  return result;
}

}  // namespace crf
}  // namespace wsis_d2
