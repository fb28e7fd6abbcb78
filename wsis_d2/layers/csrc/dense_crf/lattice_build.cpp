// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
#include "dense_crf/lattice_build.h"

#include <ATen/Parallel.h>

#include <cmath>
#include <limits>
#include <vector>

#include "dense_crf/key_table.h"
#include "dense_crf/pass.h"
#include "dense_crf/simplex.h"
#include "dense_crf/workspace.h"

namespace wsis_d2 {
namespace crf {
namespace {

struct LocalGroup {
  int32_t begin;
  int32_t vertex[kVertices];  // ids of the band
};

// What one band finds on its own.
struct Band {
  KeyTable table{4096};
  std::vector<LocalGroup> groups;
  std::vector<int32_t> tile_groups;  // first group of each tile, counted within the band
  std::vector<LocalGroup> of_tile;   // scratch
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

template <typename T>
struct Builder {
  const T* image;
  int64_t height, width, pixels, tiles_x, tiles_y;
  KeyLayout layout;
  T scale[kFeatures];
  T inverse_xy, inverse_rgb;
  Record<T>* records;

  void tile(int64_t tx, int64_t ty, int64_t begin, Band& band, TileTable& table,
            std::vector<Record<T>>& found, std::vector<int32_t>& member) const {
    const int64_t x0 = tx * kTile, y0 = ty * kTile;
    const int64_t rows = std::min<int64_t>(kTile, height - y0);
    const int64_t columns = std::min<int64_t>(kTile, width - x0);
    table.clear();
    constexpr int kLanes = kSimplexLanes;
    SimplexBatch<T, kLanes> batch;
    int32_t n = 0;
    for (int64_t y = 0; y < rows; ++y) {
      for (int64_t x = 0; x < columns; x += kLanes) {
        const int64_t held = std::min<int64_t>(kLanes, columns - x);
        const T* pixel = image + (y0 + y) * width + x0 + x;
        for (int64_t i = 0; i < kLanes; ++i) {
          const int64_t at = i < held ? i : 0;
          batch.feature[0][i] = static_cast<T>(x0 + x + at) * inverse_xy;
          batch.feature[1][i] = static_cast<T>(y0 + y) * inverse_xy;
          batch.feature[2][i] = pixel[at] * inverse_rgb;
          batch.feature[3][i] = pixel[pixels + at] * inverse_rgb;
          batch.feature[4][i] = pixel[2 * pixels + at] * inverse_rgb;
        }
        kernels<T>().simplices(batch, layout, scale);
        for (int64_t i = 0; i < held; ++i, ++n) {
          member[n] = table.insert(batch.key[i], batch.order[i]);
          Record<T>& record = found[n];
          for (int k = 0; k < kVertices; ++k) record.w[k] = batch.weight[k][i];
          record.norm = 1;
          record.code = static_cast<int32_t>(y * kTile + x + i);
        }
      }
    }
    // Counting sort of the simplices by their pixel count, so that loops over a group's pixels
    // rarely change their length (their mispredicted ends cost more than the arithmetic).
    int32_t held[kTile * kTile] = {}, place[kTile * kTile], sorted[kTile * kTile];
    int32_t of_size[kBlock + 2] = {};
    for (int32_t i = 0; i < n; ++i) ++held[member[i]];
    for (int32_t s = 0; s < table.count; ++s) ++of_size[std::min(held[s], kBlock) + 1];
    for (int i = 1; i <= kBlock + 1; ++i) of_size[i] += of_size[i - 1];
    for (int32_t s = 0; s < table.count; ++s) sorted[of_size[std::min(held[s], kBlock)]++] = s;
    uint64_t keys[kVertices];
    constexpr int32_t kAhead = 4;
    // Vertices are numbered as the simplices were met, for locality.
    std::vector<LocalGroup>& found_groups = band.of_tile;
    found_groups.resize(table.count);
    for (int32_t s = 0; s < std::min(kAhead, table.count); ++s) prefetch(band, table, s);
    for (int32_t s = 0; s < table.count; ++s) {
      if (s + kAhead < table.count) prefetch(band, table, s + kAhead);
      vertex_keys(layout, table.keys[s], table.orders[s], keys);
      for (int k = 0; k < kVertices; ++k) found_groups[s].vertex[k] = band.table.insert(keys[k]);
    }
    band.tile_groups.push_back(static_cast<int32_t>(band.groups.size()));
    int32_t at = 0;
    for (int32_t i = 0; i < table.count; ++i) {
      const int32_t s = sorted[i];
      place[s] = at;
      for (int32_t first = 0; first < held[s]; first += kBlock) {
        found_groups[s].begin = static_cast<int32_t>(begin + at + first);
        band.groups.push_back(found_groups[s]);
      }
      at += held[s];
    }
    for (int32_t i = 0; i < n; ++i) records[begin + place[member[i]]++] = found[i];
  }

