// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
// One pass over a band of pixels: slice, softmax (or its backward), splat. See pass.h; included by
// kernels_*.cpp only, after kernels_simd.h.

// Scratch of one thread for a block of at most kBlock pixels (all chunks) or for a tile.
template <typename T>
struct BlockScratch {
  T* values;             // [padded / 8 chunks][kBlock][width]
  T sum[kBlock];         // softmax's denominator, or <q, gradient>
  T bilateral[kBlock];   // factors of splatting
  T spatial[kBlock];
  explicit BlockScratch(int64_t padded)
      : values(static_cast<T*>(std::aligned_alloc(64, padded * kBlock * sizeof(T)))) {
    if (values == nullptr) throw std::bad_alloc();
  }
  ~BlockScratch() { std::free(values); }
  BlockScratch(const BlockScratch&) = delete;
  BlockScratch& operator=(const BlockScratch&) = delete;
};

// Where one tile's pixels are, on the image and on the grid.
template <typename T>
struct TilePlace {
  int64_t x0, y0;
  const Tap<T>* tx;
  const Tap<T>* ty;
};

// Messages of pixels [p0, groups[g1].begin) in `groups` [g0, g1), one chunk, then by mode:
// kForward: 2^(logit + message) -> values, sums; kMessage: values; kBackward: see pass_band.
template <typename T, int BLOCKS, Mode MODE, bool BILATERAL, bool FINE>
void slice_block(const Pass<T>& pass, const Chunk& chunk, const TilePlace<T>& tile, int64_t g0,
                 int64_t g1, int64_t p0, int64_t p1, T* values, T* sum, bool exponent,
                 double* weight_grads) {
  using R = Row<T, BLOCKS>;
  constexpr int kWidth = R::kWidth;
  const Lattice<T>& lattice = *pass.lattice;
  const T* vertices = BILATERAL ? pass.values + lattice.rows() * chunk.offset : nullptr;
  const bool spatial = pass.plan != nullptr;
  const int64_t grid_x = spatial ? pass.plan->grid_x : 0;
  const T* grid = spatial ? pass.grid + grid_x * pass.plan->grid_y * chunk.offset : nullptr;
  const T* logits =
      MODE == Mode::kForward ? pass.logits + lattice.pixels * chunk.offset : nullptr;
  const T* q = MODE == Mode::kBackward ? pass.q + lattice.pixels * chunk.offset : nullptr;
  R grad_bilateral = R::zero(), grad_spatial = R::zero();
  for (int64_t g = g0; g < g1; ++g) {
    const Group& group = lattice.groups[g];
    R corner[kVertices];
    if constexpr (BILATERAL) {
      for (int i = 0; i < kVertices; ++i) {
        corner[i] = R::load(vertices + static_cast<int64_t>(group.slice[i]) * kWidth);
      }
    }
    const int64_t begin = std::max<int64_t>(group.begin, p0);
    const int64_t end = std::min<int64_t>(lattice.groups[g + 1].begin, p1);
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
      if (spatial) {
        const Tap<T>& x = tile.tx[record.code & (kTile - 1)];
        const Tap<T>& y = tile.ty[record.code / kTile];
        const T* cell = grid + (y.index * grid_x + x.index) * kWidth;
        R near = message;
        if constexpr (MODE == Mode::kBackward) near = R::zero();
        near.fma(R::load(cell), y.read0 * x.read0);
        if constexpr (!FINE) {
          near.fma(R::load(cell + kWidth), y.read0 * x.read1);
          const T* below = cell + grid_x * kWidth;
          near.fma(R::load(below), y.read1 * x.read0);
          near.fma(R::load(below + kWidth), y.read1 * x.read1);
        }
        if constexpr (MODE == Mode::kBackward) {
          R product = near;
          product.multiply(R::load(q + p * kWidth));
          grad_spatial.add(product);
          message.fma(near, pass.weight_spatial);
        } else {
          message = near;
        }
      }
      if constexpr (MODE == Mode::kForward) {
        message.add(R::load(logits + p * kWidth));
        if (exponent) {
          message.exp2();
          sum[p - p0] += message.sum();
        }
      }
      if constexpr (MODE == Mode::kBackward) {
        R product = message;
        product.multiply(R::load(q + p * kWidth));
        sum[p - p0] += product.sum();
      }
      message.store(values + (p - p0) * kWidth);
    }
  }
  if constexpr (MODE == Mode::kBackward) {
    weight_grads[0] += static_cast<double>(grad_bilateral.sum());
    weight_grads[1] += static_cast<double>(grad_spatial.sum());
  }
}

