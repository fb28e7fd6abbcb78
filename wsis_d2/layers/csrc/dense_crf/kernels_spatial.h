// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
// The spatial kernel: pixels to a coarse grid, FIR filters there, grid to pixels. See spatial.h;
// included by kernels_*.cpp only, after kernels_tiles.h.

// The spatial kernel's message to a pixel: its four grid cells, interpolated (one at stride 1).
template <typename T, int BLOCKS>
struct NearCells {
  const T* grid;
  int64_t line;  // numbers from one row of cells to the next
  const Tap<T>* tx;
  const Tap<T>* ty;
  bool between;

  WSIS_INLINE Row<T, BLOCKS> read(int32_t code) const {
    using R = Row<T, BLOCKS>;
    const Tap<T>& x = tx[code % kTile];
    const Tap<T>& y = ty[code / kTile];
    const T* cell = grid + y.index * line + x.index * R::kWidth;
    R sum = R::load(cell);
    sum.scale(y.read0 * x.read0);
    if (between) {
      sum.fma(R::load(cell + R::kWidth), y.read0 * x.read1);
      sum.fma(R::load(cell + line), y.read1 * x.read0);
      sum.fma(R::load(cell + line + R::kWidth), y.read1 * x.read1);
    }
    return sum;
  }
};

// The transpose: a tile's values are added to the band's strip.
template <typename T, int BLOCKS>
void down_tile(const Pass<T>& pass, const Chunk& chunk, const TilePlace<T>& tile, int band) {
  using R = Row<T, BLOCKS>;
  constexpr int kWidth = R::kWidth;
  const SpatialPlan<T>& plan = *pass.plan;
  const int64_t first = tile.tx[0].index;
  T* strip = pass.strips + plan.strip_total * plan.grid_x * chunk.offset +
             ((plan.strip_begin[band] - plan.strip_row[band]) * plan.grid_x + first) * kWidth;
  const T* raster = tile.raster + kTile * kTile * chunk.offset;
  alignas(64) T line[(kTile + 2) * kWidth];
  for (int64_t y = 0; y < tile.rows; ++y) {
    const Tap<T>& tap = tile.ty[y];
    T* upper = strip + tap.index * plan.grid_x * kWidth;
    const T* from = raster + y * kTile * kWidth;
    if (plan.stride == 1) {
      for (int64_t x = 0; x < tile.columns; ++x) {
        R sum = R::load(from + x * kWidth);
        sum.scale(tap.write0 * tile.tx[x].write0);
        sum.store(upper + x * kWidth);  // a cell a pixel
      }
      continue;
    }
    // Pixels come with rising cells: two sums at a time stay in registers.
    R here = R::zero(), next = R::zero();
    int64_t cell = 0;
    for (int64_t x = 0; x < tile.columns; ++x) {
      const int64_t index = tile.tx[x].index - first;
      if (index != cell) {
        here.store(line + cell * kWidth);
        here = next;
        next = R::zero();
        cell = index;
      }
      const R value = R::load(from + x * kWidth);
      here.fma(value, tile.tx[x].write0);
      next.fma(value, tile.tx[x].write1);
    }
    here.store(line + cell * kWidth);
    next.store(line + (cell + 1) * kWidth);
    T* lower = upper + plan.grid_x * kWidth;
    for (int64_t c = 0; c < cell + 2; ++c) {
      const R sum = R::load(line + c * kWidth);
      R above = R::load(upper + c * kWidth), below = R::load(lower + c * kWidth);
      above.fma(sum, tap.write0);
      below.fma(sum, tap.write1);
      above.store(upper + c * kWidth);
      below.store(lower + c * kWidth);
    }
  }
}

// Columns of a grid row are taken from the strips (added where two bands overlap), filtered along x
// into a ring of rows, then along y.
template <typename T>
void fir_rows(const SpatialPlan<T>& plan, const T* strips, T* grid, T* scratch, int blocks,
              int64_t begin, int64_t end) {
  with_blocks(blocks, [&](auto constant) {
    using R = Row<T, constant.value>;
    constexpr int64_t kWidth = R::kWidth;
    const int64_t cells = plan.grid_x, radius = plan.radius, ring = 2 * radius + 1;
    const T* kernel = plan.kernel.data();
    // scratch: one padded row, a row of zeros, then the ring
    T* padded = scratch;
    T* zeros = padded + (cells + 2 * radius) * kWidth;
    T* rows = zeros + cells * kWidth;
    std::memset(scratch, 0, (rows - scratch) * sizeof(T));
    auto along_x = [&](int64_t y) {
      T* to = rows + (y % ring) * cells * kWidth;
      bool first = true;
      for (size_t b = 0; b < plan.strip_row.size(); ++b) {
        const int64_t inside = y - plan.strip_row[b];
        if (inside < 0 || inside >= plan.strip_rows[b]) continue;
        const T* from = strips + (plan.strip_begin[b] + inside) * cells * kWidth;
        T* row = padded + radius * kWidth;
        if (first) {
          std::memcpy(row, from, cells * kWidth * sizeof(T));
        } else {
          for (int64_t i = 0; i < cells * kWidth; ++i) row[i] += from[i];
        }
        first = false;
      }
      if (first) std::memset(padded + radius * kWidth, 0, cells * kWidth * sizeof(T));
      for (int64_t x = 0; x < cells; ++x) {
        const T* centre = padded + (x + radius) * kWidth;
        R sum = R::load(centre);
        sum.scale(kernel[0]);
        for (int64_t k = 1; k <= radius; ++k) {
          R pair = R::load(centre - k * kWidth);
          pair.add(R::load(centre + k * kWidth));
          sum.fma(pair, kernel[k]);
        }
        sum.store(to + x * kWidth);
      }
    };
    for (int64_t y = std::max<int64_t>(0, begin - radius); y < std::min(plan.grid_y, begin + radius);
         ++y) {
      along_x(y);
    }
    std::vector<const T*> taps(ring);
    for (int64_t y = begin; y < end; ++y) {
      if (y + radius < plan.grid_y) along_x(y + radius);
      // Rows outside the grid count nothing: they are read as zeros.
      for (int64_t k = -radius; k <= radius; ++k) {
        const bool inside = y + k >= 0 && y + k < plan.grid_y;
        taps[k + radius] = inside ? rows + (y + k) % ring * cells * kWidth : zeros;
      }
      T* to = grid + y * cells * kWidth;
      for (int64_t x = 0; x < cells; ++x) {
        R sum = R::load(taps[radius] + x * kWidth);
        sum.scale(kernel[0]);
        for (int64_t k = 1; k <= radius; ++k) {
          R pair = R::load(taps[radius - k] + x * kWidth);
          pair.add(R::load(taps[radius + k] + x * kWidth));
          sum.fma(pair, kernel[k]);
        }
        sum.store(to + x * kWidth);
      }
    }
  });
}
