// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
// Tiles and what is common to the kernels; reading and writing (L, H, W) images. See pass.h; included
// by kernels_*.cpp only, after kernels_simd.h.

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

// Scratch of one thread for a block of at most kBlock pixels (all chunks).
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
  int64_t tile, x0, y0, columns, rows;
  const Tap<T>* tx;  // of the tile's first column and row
  const Tap<T>* ty;
  T* raster;         // [chunk][y][x][label]: what down_tile takes; nullptr: nothing
};

template <typename T, int BLOCKS>
WSIS_INLINE void prefetch_row(const T* row) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < 8 * BLOCKS; i += kLine) __builtin_prefetch(row + i, 1);
}

// Calls body(place) for the band's tiles.
template <typename T, typename F>
void for_tiles(const Pass<T>& pass, int band, F&& body) {
  const Lattice<T>& lattice = *pass.lattice;
  for (int64_t ty = lattice.band_rows[band]; ty < lattice.band_rows[band + 1]; ++ty) {
    for (int64_t tx = 0; tx < lattice.tiles_x; ++tx) {
      const int64_t x0 = tx * kTile, y0 = ty * kTile;
      TilePlace<T> place{ty * lattice.tiles_x + tx,
                         x0,
                         y0,
                         std::min<int64_t>(kTile, lattice.width - x0),
                         std::min<int64_t>(kTile, lattice.height - y0),
                         nullptr,
                         nullptr,
                         nullptr};
      if (pass.plan != nullptr) {
        place.tx = pass.plan->x.data() + place.x0;
        place.ty = pass.plan->y.data() + place.y0;
      }
      body(place);
    }
  }
}

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
  for_tiles(pass, band, [&](const TilePlace<T>& place) {
    const int64_t rows = place.rows, columns = place.columns;
    const int64_t first = lattice.groups[lattice.tile_groups[place.tile]].begin;
    const int64_t last = lattice.groups[lattice.tile_groups[place.tile + 1]].begin;
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
        for (int64_t x = 0; x < columns; x += 8) {
          const int64_t here = std::min<int64_t>(8, columns - x);
          for (int b = 0; b < chunk.blocks; ++b) {
            alignas(64) T pixel[8][8];  // [x][label]
            transpose(from + 8 * b * kTile + x, kTile, pixel);
            for (int64_t i = 0; i < here; ++i) {
              T* to = logits + place_of[y * kTile + x + i] * width + 8 * b;
              const T top = highest[x + i];
              for (int l = 0; l < 8; ++l) to[l] = (pixel[i][l] - top) * factor;
            }
          }
          for (int64_t i = 0; i < here && chunk.labels < width; ++i) {
            T* to = logits + place_of[y * kTile + x + i] * width;
            for (int64_t l = chunk.labels; l < width; ++l) to[l] = empty;
          }
        }
      }
    }
  });
  return finite;
}

// One chunk of a tile, [y][x][label], to the (L, H, W) output.
template <typename T>
void write_tile(const Pass<T>& pass, const Chunk& chunk, const TilePlace<T>& tile,
                const T* raster) {
  const Lattice<T>& lattice = *pass.lattice;
  const int64_t width = chunk.width();
  alignas(64) T lines[32 * kTile];  // [label][x]
  for (int64_t y = 0; y < tile.rows; ++y) {
    for (int64_t x = 0; x < tile.columns; x += 8) {
      for (int b = 0; b < chunk.blocks; ++b) {
        alignas(64) T label[8][8];  // [label][x]
        transpose(raster + (y * kTile + x) * width + 8 * b, width, label);
        for (int i = 0; i < 8; ++i) {
          std::memcpy(lines + (8 * b + i) * kTile + x, label[i], sizeof(label[i]));
        }
      }
    }
    for (int64_t l = 0; l < chunk.labels; ++l) {
      const int64_t at = (chunk.first + l) * lattice.pixels +
                         (tile.y0 + y) * lattice.width + tile.x0;
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

template <typename T>
void write_band(const Pass<T>& pass, const T* values, int band) {
  const Lattice<T>& lattice = *pass.lattice;
  BlockScratch<T> raster(kTile * kTile / kBlock * 32);
  for_tiles(pass, band, [&](const TilePlace<T>& place) {
    const int64_t first = lattice.groups[lattice.tile_groups[place.tile]].begin;
    const int64_t last = lattice.groups[lattice.tile_groups[place.tile + 1]].begin;
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

