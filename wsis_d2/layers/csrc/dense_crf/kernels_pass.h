// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
// One pass over a band of pixels: slice, softmax (or its backward), splat. See pass.h; included by
// kernels_*.cpp only, after kernels_simd.h.

// Scratch of one thread for a block of at most kBlock pixels (all chunks) or for a tile.
template <typename T>
struct BlockScratch {
  T* values;             // [padded / 8 chunks][kBlock][width]
  T sum[kBlock];         // softmax's denominator, or <q, gradient>
  alignas(64) T partial[kBlock][8];  // the same before its eight parts are added
  T bilateral[kBlock];   // factors of splatting
  T spatial[kBlock];
  explicit BlockScratch(int64_t padded)
      : values(static_cast<T*>(std::aligned_alloc(64, padded * kBlock * sizeof(T)))) {
    if (values == nullptr) throw std::bad_alloc();
  }
  void clear(int64_t count) { std::memset(partial, 0, count * sizeof(partial[0])); }
  void add_up(int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const T* v = partial[i];
      sum[i] = ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7]));
    }
  }
  ~BlockScratch() { std::free(values); }
  BlockScratch(const BlockScratch&) = delete;
  BlockScratch& operator=(const BlockScratch&) = delete;
};

// Where one tile's pixels are, on the image and on the grid.
template <typename T>
struct TilePlace {
  int64_t x0, y0, columns, rows;
  const Tap<T>* tx;  // of the tile's first column and row
  const Tap<T>* ty;
  T* messages;       // [chunk][y][x][label]: the spatial kernel's; nullptr: none
};

// Groups ahead whose rows are fetched: they lie anywhere in the lattice.
constexpr int64_t kGroupsAhead = 3;

template <typename T, int BLOCKS>
WSIS_INLINE void prefetch_row(const T* row) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < 8 * BLOCKS; i += kLine) __builtin_prefetch(row + i, 1);
}

// Messages of pixels [p0, groups[g1].begin) in `groups` [g0, g1), one chunk, then by mode:
// kForward: 2^(logit + message) -> values, sums; kMessage: values; kBackward: see pass_band.
template <typename T, int BLOCKS, Mode MODE, bool BILATERAL>
void slice_block(const Pass<T>& pass, const Chunk& chunk, const TilePlace<T>& tile, int64_t g0,
                 int64_t g1, int64_t p0, int64_t p1, T* values, T* sum, bool exponent,
                 double* weight_grads) {
  using R = Row<T, BLOCKS>;
  constexpr int kWidth = R::kWidth;
  const Lattice<T>& lattice = *pass.lattice;
  const T* vertices = BILATERAL ? pass.values + lattice.rows() * chunk.offset : nullptr;
  const T* spatial =
      tile.messages != nullptr ? tile.messages + kTile * kTile * chunk.offset : nullptr;
  const T* logits =
      MODE == Mode::kForward ? pass.logits + lattice.pixels * chunk.offset : nullptr;
  const T* q = MODE == Mode::kBackward ? pass.q + lattice.pixels * chunk.offset : nullptr;
  R grad_bilateral = R::zero(), grad_spatial = R::zero();
  for (int64_t g = g0; g < g1; ++g) {
    const Group& group = lattice.groups[g];
    R corner[kVertices];
    if constexpr (BILATERAL) {
      const Group& ahead = lattice.groups[std::min(g + kGroupsAhead, lattice.groups_count)];
      for (int i = 0; i < kVertices; ++i) {
        prefetch_row<T, BLOCKS>(vertices + static_cast<int64_t>(ahead.slice[i]) * kWidth);
      }
      for (int i = 0; i < kVertices; ++i) {
        corner[i] = R::load(vertices + static_cast<int64_t>(group.slice[i]) * kWidth);
      }
    }
    const int64_t begin = group.begin, end = lattice.groups[g + 1].begin;
    for (int64_t p = begin; p < end; ++p) {
      const Record<T>& record = lattice.records[p];
      R message = R::zero();
      if constexpr (BILATERAL) {
        for (int i = 0; i < kVertices; ++i) message.fma(corner[i], record.w[i]);
        if (pass.norm_slice) message.scale(record.norm);
      }
      if constexpr (MODE == Mode::kBackward) {
        const R marginal = R::load(q + p * kWidth);
        R product = message;
        product.multiply(marginal);
        grad_bilateral.add(product);
        message.scale(pass.weight_bilateral);
      }
      if (spatial != nullptr) {
        R near = R::load(spatial + record.code * kWidth);
        if constexpr (MODE == Mode::kBackward) {
          R product = near;
          product.multiply(R::load(q + p * kWidth));
          grad_spatial.add(product);
          message.fma(near, pass.weight_spatial);
        } else {
          message.add(near);
        }
      }
      if constexpr (MODE == Mode::kForward) {
        message.add(R::load(logits + p * kWidth));
        if (exponent) {
          message.exp2();
          message.add_partial(sum + (p - p0) * 8);
        }
      }
      if constexpr (MODE == Mode::kBackward) {
        R product = message;
        product.multiply(R::load(q + p * kWidth));
        product.add_partial(sum + (p - p0) * 8);
      }
      message.store(values + (p - p0) * kWidth);
    }
  }
  if constexpr (MODE == Mode::kBackward) {
    weight_grads[0] += static_cast<double>(grad_bilateral.sum());
    weight_grads[1] += static_cast<double>(grad_spatial.sum());
  }
}