// Add values * factors to the vertices and to the band's strip, one chunk.
template <typename T, int BLOCKS, bool BILATERAL, bool FINE>
void splat_block(const Pass<T>& pass, const Chunk& chunk, const TilePlace<T>& tile, int band,
                 int64_t g0, int64_t g1, int64_t p0, int64_t p1, const T* values,
                 const T* bilateral, const T* spatial) {
  using R = Row<T, BLOCKS>;
  constexpr int kWidth = R::kWidth;
  const Lattice<T>& lattice = *pass.lattice;
  T* vertices = BILATERAL ? pass.sums + lattice.rows() * chunk.offset : nullptr;
  const int64_t grid_x = pass.plan ? pass.plan->grid_x : 0;
  T* strip = nullptr;
  if (pass.plan) {
    const SpatialPlan<T>& plan = *pass.plan;
    strip = pass.strips + plan.strip_total * grid_x * chunk.offset +
            (plan.strip_begin[band] - plan.strip_row[band]) * grid_x * kWidth;
  }
  for (int64_t g = g0; g < g1; ++g) {
    const Group& group = lattice.groups[g];
    const int64_t begin = std::max<int64_t>(group.begin, p0);
    const int64_t end = std::min<int64_t>(lattice.groups[g + 1].begin, p1);
    if constexpr (BILATERAL) {
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
    if (strip != nullptr) {
      for (int64_t p = begin; p < end; ++p) {
        const int32_t code = lattice.records[p].code;
        const Tap<T>& x = tile.tx[code & (kTile - 1)];
        const Tap<T>& y = tile.ty[code / kTile];
        const R value = R::load(values + (p - p0) * kWidth);
        T* cell = strip + (y.index * grid_x + x.index) * kWidth;
        const T upper = y.write0 * spatial[p - p0];
        if constexpr (FINE) {
          R sum = R::zero();
          sum.fma(value, upper * x.write0);
          sum.store(cell);  // a cell a pixel
        } else {
          const T lower = y.write1 * spatial[p - p0];
          T* below = cell + grid_x * kWidth;
          R a = R::load(cell), b = R::load(cell + kWidth);
          R c = R::load(below), d = R::load(below + kWidth);
          a.fma(value, upper * x.write0);
          b.fma(value, upper * x.write1);
          c.fma(value, lower * x.write0);
          d.fma(value, lower * x.write1);
          a.store(cell);
          b.store(cell + kWidth);
          c.store(below);
          d.store(below + kWidth);
        }
      }
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
  const bool fine = pass.plan == nullptr || pass.plan->stride == 1;
  with_blocks(chunk.blocks, [&](auto blocks) {
    auto call = pass.bilateral
                    ? (fine ? slice_block<T, blocks.value, MODE, true, true>
                            : slice_block<T, blocks.value, MODE, true, false>)
                    : (fine ? slice_block<T, blocks.value, MODE, false, true>
                            : slice_block<T, blocks.value, MODE, false, false>);
    call(pass, chunk, tile, g0, g1, p0, p1, values, sum, exponent, weight_grads);
  });
}

template <typename T>
void splat_chunk(const Pass<T>& pass, const Chunk& chunk, const TilePlace<T>& tile, int band,
                 int64_t g0, int64_t g1, int64_t p0, int64_t p1, const T* values,
                 const T* bilateral, const T* spatial) {
  const bool fine = pass.plan == nullptr || pass.plan->stride == 1;
  with_blocks(chunk.blocks, [&](auto blocks) {
    auto call = pass.bilateral ? (fine ? splat_block<T, blocks.value, true, true>
                                       : splat_block<T, blocks.value, true, false>)
                               : (fine ? splat_block<T, blocks.value, false, true>
                                       : splat_block<T, blocks.value, false, false>);
    call(pass, chunk, tile, band, g0, g1, p0, p1, values, bilateral, spatial);
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
  for (int64_t i = 0; i < count; ++i) scratch.sum[i] = 0;
  auto fill = [&](bool exponent) {
    for (const Chunk& chunk : pass.chunks) {
      T* values = scratch.values + kBlock * chunk.offset;
      if (pass.mode == Mode::kForward) {
        slice_chunk<T, Mode::kForward>(pass, chunk, tile, g0, g1, p0, p1, values, scratch.sum,
                                       exponent, nullptr);
        continue;
      }
      const T* logits = pass.logits + lattice.pixels * chunk.offset + p0 * chunk.width();
      with_blocks(chunk.blocks, [&](auto blocks) {
        for (int64_t i = 0; i < count; ++i) {
          auto row = Row<T, blocks.value>::load(logits + i * chunk.width());
          if (exponent) {
            row.exp2();
            scratch.sum[i] += row.sum();
          }
          row.store(values + i * chunk.width());
        }
      });
    }
  };
  fill(true);
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
  for (int64_t i = 0; i < count; ++i) scratch.sum[i] = 0;
  for (const Chunk& chunk : pass.chunks) {
    slice_chunk<T, Mode::kBackward>(pass, chunk, tile, g0, g1, p0, p1,
                                    scratch.values + kBlock * chunk.offset, scratch.sum, false,
                                    weight_grads);
  }
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

// Copy `block` rows of one chunk between record order and label-major image tile.
template <typename T>
void write_tile(const Pass<T>& pass, const Chunk& chunk, int64_t x0, int64_t y0, const T* raster) {
  const Lattice<T>& lattice = *pass.lattice;
  const int64_t rows = std::min<int64_t>(kTile, lattice.height - y0);
  const int64_t columns = std::min<int64_t>(kTile, lattice.width - x0);
  const int64_t width = chunk.width();
  for (int64_t l = 0; l < chunk.labels; ++l) {
    for (int64_t y = 0; y < rows; ++y) {
      const int64_t at = (chunk.first + l) * lattice.pixels + (y0 + y) * lattice.width + x0;
      const T* from = raster + y * kTile * width + l;
      T* to = pass.output + at;
      if (pass.scores != nullptr) {
        const T* scores = pass.scores + at;
        for (int64_t x = 0; x < columns; ++x) {
          to[x] = scores[x] + from[x * width] * pass.output_scale;
        }
      } else {
        for (int64_t x = 0; x < columns; ++x) to[x] = from[x * width] * pass.output_scale;
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
      TilePlace<T> place{tx * kTile, ty * kTile, nullptr, nullptr};
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
  if (pass.mode == Mode::kMessage) {
    BlockScratch<T> raster(kTile * kTile / kBlock * 32);
    BlockScratch<T> scratch(32);
    for_tiles(pass, band, [&](int64_t tile, const TilePlace<T>& place) {
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
        write_tile(pass, chunk, place.x0, place.y0, raster.values);
      }
    });
    return;
  }
  BlockScratch<T> scratch(pass.padded);
  double weight_grads[2] = {0, 0};
  for_tiles(pass, band, [&](int64_t tile, const TilePlace<T>& place) {
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
          splat_chunk(pass, chunk, place, band, g0, g1, p0, p1, rows, scratch.bilateral,
                      scratch.spatial);
        }
      }
      g0 = g1;
    }
  });
  if (pass.weight_grads != nullptr) {
    pass.weight_grads[2 * band] += weight_grads[0];
    pass.weight_grads[2 * band + 1] += weight_grads[1];
  }
}
