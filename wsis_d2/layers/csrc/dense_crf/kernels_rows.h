// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
// Reading and writing images, the lattice's blur and the spatial FIR filter. See pass.h; included by
// kernels_*.cpp only, after kernels_pass.h.

// Labels-first image rows become labels-last pixels by way of one tile row of all labels, which fits
// the first cache.
template <typename T>
bool read_band(const Pass<T>& pass, const T* scores, bool softmax, int band) {
  const Lattice<T>& lattice = *pass.lattice;
  BlockScratch<T> scratch(pass.padded);  // kBlock >= kTile
  T* lines = scratch.values;             // [label][x]
  const int64_t labels = pass.chunks.back().first + pass.chunks.back().labels;
  const T factor = softmax ? T(1.4426950408889634) : T(1);  // log2 e
  const T empty = softmax ? T(-1e30) : T(0);
  int32_t place_of[kTile * kTile];
  bool finite = true;
  for_tiles(pass, band, [&](int64_t tile, const TilePlace<T>& place) {
    const int64_t rows = place.rows, columns = place.columns;
    const int64_t first = lattice.groups[lattice.tile_groups[tile]].begin;
    const int64_t last = lattice.groups[lattice.tile_groups[tile + 1]].begin;
    for (int64_t p = first; p < last; ++p) {
      place_of[lattice.records[p].code] = static_cast<int32_t>(p);
    }
    for (int64_t y = 0; y < rows; ++y) {
      T highest[kTile], odd[kTile] = {};
      for (T& h : highest) h = softmax ? -std::numeric_limits<T>::infinity() : T(0);
      for (int64_t l = 0; l < labels; ++l) {
        const T* from = scores + l * lattice.pixels + (place.y0 + y) * lattice.width + place.x0;
        T* line = lines + l * kTile;
        for (int64_t x = 0; x < columns; ++x) {
          const T value = from[x];
          line[x] = value;
          odd[x] += value - value;  // NaN where the value is not finite
          if (softmax) highest[x] = highest[x] < value ? value : highest[x];
        }
      }
      for (int64_t x = 0; x < columns; ++x) finite &= odd[x] == T(0);
      for (const Chunk& chunk : pass.chunks) {
        T* logits = pass.logits + lattice.pixels * chunk.offset;
        const T* from = lines + chunk.first * kTile;
        const int64_t width = chunk.width();
        for (int64_t x = 0; x < columns; ++x) {
          T* to = logits + place_of[y * kTile + x] * width;
          for (int64_t l = 0; l < chunk.labels; ++l) {
            to[l] = (from[l * kTile + x] - highest[x]) * factor;
          }
          for (int64_t l = chunk.labels; l < width; ++l) to[l] = empty;
        }
      }
    }
  });
  return finite;
}

template <typename T>
void write_band(const Pass<T>& pass, const T* values, int band) {
  const Lattice<T>& lattice = *pass.lattice;
  BlockScratch<T> raster(kTile * kTile / kBlock * 32);
  for_tiles(pass, band, [&](int64_t tile, const TilePlace<T>& place) {
    const int64_t first = lattice.groups[lattice.tile_groups[tile]].begin;
    const int64_t last = lattice.groups[lattice.tile_groups[tile + 1]].begin;
    for (const Chunk& chunk : pass.chunks) {
      const int64_t width = chunk.width();
      const T* from = values + lattice.pixels * chunk.offset;
      for (int64_t p = first; p < last; ++p) {
        std::memcpy(raster.values + lattice.records[p].code * width, from + p * width,
                    width * sizeof(T));
      }
      write_tile(pass, chunk, place, raster.values);
    }
  });
}

template <typename T>
void reduce_rows(const Lattice<T>& lattice, T* sums, int blocks, int64_t begin, int64_t end) {
  with_blocks(blocks, [&](auto constant) {
    using R = Row<T, constant.value>;
    for (int64_t s = begin; s < end; ++s) {
      T* home = sums + static_cast<int64_t>(lattice.shared_home[s]) * R::kWidth;
      R total = R::load(home);
      for (int64_t e = lattice.shared_begin[s]; e < lattice.shared_begin[s + 1]; ++e) {
        total.add(R::load(sums + (lattice.vertices + e) * R::kWidth));
      }
      total.store(home);
    }
  });
}

// new[v] = old[v] + (old[before] + old[after]) / 2 along each run.
template <typename T>
void blur_rows(const Lattice<T>& lattice, T* sums, int blocks, int axis, int64_t begin,
               int64_t end) {
  constexpr int64_t kAhead = 12;
  const int32_t* chain = lattice.chains[axis];
  const int64_t size = lattice.chain_sizes[axis];
  // A run belongs to whoever owns its first element.
  while (begin > 0 && begin < size && chain[begin - 1] >= 0) ++begin;
  while (end > 0 && end < size && chain[end - 1] >= 0) ++end;
  with_blocks(blocks, [&](auto constant) {
    using R = Row<T, constant.value>;
    int64_t i = begin;
    while (i < end) {
      int32_t id = chain[i];  // runs hold two vertices or more
      T* place = sums + static_cast<int64_t>(id) * R::kWidth;
      R before = R::zero(), here = R::load(place);
      bool last = false;
      while (!last) {
        const int32_t code = chain[++i];
        last = code < 0;
        id = last ? ~code : code;
        if (i + kAhead < end) {
          const int32_t ahead = chain[i + kAhead];
          prefetch_row<T, constant.value>(
              sums + static_cast<int64_t>(ahead < 0 ? ~ahead : ahead) * R::kWidth);
        }
        T* next_place = sums + static_cast<int64_t>(id) * R::kWidth;
        const R next = R::load(next_place);
        R fresh = here;
        before.add(next);
        fresh.fma(before, T(0.5));
        fresh.store(place);
        before = here;
        here = next;
        place = next_place;
      }
      here.fma(before, T(0.5));
      here.store(place);
      ++i;
    }
  });
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
    // scratch: one padded row, then the ring
    T* padded = scratch;
    T* rows = scratch + (cells + 2 * radius) * kWidth;
    std::memset(padded, 0, (cells + 2 * radius) * kWidth * sizeof(T));
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
    for (int64_t y = begin; y < end; ++y) {
      if (y + radius < plan.grid_y) along_x(y + radius);
      const int64_t low = std::max<int64_t>(-radius, -y);
      const int64_t high = std::min(radius, plan.grid_y - 1 - y);
      T* to = grid + y * cells * kWidth;
      for (int64_t x = 0; x < cells; ++x) {
        R sum = R::zero();
        for (int64_t k = low; k <= high; ++k) {
          sum.fma(R::load(rows + ((y + k) % ring * cells + x) * kWidth), kernel[k < 0 ? -k : k]);
        }
        sum.store(to + x * kWidth);
      }
    }
  });
}

template <typename T>
Kernels<T> make_kernels(const char* name) {
  return {pass_band<T>, read_band<T>, write_band<T>, reduce_rows<T>,
          blur_rows<T>, fir_rows<T>,  name};
}