// Add values * factors to the vertices, and lay them out for down_tile; one chunk.
template <typename T, int BLOCKS, bool BILATERAL>
void splat_block(const Pass<T>& pass, const Chunk& chunk, const TilePlace<T>& tile, int64_t g0, int64_t g1, int64_t p0, int64_t p1, const T* values,
                 const T* bilateral, const T* spatial) {
  using R = Row<T, BLOCKS>;
  constexpr int kWidth = R::kWidth;
  const Lattice<T>& lattice = *pass.lattice;
  T* vertices = BILATERAL ? pass.sums + lattice.rows() * chunk.offset : nullptr;
  if constexpr (BILATERAL) {
    for (int64_t g = g0; g < g1; ++g) {
      const Group& group = lattice.groups[g];
      const int64_t begin = group.begin, end = lattice.groups[g + 1].begin;
      const Group& ahead = lattice.groups[std::min(g + kGroupsAhead, lattice.groups_count)];
      for (int i = 0; i < kVertices; ++i) {
        prefetch_row<T, BLOCKS>(vertices + static_cast<int64_t>(ahead.splat[i]) * kWidth);
      }
      R corner[kVertices];
      for (int i = 0; i < kVertices; ++i) {
        corner[i] = R::load(vertices + static_cast<int64_t>(group.splat[i]) * kWidth);
      }
      for (int64_t p = begin; p < end; ++p) {
        const Record<T>& record = lattice.records[p];
        const R value = R::load(values + (p - p0) * kWidth);
        const T factor = bilateral[p - p0];
        for (int i = 0; i < kVertices; ++i) corner[i].fma(value, record.w[i] * factor);
      }
      for (int i = 0; i < kVertices; ++i) {
        corner[i].store(vertices + static_cast<int64_t>(group.splat[i]) * kWidth);
      }
    }
  }
  if (tile.messages == nullptr) return;
  // The pixel's message is spent: its place takes the value, for down_tile.
  T* raster = tile.messages + kTile * kTile * chunk.offset;
  for (int64_t p = p0; p < p1; ++p) {
    R value = R::load(values + (p - p0) * kWidth);
    value.scale(spatial[p - p0]);
    value.store(raster + lattice.records[p].code * kWidth);
  }
}