 private:
  void prefetch(const Band& band, const TileTable& table, int32_t s) const {
    uint64_t keys[kVertices];
    vertex_keys(layout, table.keys[s], table.orders[s], keys);
    for (int k = 0; k < kVertices; ++k) band.table.prefetch(band.table.slot(keys[k]));
  }
};

// K applied to ones, pixel by pixel, and the normalisation folded into the weights.
template <typename T>
void normalize(const Lattice<T>& lattice, Record<T>* records) {
  Buffer storage(lattice.rows() * sizeof(T));
  T* sums = storage.as<T>();
  at::parallel_for(0, lattice.rows(), 65536, [&](int64_t begin, int64_t end) {
    std::fill(sums + begin, sums + end, T(0));
  });
  auto groups_of = [&](int64_t band, int64_t* first, int64_t* last) {
    *first = lattice.tile_groups[lattice.band_rows[band] * lattice.tiles_x];
    *last = lattice.tile_groups[lattice.band_rows[band + 1] * lattice.tiles_x];
  };
  at::parallel_for(0, lattice.bands, 1, [&](int64_t begin, int64_t end) {
    for (int64_t band = begin; band < end; ++band) {
      int64_t first, last;
      groups_of(band, &first, &last);
      for (int64_t g = first; g < last; ++g) {
        const Group& group = lattice.groups[g];
        T total[kVertices] = {};
        for (int64_t p = group.begin; p < lattice.groups[g + 1].begin; ++p) {
          for (int k = 0; k < kVertices; ++k) total[k] += records[p].w[k];
        }
        for (int k = 0; k < kVertices; ++k) sums[group.splat[k]] += total[k];
      }
    }
  });
  for (int64_t s = 0; s < lattice.shared_count; ++s) {
    for (int64_t e = lattice.shared_begin[s]; e < lattice.shared_begin[s + 1]; ++e) {
      sums[lattice.shared_home[s]] += sums[lattice.vertices + e];
    }
  }
  for (int axis = 0; axis < kVertices; ++axis) {
    const int32_t* chain = lattice.chains[axis];
    T before = 0, here = 0;
    int32_t id = -1;
    for (int64_t i = 0; i < lattice.chain_sizes[axis]; ++i) {
      const int32_t next_id = chain[i] < 0 ? ~chain[i] : chain[i];
      const T next = sums[next_id];
      if (id >= 0) sums[id] = here + T(0.5) * (before + next);
      before = id >= 0 ? here : T(0);
      here = next;
      id = next_id;
      if (chain[i] < 0) {
        sums[id] = here + T(0.5) * before;
        before = here = 0;
        id = -1;
      }
    }
  }
  at::parallel_for(0, lattice.bands, 1, [&](int64_t begin, int64_t end) {
    for (int64_t band = begin; band < end; ++band) {
      int64_t first, last;
      groups_of(band, &first, &last);
      for (int64_t g = first; g < last; ++g) {
        const Group& group = lattice.groups[g];
        T corner[kVertices];
        for (int k = 0; k < kVertices; ++k) corner[k] = sums[group.slice[k]];
        for (int64_t p = group.begin; p < lattice.groups[g + 1].begin; ++p) {
          T sum = 0;
          for (int k = 0; k < kVertices; ++k) sum += records[p].w[k] * corner[k];
          sum = std::max(sum, T(1e-20));
          const T factor = lattice.normalization == kAfter ? T(1) / sum : T(1) / std::sqrt(sum);
          for (int k = 0; k < kVertices; ++k) records[p].w[k] *= factor;
          if (lattice.normalization == kAfter) records[p].norm = sum;
        }
      }
    }
  });
}

struct Neighbours {
  std::vector<int32_t> chain;
};

Neighbours find_chain(const KeyTable& table, uint64_t step) {
  constexpr size_t kAhead = 16;
  const std::vector<uint64_t>& keys = table.keys();
  const size_t count = keys.size();
  std::vector<int32_t> next(count);
  std::vector<uint8_t> follows(count, 0);
  for (size_t v = 0; v < count; ++v) {
    if (v + kAhead < count) table.prefetch(table.slot(keys[v + kAhead] + step));
    next[v] = table.find(keys[v] + step);
    if (next[v] >= 0) follows[next[v]] = 1;
  }
  Neighbours result;
  result.chain.reserve(count);
  for (size_t v = 0; v < count; ++v) {
    if (follows[v] || next[v] < 0) continue;
    int32_t at = static_cast<int32_t>(v);
    while (next[at] >= 0) {
      result.chain.push_back(at);
      at = next[at];
    }
    result.chain.push_back(~at);
  }
  return result;
}

template <typename T>
KeyLayout layout_of(const at::Tensor& image, double sigma_xy, double sigma_rgb) {
  const T* data = image.const_data_ptr<T>();
  const int64_t pixels = image.size(1) * image.size(2);
  double low[3], high[3];
  for (int c = 0; c < 3; ++c) {
    T least = std::numeric_limits<T>::infinity(), most = -least, odd = 0;
    for (int64_t i = 0; i < pixels; ++i) {
      const T v = data[c * pixels + i];
      least = v < least ? v : least;
      most = v > most ? v : most;
      odd += v - v;
    }
    TORCH_CHECK_VALUE(odd == T(0), "image: it holds NaN or infinity; all values must be finite.");
    low[c] = least;
    high[c] = most;
  }
  return checked_layout(image.size(1), image.size(2), low, high, sigma_xy, sigma_rgb);
}

template <typename T>
LatticeTensors build(const at::Tensor& image, double sigma_xy, double sigma_rgb,
                     int64_t normalization) {
  Builder<T> builder;
  builder.image = image.const_data_ptr<T>();
  builder.height = image.size(1);
  builder.width = image.size(2);
  builder.pixels = builder.height * builder.width;
  builder.tiles_x = (builder.width + kTile - 1) / kTile;
  builder.tiles_y = (builder.height + kTile - 1) / kTile;
  builder.inverse_xy = static_cast<T>(1.0 / sigma_xy);
  builder.inverse_rgb = static_cast<T>(1.0 / sigma_rgb);
  check_pixel_count(builder.height, builder.width);
  builder.layout = layout_of<T>(image, sigma_xy, sigma_rgb);
  double scale[kFeatures];
  embedding_scales(scale);
  for (int i = 0; i < kFeatures; ++i) builder.scale[i] = static_cast<T>(scale[i]);

  at::Tensor records = pooled_tensor({builder.pixels, 8}, image.options());
  builder.records = reinterpret_cast<Record<T>*>(records.data_ptr<T>());
  const std::vector<int32_t> rows = band_rows(builder.height, builder.width);
  const int bands = static_cast<int>(rows.size()) - 1;
  std::vector<Band> parts(bands);
  at::parallel_for(0, bands, 1, [&](int64_t begin, int64_t end) {
    std::vector<Record<T>> found(kTile * kTile);
    std::vector<int32_t> member(kTile * kTile);
    auto table = std::make_unique<TileTable>();
    for (int64_t b = begin; b < end; ++b) {
      int64_t at = static_cast<int64_t>(rows[b]) * kTile * builder.width;
      for (int64_t ty = rows[b]; ty < rows[b + 1]; ++ty) {
        const int64_t tall = std::min<int64_t>(kTile, builder.height - ty * kTile);
        for (int64_t tx = 0; tx < builder.tiles_x; ++tx) {
          builder.tile(tx, ty, at, parts[b], *table, found, member);
          at += tall * std::min<int64_t>(kTile, builder.width - tx * kTile);
        }
      }
    }
  });

  // One numbering of the vertices; who touches what.
  size_t most = 0;
  for (const Band& part : parts) most += part.table.keys().size();
  KeyTable global = bands == 1 ? std::move(parts[0].table) : KeyTable(most);
  std::vector<uint8_t> first_band;  // by vertex
  int64_t extras = 0, groups = 0;
  std::vector<int32_t> shared_home, shared_begin;
  for (Band& part : parts) groups += static_cast<int64_t>(part.groups.size());
  if (bands == 1) {
    const size_t count = global.keys().size();
    parts[0].home.resize(count);
    for (size_t v = 0; v < count; ++v) parts[0].home[v] = static_cast<int32_t>(v);
    parts[0].row = parts[0].home;
  } else {
    std::vector<int32_t> touches;
    for (Band& part : parts) {
      const std::vector<uint64_t>& keys = part.table.keys();
      part.home.resize(keys.size());
      for (size_t v = 0; v < keys.size(); ++v) {
        if (v + 16 < keys.size()) global.prefetch(global.slot(keys[v + 16]));
        const int32_t id = global.insert(keys[v]);
        part.home[v] = id;
        if (static_cast<size_t>(id) == touches.size()) touches.push_back(0);
        ++touches[id];
      }
    }
    const size_t count = touches.size();
    std::vector<int32_t> next(count, -1);  // next extra row; -1: the home row is still free
    std::vector<int32_t> first(count, 0);
    for (size_t v = 0; v < count; ++v) {
      first[v] = static_cast<int32_t>(count + extras);
      if (touches[v] > 1) {
        shared_home.push_back(static_cast<int32_t>(v));
        shared_begin.push_back(static_cast<int32_t>(extras));
        extras += touches[v] - 1;
      }
    }
    for (Band& part : parts) {
      part.row.resize(part.home.size());
      for (size_t v = 0; v < part.home.size(); ++v) {
        const int32_t id = part.home[v];
        if (next[id] < 0) {
          part.row[v] = id;
          next[id] = first[id];
        } else {
          part.row[v] = next[id]++;
        }
      }
    }
  }
  shared_begin.push_back(static_cast<int32_t>(extras));
  const int64_t vertices = static_cast<int64_t>(global.keys().size());
  TORCH_CHECK_VALUE(vertices + extras < (int64_t(1) << 31) - 1 && groups < (int64_t(1) << 31) - 1,
                    "image: its lattice has ", vertices, " vertices, which overflow 32-bit indices.");

  std::vector<Neighbours> chains(kVertices);
  at::parallel_for(0, kVertices, 1, [&](int64_t begin, int64_t end) {
    for (int64_t a = begin; a < end; ++a) chains[a] = find_chain(global, builder.layout.step[a]);
  });

  // Lay everything out in one tensor of 32-bit numbers.
  at::Tensor header = at::zeros({kHeaderSize}, at::TensorOptions().dtype(at::kLong));
  int64_t* slot = header.data_ptr<int64_t>();
  slot[kSlotMagic] = kMagic;
  slot[kSlotHeight] = builder.height;
  slot[kSlotWidth] = builder.width;
  slot[kSlotBytes] = sizeof(T);
  slot[kSlotNormalization] = normalization;
  slot[kSlotVertices] = vertices;
  slot[kSlotExtras] = extras;
  slot[kSlotGroups] = groups;
  slot[kSlotBands] = bands;
  slot[kSlotTilesX] = builder.tiles_x;
  slot[kSlotTilesY] = builder.tiles_y;
  slot[kSlotShared] = static_cast<int64_t>(shared_home.size());
  int64_t size = 0;
  auto take = [&](Header name, int64_t count) {
    slot[name] = size;
    size += count;
  };
  take(kSlotTileGroups, builder.tiles_x * builder.tiles_y + 1);
  take(kSlotBandRows, bands + 1);
  take(kSlotGroupTable, (groups + 1) * static_cast<int64_t>(sizeof(Group) / 4));
  take(kSlotSharedHome, static_cast<int64_t>(shared_home.size()));
  take(kSlotSharedBegin, static_cast<int64_t>(shared_begin.size()));
  for (int a = 0; a < kVertices; ++a) {
    slot[kSlotChainSizes + a] = static_cast<int64_t>(chains[a].chain.size());
    take(static_cast<Header>(kSlotChains + a), slot[kSlotChainSizes + a]);
  }
  slot[kSlotIndexSize] = size;
  at::Tensor index = pooled_tensor({size}, at::TensorOptions().dtype(at::kInt));
  int32_t* out = index.data_ptr<int32_t>();
  std::copy(rows.begin(), rows.end(), out + slot[kSlotBandRows]);
  std::copy(shared_home.begin(), shared_home.end(), out + slot[kSlotSharedHome]);
  std::copy(shared_begin.begin(), shared_begin.end(), out + slot[kSlotSharedBegin]);
  for (int a = 0; a < kVertices; ++a) {
    std::copy(chains[a].chain.begin(), chains[a].chain.end(), out + slot[kSlotChains + a]);
  }
  std::vector<int64_t> first_group(bands + 1, 0);
  for (int b = 0; b < bands; ++b) {
    first_group[b + 1] = first_group[b] + static_cast<int64_t>(parts[b].groups.size());
  }
  Group* table = reinterpret_cast<Group*>(out + slot[kSlotGroupTable]);
  at::parallel_for(0, bands, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const Band& part = parts[b];
      int32_t* tile = out + slot[kSlotTileGroups] + rows[b] * builder.tiles_x;
      for (int32_t g : part.tile_groups) *tile++ = static_cast<int32_t>(first_group[b] + g);
      Group* group = table + first_group[b];
      for (const LocalGroup& local : part.groups) {
        group->begin = local.begin;
        for (int k = 0; k < kVertices; ++k) {
          group->slice[k] = part.home[local.vertex[k]];
          group->splat[k] = part.row[local.vertex[k]];
        }
        ++group;
      }
    }
  });
  out[slot[kSlotTileGroups] + builder.tiles_x * builder.tiles_y] = static_cast<int32_t>(groups);
  table[groups] = Group{static_cast<int32_t>(builder.pixels), {}, {}};
  if (normalization != kNone) normalize(view_lattice<T>(header, records, index), builder.records);
  return {header, records, index};
}

}  // namespace

LatticeTensors build_lattice_cpu(const at::Tensor& image, double sigma_xy, double sigma_rgb,
                                 int64_t normalization) {
  const at::Tensor dense = image.contiguous();
  return image.scalar_type() == at::kDouble
             ? build<double>(dense, sigma_xy, sigma_rgb, normalization)
             : build<float>(dense, sigma_xy, sigma_rgb, normalization);
}

}  // namespace crf
}  // namespace wsis_d2
