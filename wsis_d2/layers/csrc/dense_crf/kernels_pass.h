// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
// One pass over a band of pixels: slice, softmax (or its backward), splat. See pass.h; included by
// kernels_*.cpp only, after kernels_spatial.h.

// How far ahead memory is fetched: groups, whose rows lie anywhere in the lattice, and pixels, whose
// logits (or marginals) are read in blocks too short for the processor to see that they follow.
constexpr int64_t kGroupsAhead = 8;
constexpr int64_t kPixelsAhead = 24;

// Blocks of 8 labels whose six vertex sums fit the registers together.
template <typename T>
constexpr int kPieceBlocks = WSIS_CRF_BYTES / 4 / sizeof(T) > 0 ? WSIS_CRF_BYTES / 4 / sizeof(T) : 1;

// Messages of the pixels of groups [g0, g1), one chunk, then by mode:
// kForward: + logits -> out; kMessage: -> out at the pixel's place in the tile; kBackward: see
// backward_block. Pixel p0 is the first.
template <typename T, int BLOCKS, Mode MODE, bool BILATERAL>
void slice_block(const Pass<T>& pass, const Chunk& chunk, const TilePlace<T>& tile, int64_t g0,
                 int64_t g1, int64_t p0, T* out, T* partial, double* weight_grads) {
  using R = Row<T, BLOCKS>;
  constexpr int kWidth = R::kWidth;
  constexpr bool kCopied = BLOCKS <= kPieceBlocks<T>;  // the corners stay in registers
  const Lattice<T>& lattice = *pass.lattice;
  const T* vertices = BILATERAL ? pass.values + lattice.rows() * chunk.offset : nullptr;
  const bool spatial = pass.plan != nullptr;
  NearCells<T, BLOCKS> near{};
  if (spatial) {
    const SpatialPlan<T>& plan = *pass.plan;
    near = {pass.grid + plan.grid_x * plan.grid_y * chunk.offset, plan.grid_x * kWidth, tile.tx,
            tile.ty, plan.stride > 1};
  }
  // Logits or marginals.
  const T* pixels = MODE == Mode::kBackward ? pass.q : pass.logits;
  if constexpr (MODE != Mode::kMessage) pixels += lattice.pixels * chunk.offset;
  R grad_bilateral = R::zero(), grad_spatial = R::zero();
  for (int64_t g = g0; g < g1; ++g) {
    const Group& group = lattice.groups[g];
    const T* corner[kVertices];
    R copy[kCopied ? kVertices : 1];
    if constexpr (BILATERAL) {
      const Group& ahead = lattice.groups[std::min(g + kGroupsAhead, lattice.groups_count)];
      for (int i = 0; i < kVertices; ++i) {
        prefetch_row<T, BLOCKS>(vertices + static_cast<int64_t>(ahead.slice[i]) * kWidth);
      }
      for (int i = 0; i < kVertices; ++i) {
        corner[i] = vertices + static_cast<int64_t>(group.slice[i]) * kWidth;
        if constexpr (kCopied) copy[i] = R::load(corner[i]);
      }
    }
    const int64_t end = lattice.groups[g + 1].begin;
    for (int64_t p = group.begin; p < end; ++p) {
      const Record<T>& record = lattice.records[p];
      if constexpr (MODE != Mode::kMessage) {
        const int64_t ahead = std::min(p + kPixelsAhead, lattice.pixels - 1);
        prefetch_row<T, BLOCKS>(pixels + ahead * kWidth);
      }
      R message = R::zero();
      if constexpr (BILATERAL) {
        for (int i = 0; i < kVertices; ++i) {
          if constexpr (kCopied) {
            message.fma(copy[i], record.w[i]);
          } else {
            message.fma(R::load(corner[i]), record.w[i]);
          }
        }
        if (pass.norm_slice) message.scale(record.norm);
      }
      if constexpr (MODE == Mode::kBackward) {
        const R marginal = R::load(pixels + p * kWidth);
        R product = message;
        product.multiply(marginal);
        grad_bilateral.add(product);
        message.scale(pass.weight_bilateral);
        if (spatial) {
          const R from = near.read(record.code);
          product = from;
          product.multiply(marginal);
          grad_spatial.add(product);
          message.fma(from, pass.weight_spatial);
        }
        product = message;
        product.multiply(marginal);
        product.add_partial(partial + (p - p0) * 8);
      } else {
        // Two sums side by side: one would wait for itself.
        R other = spatial ? near.read(record.code) : R::zero();
        if constexpr (MODE == Mode::kForward) other.add(R::load(pixels + p * kWidth));
        message.add(other);
      }
      message.store(out + (MODE == Mode::kMessage ? record.code : p - p0) * kWidth);
    }
  }
  if constexpr (MODE == Mode::kBackward) {
    weight_grads[0] += static_cast<double>(grad_bilateral.sum());
    weight_grads[1] += static_cast<double>(grad_spatial.sum());
  }
}