// Messages of the spatial kernel for one tile, row by row: the grid, interpolated.
template <typename T, int BLOCKS>
void up_tile(const Pass<T>& pass, const Chunk& chunk, const TilePlace<T>& tile) {
  using R = Row<T, BLOCKS>;
  constexpr int kWidth = R::kWidth;
  const SpatialPlan<T>& plan = *pass.plan;
  const T* grid = pass.grid + plan.grid_x * plan.grid_y * chunk.offset;
  T* raster = tile.messages + kTile * kTile * chunk.offset;
  const int64_t first = tile.tx[0].index;
  const int64_t cells = tile.tx[tile.columns - 1].index + 2 - first;
  alignas(64) T line[(kTile + 2) * kWidth];
  for (int64_t y = 0; y < tile.rows; ++y) {
    const Tap<T>& tap = tile.ty[y];
    const T* upper = grid + (tap.index * plan.grid_x + first) * kWidth;
    const T* lower = upper + plan.grid_x * kWidth;
    T* to = raster + y * kTile * kWidth;
    if (plan.stride == 1) {
      for (int64_t x = 0; x < tile.columns; ++x) {
        R sum = R::load(upper + x * kWidth);
        sum.scale(tap.read0 * tile.tx[x].read0);
        sum.store(to + x * kWidth);
      }
      continue;
    }
    for (int64_t c = 0; c < cells; ++c) {
      R sum = R::load(upper + c * kWidth);
      sum.scale(tap.read0);
      sum.fma(R::load(lower + c * kWidth), tap.read1);
      sum.store(line + c * kWidth);
    }
    for (int64_t x = 0; x < tile.columns; ++x) {
      const T* cell = line + (tile.tx[x].index - first) * kWidth;
      R sum = R::load(cell);
      sum.scale(tile.tx[x].read0);
      sum.fma(R::load(cell + kWidth), tile.tx[x].read1);
      sum.store(to + x * kWidth);
    }
  }
}

