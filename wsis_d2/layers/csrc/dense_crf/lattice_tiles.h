// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
// Pixels of one tile, grouped by their simplex. The CPU's lattice is built from such groups.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "dense_crf/key_table.h"
#include "dense_crf/pass.h"
#include "dense_crf/simplex.h"

namespace wsis_d2 {
namespace crf {

struct LocalGroup {
  int32_t begin;
  int32_t vertex[kVertices];  // ids of the band
};

// What one band finds on its own.
struct Band {
  KeyTable table{4096};
  std::vector<LocalGroup> groups;
  std::vector<int32_t> tile_groups;  // first group of each tile, counted within the band
  std::vector<int32_t> home, row;    // by vertex of the band: where to read, where to add
};

// Distinct simplices of one tile.
class TileTable {
 public:
  void clear() {
    ++stamp_;
    count = 0;
  }
  int32_t insert(uint64_t key, uint32_t order) {
    size_t at = ((key ^ (uint64_t(order) << 40)) * 0x9E3779B97F4A7C15ull) >> 53;
    while (slots_[at].stamp == stamp_) {
      if (slots_[at].key == key && slots_[at].order == order) return slots_[at].id;
      at = (at + 1) & 2047;
    }
    slots_[at] = {key, order, count, stamp_};
    keys[count] = key;
    orders[count] = order;
    return count++;
  }
  int32_t count = 0;
  uint64_t keys[kTile * kTile];
  uint32_t orders[kTile * kTile];

 private:
  struct Slot {
    uint64_t key;
    uint32_t order;
    int32_t id;
    uint32_t stamp;
  };
  Slot slots_[2048] = {};
  uint32_t stamp_ = 0;
};

// The image as the lattice sees it.
template <typename T>
struct Features {
  const T* image;  // (3, H, W)
  int64_t height, width;
  KeyLayout layout;
  T inverse_xy, inverse_rgb;
  T scale[kFeatures];

  Features(const T* image_in, int64_t height_in, int64_t width_in, const KeyLayout& layout_in,
           double sigma_xy, double sigma_rgb)
      : image(image_in),
        height(height_in),
        width(width_in),
        layout(layout_in),
        inverse_xy(static_cast<T>(1.0 / sigma_xy)),
        inverse_rgb(static_cast<T>(1.0 / sigma_rgb)) {
    double scales[kFeatures];
    embedding_scales(scales);
    for (int i = 0; i < kFeatures; ++i) scale[i] = static_cast<T>(scales[i]);
  }
};

// Works on one tile after another; one a thread.
template <typename T>
class TileBuilder {
 public:
  TileBuilder(const Features<T>& features, Record<T>* records)
      : features_(features), records_(records) {}

  // Add the tile's groups to the band, and write its records from `begin` on.
  void build(int64_t tx, int64_t ty, int64_t begin, Band& band) {
    find_simplices(tx * kTile, ty * kTile);
    sort_by_size();
    number_vertices(band);
    write_groups(begin, band);
  }

 private:
  static constexpr int kPixels = kTile * kTile;

  // Every pixel's simplex and weights, row by row.
  void find_simplices(int64_t x0, int64_t y0) {
    const int64_t rows = std::min<int64_t>(kTile, features_.height - y0);
    const int64_t columns = std::min<int64_t>(kTile, features_.width - x0);
    const int64_t plane = features_.height * features_.width;
    constexpr int kLanes = kSimplexLanes;
    SimplexBatch<T, kLanes> batch;
    table_.clear();
    pixels_ = 0;
    for (int64_t y = 0; y < rows; ++y) {
      for (int64_t x = 0; x < columns; x += kLanes) {
        const int64_t held = std::min<int64_t>(kLanes, columns - x);
        const T* pixel = features_.image + (y0 + y) * features_.width + x0 + x;
        for (int64_t i = 0; i < kLanes; ++i) {
          const int64_t at = i < held ? i : 0;
          batch.feature[0][i] = static_cast<T>(x0 + x + at) * features_.inverse_xy;
          batch.feature[1][i] = static_cast<T>(y0 + y) * features_.inverse_xy;
          for (int c = 0; c < 3; ++c) {
            batch.feature[2 + c][i] = pixel[c * plane + at] * features_.inverse_rgb;
          }
        }
        kernels<T>().simplices(batch, features_.layout, features_.scale);
        for (int64_t i = 0; i < held; ++i, ++pixels_) {
          member_[pixels_] = table_.insert(batch.key[i], batch.order[i]);
          Record<T>& record = found_[pixels_];
          for (int k = 0; k < kVertices; ++k) record.w[k] = batch.weight[k][i];
          record.norm = 1;
          record.code = static_cast<int32_t>(y * kTile + x + i);
        }
      }
    }
  }

  // Counting sort of the simplices by their pixel count, so that loops over a group's pixels rarely
  // change their length (their mispredicted ends cost more than the arithmetic).
  void sort_by_size() {
    int32_t of_size[kBlock + 2] = {};
    std::fill_n(held_, table_.count, 0);
    for (int32_t i = 0; i < pixels_; ++i) ++held_[member_[i]];
    for (int32_t s = 0; s < table_.count; ++s) ++of_size[std::min(held_[s], kBlock) + 1];
    for (int i = 1; i <= kBlock + 1; ++i) of_size[i] += of_size[i - 1];
    for (int32_t s = 0; s < table_.count; ++s) {
      sorted_[of_size[std::min(held_[s], kBlock)]++] = s;
    }
  }

  // Vertices are numbered as the simplices were met, for locality.
  void number_vertices(Band& band) {
    constexpr int32_t kAhead = 4;
    uint64_t keys[kVertices];
    auto prefetch = [&](int32_t s) {
      vertex_keys(features_.layout, table_.keys[s], table_.orders[s], keys);
      for (int k = 0; k < kVertices; ++k) band.table.prefetch(band.table.slot(keys[k]));
    };
    for (int32_t s = 0; s < std::min(kAhead, table_.count); ++s) prefetch(s);
    for (int32_t s = 0; s < table_.count; ++s) {
      if (s + kAhead < table_.count) prefetch(s + kAhead);
      vertex_keys(features_.layout, table_.keys[s], table_.orders[s], keys);
      for (int k = 0; k < kVertices; ++k) groups_[s].vertex[k] = band.table.insert(keys[k]);
    }
  }

  // Groups of at most kBlock pixels in their sorted order, and their pixels' records.
  void write_groups(int64_t begin, Band& band) {
    band.tile_groups.push_back(static_cast<int32_t>(band.groups.size()));
    int32_t at = 0;
    for (int32_t i = 0; i < table_.count; ++i) {
      const int32_t s = sorted_[i];
      place_[s] = at;
      for (int32_t first = 0; first < held_[s]; first += kBlock) {
        groups_[s].begin = static_cast<int32_t>(begin + at + first);
        band.groups.push_back(groups_[s]);
      }
      at += held_[s];
    }
    for (int32_t i = 0; i < pixels_; ++i) records_[begin + place_[member_[i]]++] = found_[i];
  }

  const Features<T>& features_;
  Record<T>* records_;
  TileTable table_;
  int32_t pixels_ = 0;
  Record<T> found_[kPixels];     // by pixel
  int32_t member_[kPixels];      // by pixel: its simplex
  int32_t held_[kPixels];        // by simplex: its pixels
  int32_t sorted_[kPixels];      // simplices by their pixel count
  int32_t place_[kPixels];       // by simplex: its next pixel's place in the tile
  LocalGroup groups_[kPixels];   // by simplex
};

}  // namespace crf
}  // namespace wsis_d2