// Add a group's values * factors to its vertices; blocks FIRST and on of the chunk's.
template <typename T, int BLOCKS, int FIRST>
WSIS_INLINE void splat_group(const Lattice<T>& lattice, const Group& group, int64_t end, int64_t p0,
                             T* vertices, const T* values, const T* factors) {
  constexpr int kHere = BLOCKS - FIRST < kPieceBlocks<T> ? BLOCKS - FIRST : kPieceBlocks<T>;
  constexpr int kWidth = 8 * BLOCKS, kOffset = 8 * FIRST;
  using R = Row<T, kHere>;
  R corner[kVertices];
  for (int i = 0; i < kVertices; ++i) {
    corner[i] = R::load(vertices + static_cast<int64_t>(group.splat[i]) * kWidth + kOffset);
  }
  for (int64_t p = group.begin; p < end; ++p) {
    R value = R::load(values + (p - p0) * kWidth + kOffset);
    value.scale(factors[p - p0]);
    for (int i = 0; i < kVertices; ++i) corner[i].fma(value, lattice.records[p].w[i]);
  }
  for (int i = 0; i < kVertices; ++i) {
    corner[i].store(vertices + static_cast<int64_t>(group.splat[i]) * kWidth + kOffset);
  }
  if constexpr (FIRST + kHere < BLOCKS) {
    splat_group<T, BLOCKS, FIRST + kHere>(lattice, group, end, p0, vertices, values, factors);
  }
}

// Add values * factors to the vertices, and lay them out for down_tile; one chunk.
template <typename T, int BLOCKS, bool BILATERAL>
void splat_block(const Pass<T>& pass, const Chunk& chunk, const TilePlace<T>& tile, int64_t g0,
                 int64_t g1, int64_t p0, int64_t p1, const T* values, const T* bilateral,
                 const T* spatial) {
  using R = Row<T, BLOCKS>;
  constexpr int kWidth = R::kWidth;
  const Lattice<T>& lattice = *pass.lattice;
  if constexpr (BILATERAL) {
    T* vertices = pass.sums + lattice.rows() * chunk.offset;
    for (int64_t g = g0; g < g1; ++g) {
      const Group& ahead = lattice.groups[std::min(g + kGroupsAhead, lattice.groups_count)];
      for (int i = 0; i < kVertices; ++i) {
        prefetch_row<T, BLOCKS>(vertices + static_cast<int64_t>(ahead.splat[i]) * kWidth);
      }
      splat_group<T, BLOCKS, 0>(lattice, lattice.groups[g], lattice.groups[g + 1].begin, p0,
                                vertices, values, bilateral);
    }
  }
  if (tile.raster == nullptr) return;
  T* raster = tile.raster + kTile * kTile * chunk.offset;
  for (int64_t p = p0; p < p1; ++p) {
    R value = R::load(values + (p - p0) * kWidth);
    value.scale(spatial[p - p0]);
    value.store(raster + lattice.records[p].code * kWidth);
  }
}