// The transpose: a tile's values are added to the band's strip.
template <typename T, int BLOCKS>
void down_tile(const Pass<T>& pass, const Chunk& chunk, const TilePlace<T>& tile, int band) {
  using R = Row<T, BLOCKS>;
  constexpr int kWidth = R::kWidth;
  const SpatialPlan<T>& plan = *pass.plan;
  const int64_t first = tile.tx[0].index;
  T* strip = pass.strips + plan.strip_total * plan.grid_x * chunk.offset +
             ((plan.strip_begin[band] - plan.strip_row[band]) * plan.grid_x + first) * kWidth;
  const T* raster = tile.messages + kTile * kTile * chunk.offset;
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

// Calls body(std::integral_constant<int, blocks>).
template <typename F>
WSIS_INLINE void with_blocks(int blocks, F&& body) {
  switch (blocks) {
    case 1: body(std::integral_constant<int, 1>()); break;
    case 2: body(std::integral_constant<int, 2>()); break;
    case 3: body(std::integral_constant<int, 3>()); break;
    default: body(std::integral_constant<int, 4>()); break;
  }
}

template <typename T, Mode MODE>
void slice_chunk(const Pass<T>& pass, const Chunk& chunk, const TilePlace<T>& tile, int64_t g0,
                 int64_t g1, int64_t p0, int64_t p1, T* values, T* sum, bool exponent,
                 double* weight_grads) {
  with_blocks(chunk.blocks, [&](auto blocks) {
    auto call = pass.bilateral ? slice_block<T, blocks.value, MODE, true>
                               : slice_block<T, blocks.value, MODE, false>;
    call(pass, chunk, tile, g0, g1, p0, p1, values, sum, exponent, weight_grads);
  });
}

template <typename T>
void splat_chunk(const Pass<T>& pass, const Chunk& chunk, const TilePlace<T>& tile, int64_t g0,
                 int64_t g1, int64_t p0, int64_t p1, const T* values,
                 const T* bilateral, const T* spatial) {
  with_blocks(chunk.blocks, [&](auto blocks) {
    auto call = pass.bilateral ? splat_block<T, blocks.value, true>
                               : splat_block<T, blocks.value, false>;
    call(pass, chunk, tile, g0, g1, p0, p1, values, bilateral, spatial);
  });
}

// Softmax of block values that hold base-2 logits, with the maximum taken out first.
template <typename T>
void careful_softmax(const Pass<T>& pass, int64_t count, T* values, T* sum) {
  for (int64_t p = 0; p < count; ++p) {
    T highest = -std::numeric_limits<T>::infinity();
    for (const Chunk& chunk : pass.chunks) {
      const T* row = values + kBlock * chunk.offset + p * chunk.width();
      for (int64_t l = 0; l < chunk.labels; ++l) highest = std::max(highest, row[l]);
    }
    sum[p] = 0;
    for (const Chunk& chunk : pass.chunks) {
      T* row = values + kBlock * chunk.offset + p * chunk.width();
      with_blocks(chunk.blocks, [&](auto blocks) {
        auto r = Row<T, blocks.value>::load(row);
        r.subtract(highest);
        r.exp2();
        r.store(row);
        sum[p] += r.sum();
      });
    }
  }
}

// Softmax block [p0, p1): values hold 2^logit un-normalised; factors follow from the sums.
template <typename T>
void forward_block(const Pass<T>& pass, const TilePlace<T>& tile, int64_t g0, int64_t g1,
                   int64_t p0, int64_t p1, BlockScratch<T>& scratch) {
  const int64_t count = p1 - p0;
  const Lattice<T>& lattice = *pass.lattice;
  scratch.clear(count);
  auto fill = [&](bool exponent) {
    for (const Chunk& chunk : pass.chunks) {
      T* values = scratch.values + kBlock * chunk.offset;
      if (pass.mode == Mode::kForward) {
        slice_chunk<T, Mode::kForward>(pass, chunk, tile, g0, g1, p0, p1, values,
                                       scratch.partial[0], exponent, nullptr);
        continue;
      }
      const T* logits = pass.logits + lattice.pixels * chunk.offset + p0 * chunk.width();
      with_blocks(chunk.blocks, [&](auto blocks) {
        for (int64_t i = 0; i < count; ++i) {
          auto row = Row<T, blocks.value>::load(logits + i * chunk.width());
          if (exponent) {
            row.exp2();
            row.add_partial(scratch.partial[i]);
          }
          row.store(values + i * chunk.width());
        }
      });
    }
  };
  fill(true);
  scratch.add_up(count);
  // The logits' maximum is 0, so without messages sums lie in [1, L]. Far from that (weights of
  // dozens), take out the maximum.
  bool odd = false;
  for (int64_t i = 0; i < count; ++i) {
    odd |= !(scratch.sum[i] > T(1e-30) && scratch.sum[i] < T(1e30));
  }
  if (odd) {
    fill(false);
    careful_softmax(pass, count, scratch.values, scratch.sum);
  }
  for (int64_t i = 0; i < count; ++i) {
    const T inverse = T(1) / scratch.sum[i];
    scratch.sum[i] = inverse;
    scratch.bilateral[i] = inverse * pass.splat_bilateral;
    scratch.spatial[i] = inverse * pass.splat_spatial;
  }
  if (pass.q_out != nullptr) {
    for (const Chunk& chunk : pass.chunks) {
      const T* values = scratch.values + kBlock * chunk.offset;
      T* q = pass.q_out + lattice.pixels * chunk.offset + p0 * chunk.width();
      with_blocks(chunk.blocks, [&](auto blocks) {
        for (int64_t i = 0; i < count; ++i) {
          auto row = Row<T, blocks.value>::load(values + i * chunk.width());
          row.scale(scratch.sum[i]);
          row.store(q + i * chunk.width());
        }
      });
    }
  }
}

// Gradients block: values = q * (g - <q, g>), added to `grad` too.
template <typename T>
void backward_block(const Pass<T>& pass, const TilePlace<T>& tile, int64_t g0, int64_t g1,
                    int64_t p0, int64_t p1, BlockScratch<T>& scratch, double* weight_grads) {
  const int64_t count = p1 - p0;
  const int64_t pixels = pass.lattice->pixels;
  scratch.clear(count);
  for (const Chunk& chunk : pass.chunks) {
    slice_chunk<T, Mode::kBackward>(pass, chunk, tile, g0, g1, p0, p1,
                                    scratch.values + kBlock * chunk.offset, scratch.partial[0], false,
                                    weight_grads);
  }
  scratch.add_up(count);
  for (const Chunk& chunk : pass.chunks) {
    const int64_t width = chunk.width();
    T* values = scratch.values + kBlock * chunk.offset;
    const T* q = pass.q + pixels * chunk.offset + p0 * width;
    T* grad = pass.grad + pixels * chunk.offset + p0 * width;
    with_blocks(chunk.blocks, [&](auto blocks) {
      using R = Row<T, blocks.value>;
      for (int64_t i = 0; i < count; ++i) {
        R row = R::load(values + i * width);
        row.subtract(scratch.sum[i]);
        row.multiply(R::load(q + i * width));
        row.store(values + i * width);
        row.add(R::load(grad + i * width));
        row.store(grad + i * width);
      }
    });
  }
  for (int64_t i = 0; i < count; ++i) {
    scratch.bilateral[i] = pass.splat_bilateral;
    scratch.spatial[i] = pass.splat_spatial;
  }
}

// One chunk of a tile, [y][x][label], to the (L, H, W) output.
template <typename T>
void write_tile(const Pass<T>& pass, const Chunk& chunk, const TilePlace<T>& tile,
                const T* raster) {
  const Lattice<T>& lattice = *pass.lattice;
  const int64_t width = chunk.width();
  alignas(64) T lines[32 * kTile];  // [label][x]
  for (int64_t y = 0; y < tile.rows; ++y) {
    for (int64_t x = 0; x < tile.columns; ++x) {
      const T* from = raster + (y * kTile + x) * width;
      for (int64_t l = 0; l < chunk.labels; ++l) lines[l * kTile + x] = from[l];
    }
    for (int64_t l = 0; l < chunk.labels; ++l) {
      const int64_t at = (chunk.first + l) * lattice.pixels + (tile.y0 + y) * lattice.width + tile.x0;
      const T* line = lines + l * kTile;
      T* to = pass.output + at;
      if (pass.scores != nullptr) {
        const T* scores = pass.scores + at;
        for (int64_t x = 0; x < tile.columns; ++x) to[x] = scores[x] + line[x] * pass.output_scale;
      } else {
        for (int64_t x = 0; x < tile.columns; ++x) to[x] = line[x] * pass.output_scale;
      }
    }
  }
}

// Calls body(tile index, place) for the band's tiles.
template <typename T, typename F>
void for_tiles(const Pass<T>& pass, int band, F&& body) {
  const Lattice<T>& lattice = *pass.lattice;
  for (int64_t ty = lattice.band_rows[band]; ty < lattice.band_rows[band + 1]; ++ty) {
    for (int64_t tx = 0; tx < lattice.tiles_x; ++tx) {
      const int64_t x0 = tx * kTile, y0 = ty * kTile;
      TilePlace<T> place{x0, y0, std::min<int64_t>(kTile, lattice.width - x0),
                         std::min<int64_t>(kTile, lattice.height - y0), nullptr, nullptr, nullptr};
      if (pass.plan != nullptr) {
        place.tx = pass.plan->x.data() + place.x0;
        place.ty = pass.plan->y.data() + place.y0;
      }
      body(ty * lattice.tiles_x + tx, place);
    }
  }
}

template <typename T>
void pass_band(const Pass<T>& pass, int band) {
  const Lattice<T>& lattice = *pass.lattice;
  const bool spatial = pass.plan != nullptr;
  BlockScratch<T> messages(spatial ? kTile * kTile / kBlock * pass.padded : 8);
  if (pass.mode == Mode::kMessage) {
    BlockScratch<T> raster(kTile * kTile / kBlock * 32);
    BlockScratch<T> scratch(32);
    for_tiles(pass, band, [&](int64_t tile, TilePlace<T> place) {
      if (spatial) {
        place.messages = messages.values;
        for (const Chunk& chunk : pass.chunks) {
          with_blocks(chunk.blocks, [&](auto b) { up_tile<T, b.value>(pass, chunk, place); });
        }
      }
      const int64_t first = lattice.tile_groups[tile], last = lattice.tile_groups[tile + 1];
      for (const Chunk& chunk : pass.chunks) {
        for (int64_t g = first; g < last; ++g) {
          const int64_t p0 = lattice.groups[g].begin, p1 = lattice.groups[g + 1].begin;
          slice_chunk<T, Mode::kMessage>(pass, chunk, place, g, g + 1, p0, p1, scratch.values,
                                         nullptr, false, nullptr);
          for (int64_t p = p0; p < p1; ++p) {
            std::memcpy(raster.values + lattice.records[p].code * chunk.width(),
                        scratch.values + (p - p0) * chunk.width(), chunk.width() * sizeof(T));
          }
        }
        write_tile(pass, chunk, place, raster.values);
      }
    });
    return;
  }
  BlockScratch<T> scratch(pass.padded);
  double weight_grads[2] = {0, 0};
  for_tiles(pass, band, [&](int64_t tile, TilePlace<T> place) {
    if (spatial) place.messages = messages.values;
    if (spatial && (pass.mode == Mode::kForward || pass.mode == Mode::kBackward)) {
      for (const Chunk& chunk : pass.chunks) {
        with_blocks(chunk.blocks, [&](auto b) { up_tile<T, b.value>(pass, chunk, place); });
      }
    }
    const int64_t last = lattice.tile_groups[tile + 1];
    for (int64_t g0 = lattice.tile_groups[tile]; g0 < last;) {
      const int64_t p0 = lattice.groups[g0].begin;
      int64_t g1 = g0 + 1;
      while (g1 < last && lattice.groups[g1 + 1].begin - p0 <= kBlock) ++g1;
      const int64_t p1 = lattice.groups[g1].begin;
      const T* values = scratch.values;
      int64_t stride = kBlock;
      if (pass.mode == Mode::kBackward) {
        backward_block(pass, place, g0, g1, p0, p1, scratch, weight_grads);
      } else if (pass.mode == Mode::kRaw) {
        for (int64_t i = 0; i < p1 - p0; ++i) {
          scratch.bilateral[i] = pass.splat_bilateral;
          scratch.spatial[i] = pass.splat_spatial;
        }
        values = pass.logits;
        stride = lattice.pixels;
      } else {
        forward_block(pass, place, g0, g1, p0, p1, scratch);
      }
      if (pass.norm_splat) {
        for (int64_t i = 0; i < p1 - p0; ++i) scratch.bilateral[i] *= lattice.records[p0 + i].norm;
      }
      if (pass.sums != nullptr || pass.strips != nullptr) {
        for (const Chunk& chunk : pass.chunks) {
          const T* rows = values + stride * chunk.offset;
          if (pass.mode == Mode::kRaw) rows += p0 * chunk.width();
          splat_chunk(pass, chunk, place, g0, g1, p0, p1, rows, scratch.bilateral,
                      scratch.spatial);
        }
      }
      g0 = g1;
    }
    if (pass.strips != nullptr) {
      for (const Chunk& chunk : pass.chunks) {
        with_blocks(chunk.blocks, [&](auto b) { down_tile<T, b.value>(pass, chunk, place, band); });
      }
    }
  });
  if (pass.weight_grads != nullptr) {
    pass.weight_grads[2 * band] += weight_grads[0];
    pass.weight_grads[2 * band + 1] += weight_grads[1];
  }
}