template <typename T, Mode MODE>
void slice_chunk(const Pass<T>& pass, const Chunk& chunk, const TilePlace<T>& tile, int64_t g0,
                 int64_t g1, int64_t p0, T* out, T* partial, double* weight_grads) {
  with_blocks(chunk.blocks, [&](auto blocks) {
    auto call = pass.bilateral ? slice_block<T, blocks.value, MODE, true>
                               : slice_block<T, blocks.value, MODE, false>;
    call(pass, chunk, tile, g0, g1, p0, out, partial, weight_grads);
  });
}

template <typename T>
void splat_chunk(const Pass<T>& pass, const Chunk& chunk, const TilePlace<T>& tile, int64_t g0,
                 int64_t g1, int64_t p0, int64_t p1, const T* values, const T* bilateral,
                 const T* spatial) {
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

// Softmax of block [p0, p1): values become 2^logit, un-normalised; the factors of splatting hold the
// inverse sums.
template <typename T>
void forward_block(const Pass<T>& pass, const TilePlace<T>& tile, int64_t g0, int64_t g1,
                   int64_t p0, int64_t p1, BlockScratch<T>& scratch) {
  const int64_t count = p1 - p0;
  const Lattice<T>& lattice = *pass.lattice;
  // The chunk's base-2 logits: as read, or with the messages.
  auto logits_of = [&](const Chunk& chunk) -> const T* {
    if (pass.mode == Mode::kFirst) {
      return pass.logits + lattice.pixels * chunk.offset + p0 * chunk.width();
    }
    T* values = scratch.values + kBlock * chunk.offset;
    slice_chunk<T, Mode::kForward>(pass, chunk, tile, g0, g1, p0, values, nullptr, nullptr);
    return values;
  };
  scratch.clear(count);
  for (const Chunk& chunk : pass.chunks) {
    const T* logits = logits_of(chunk);
    T* values = scratch.values + kBlock * chunk.offset;
    with_blocks(chunk.blocks, [&](auto blocks) {
      for (int64_t i = 0; i < count; ++i) {
        auto row = Row<T, blocks.value>::load(logits + i * chunk.width());
        row.exp2();
        row.add_partial(scratch.partial[i]);
        row.store(values + i * chunk.width());
      }
    });
  }
  scratch.add_up(count);
  // The logits' maximum is 0, so without messages sums lie in [1, L]. Far from that (weights of
  // dozens), take out the maximum.
  bool odd = false;
  for (int64_t i = 0; i < count; ++i) {
    odd |= !(scratch.sum[i] > T(1e-30) && scratch.sum[i] < T(1e30));
  }
  if (odd) {
    for (const Chunk& chunk : pass.chunks) {
      T* values = scratch.values + kBlock * chunk.offset;
      const T* logits = logits_of(chunk);
      if (logits != values) std::memcpy(values, logits, count * chunk.width() * sizeof(T));
    }
    careful_softmax(pass, count, scratch.values, scratch.sum);
  }
  for (int64_t i = 0; i < count; ++i) {
    const T inverse = T(1) / scratch.sum[i];
    scratch.sum[i] = inverse;
    scratch.bilateral[i] = inverse * pass.splat_bilateral;
    scratch.spatial[i] = inverse * pass.splat_spatial;
  }
  if (pass.q_out == nullptr) return;
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

// Gradients of block [p0, p1): values = q * (g - <q, g>), added to `grad` too.
template <typename T>
void backward_block(const Pass<T>& pass, const TilePlace<T>& tile, int64_t g0, int64_t g1,
                    int64_t p0, int64_t p1, BlockScratch<T>& scratch, double* weight_grads) {
  const int64_t count = p1 - p0;
  const int64_t pixels = pass.lattice->pixels;
  scratch.clear(count);
  for (const Chunk& chunk : pass.chunks) {
    slice_chunk<T, Mode::kBackward>(pass, chunk, tile, g0, g1, p0,
                                    scratch.values + kBlock * chunk.offset, scratch.partial[0],
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

// kMessage: one band's messages to the (L, H, W) output.
template <typename T>
void message_band(const Pass<T>& pass, int band) {
  const Lattice<T>& lattice = *pass.lattice;
  BlockScratch<T> raster(kTile * kTile / kBlock * 32);
  for_tiles(pass, band, [&](const TilePlace<T>& place) {
    const int64_t first = lattice.tile_groups[place.tile];
    const int64_t last = lattice.tile_groups[place.tile + 1];
    for (const Chunk& chunk : pass.chunks) {
      slice_chunk<T, Mode::kMessage>(pass, chunk, place, first, last, lattice.groups[first].begin,
                                     raster.values, nullptr, nullptr);
      write_tile(pass, chunk, place, raster.values);
    }
  });
}

template <typename T>
void pass_band(const Pass<T>& pass, int band) {
  if (pass.mode == Mode::kMessage) {
    message_band(pass, band);
    return;
  }
  const Lattice<T>& lattice = *pass.lattice;
  BlockScratch<T> raster(pass.strips != nullptr ? kTile * kTile / kBlock * pass.padded : 8);
  BlockScratch<T> scratch(pass.padded);
  double weight_grads[2] = {0, 0};
  for_tiles(pass, band, [&](TilePlace<T> place) {
    if (pass.strips != nullptr) place.raster = raster.values;
    const int64_t last = lattice.tile_groups[place.tile + 1];
    for (int64_t g0 = lattice.tile_groups[place.tile]; g0 < last;) {
      const int64_t p0 = lattice.groups[g0].begin;
      int64_t g1 = g0 + 1;
      while (g1 < last && lattice.groups[g1 + 1].begin - p0 <= kBlock) ++g1;
      const int64_t p1 = lattice.groups[g1].begin;
      if (pass.mode == Mode::kBackward) {
        backward_block(pass, place, g0, g1, p0, p1, scratch, weight_grads);
      } else if (pass.mode == Mode::kRaw) {
        std::fill_n(scratch.bilateral, p1 - p0, pass.splat_bilateral);
        std::fill_n(scratch.spatial, p1 - p0, pass.splat_spatial);
      } else {
        forward_block(pass, place, g0, g1, p0, p1, scratch);
      }
      if (pass.norm_splat) {
        for (int64_t i = 0; i < p1 - p0; ++i) scratch.bilateral[i] *= lattice.records[p0 + i].norm;
      }
      if (pass.sums != nullptr || pass.strips != nullptr) {
        for (const Chunk& chunk : pass.chunks) {
          const T* values =
              pass.mode == Mode::kRaw
                  ? pass.logits + lattice.pixels * chunk.offset + p0 * chunk.width()
                  : scratch.values + kBlock * chunk.offset;
          splat_chunk(pass, chunk, place, g0, g1, p0, p1, values, scratch.bilateral,
                      scratch.spatial);
        }
      }
      g0 = g1;
    }
    if (pass.strips == nullptr) return;
    for (const Chunk& chunk : pass.chunks) {
      with_blocks(chunk.blocks, [&](auto b) { down_tile<T, b.value>(pass, chunk, place, band); });
    }
  });
  if (pass.weight_grads != nullptr) {
    pass.weight_grads[2 * band] += weight_grads[0];
    pass.weight_grads[2 * band + 1] += weight_grads[1];
  }
}

template <typename T>
Kernels<T> make_kernels(const char* name) {
  return {pass_band<T>, read_band<T>, write_band<T>,     reduce_rows<T>,
          blur_rows<T>, fir_rows<T>,  find_simplices<T>, name};
}
