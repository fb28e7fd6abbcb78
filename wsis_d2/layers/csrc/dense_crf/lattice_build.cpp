// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
#include "dense_crf/lattice_build.h"

#include <ATen/Parallel.h>

#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "dense_crf/lattice_tiles.h"
#include "dense_crf/workspace.h"

namespace wsis_d2 {
namespace crf {
namespace {

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

// Runs of vertices that follow one another along an axis, the last of a run as ~id.
std::vector<int32_t> find_chain(const KeyTable& table, uint64_t step) {
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
  std::vector<int32_t> chain;
  chain.reserve(count);
  for (size_t v = 0; v < count; ++v) {
    if (follows[v] || next[v] < 0) continue;
    int32_t at = static_cast<int32_t>(v);
    while (next[at] >= 0) {
      chain.push_back(at);
      at = next[at];
    }
    chain.push_back(~at);
  }
  return chain;
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

// Each band's groups, in parallel, and all records.
template <typename T>
std::vector<Band> find_groups(const Features<T>& features, const std::vector<int32_t>& rows,
                              Record<T>* records) {
  const int64_t bands = static_cast<int64_t>(rows.size()) - 1;
  const int64_t tiles_x = (features.width + kTile - 1) / kTile;
  std::vector<Band> parts(bands);
  at::parallel_for(0, bands, 1, [&](int64_t begin, int64_t end) {
    const auto builder = std::make_unique<TileBuilder<T>>(features, records);
    for (int64_t b = begin; b < end; ++b) {
      int64_t at = static_cast<int64_t>(rows[b]) * kTile * features.width;
      for (int64_t ty = rows[b]; ty < rows[b + 1]; ++ty) {
        const int64_t tall = std::min<int64_t>(kTile, features.height - ty * kTile);
        for (int64_t tx = 0; tx < tiles_x; ++tx) {
          builder->build(tx, ty, at, parts[b]);
          at += tall * std::min<int64_t>(kTile, features.width - tx * kTile);
        }
      }
    }
  });
  return parts;
}

// One numbering of all bands' vertices.
struct Numbering {
  KeyTable table{0};
  int64_t extras = 0;                              // rows beyond one a vertex
  std::vector<int32_t> shared_home, shared_begin;  // see Lattice
  int64_t vertices() const { return static_cast<int64_t>(table.keys().size()); }
};

// Number the vertices, and say where each band reads and adds: `home` and `row` of the bands.
Numbering number_vertices(std::vector<Band>& parts) {
  Numbering all;
  if (parts.size() == 1) {
    all.table = std::move(parts[0].table);
    parts[0].home.resize(all.vertices());
    for (int64_t v = 0; v < all.vertices(); ++v) parts[0].home[v] = static_cast<int32_t>(v);
    parts[0].row = parts[0].home;
    all.shared_begin.push_back(0);
    return all;
  }
  size_t most = 0;
  for (const Band& part : parts) most += part.table.keys().size();
  all.table = KeyTable(most);
  std::vector<int32_t> touches;  // bands, by vertex
  for (Band& part : parts) {
    const std::vector<uint64_t>& keys = part.table.keys();
    part.home.resize(keys.size());
    for (size_t v = 0; v < keys.size(); ++v) {
      if (v + 16 < keys.size()) all.table.prefetch(all.table.slot(keys[v + 16]));
      const int32_t id = all.table.insert(keys[v]);
      part.home[v] = id;
      if (static_cast<size_t>(id) == touches.size()) touches.push_back(0);
      ++touches[id];
    }
  }
  const size_t count = touches.size();
  std::vector<int32_t> next(count, -1);  // next extra row; -1: the home row is still free
  std::vector<int32_t> first(count, 0);
  for (size_t v = 0; v < count; ++v) {
    first[v] = static_cast<int32_t>(count + all.extras);
    if (touches[v] > 1) {
      all.shared_home.push_back(static_cast<int32_t>(v));
      all.shared_begin.push_back(static_cast<int32_t>(all.extras));
      all.extras += touches[v] - 1;
    }
  }
  all.shared_begin.push_back(static_cast<int32_t>(all.extras));
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
  return all;
}

// The bands' groups as one table, with the bands' vertices replaced by rows of the lattice.
void write_groups(const std::vector<Band>& parts, const std::vector<int32_t>& rows,
                  int64_t tiles_x, int32_t* tile_groups, Group* table) {
  const int64_t bands = static_cast<int64_t>(parts.size());
  std::vector<int64_t> first_group(bands + 1, 0);
  for (int64_t b = 0; b < bands; ++b) {
    first_group[b + 1] = first_group[b] + static_cast<int64_t>(parts[b].groups.size());
  }
  at::parallel_for(0, bands, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const Band& part = parts[b];
      int32_t* tile = tile_groups + rows[b] * tiles_x;
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
  tile_groups[rows[bands] * tiles_x] = static_cast<int32_t>(first_group[bands]);
}

// Header and index: everything but the records, in one tensor of 32-bit numbers.
template <typename T>
std::tuple<at::Tensor, at::Tensor> lay_out(const Features<T>& features,
                                           const std::vector<int32_t>& rows,
                                           const std::vector<Band>& parts, const Numbering& all,
                                           int64_t normalization) {
  const int64_t bands = static_cast<int64_t>(parts.size());
  const int64_t tiles_x = (features.width + kTile - 1) / kTile;
  const int64_t tiles_y = (features.height + kTile - 1) / kTile;
  int64_t groups = 0;
  for (const Band& part : parts) groups += static_cast<int64_t>(part.groups.size());
  const int64_t most = (int64_t(1) << 31) - 1;
  TORCH_CHECK_VALUE(all.vertices() + all.extras < most && groups < most, "image: its lattice has ",
                    all.vertices(), " vertices, which overflow 32-bit indices.");
  std::vector<int32_t> chains[kVertices];
  at::parallel_for(0, kVertices, 1, [&](int64_t begin, int64_t end) {
    for (int64_t a = begin; a < end; ++a) {
      chains[a] = find_chain(all.table, features.layout.step[a]);
    }
  });

  at::Tensor header = at::zeros({kHeaderSize}, at::TensorOptions().dtype(at::kLong));
  int64_t* slot = header.data_ptr<int64_t>();
  slot[kSlotMagic] = kMagic;
  slot[kSlotHeight] = features.height;
  slot[kSlotWidth] = features.width;
  slot[kSlotBytes] = sizeof(T);
  slot[kSlotNormalization] = normalization;
  slot[kSlotVertices] = all.vertices();
  slot[kSlotExtras] = all.extras;
  slot[kSlotGroups] = groups;
  slot[kSlotBands] = bands;
  slot[kSlotTilesX] = tiles_x;
  slot[kSlotTilesY] = tiles_y;
  slot[kSlotShared] = static_cast<int64_t>(all.shared_home.size());
  int64_t size = 0;
  auto take = [&](int name, size_t count) {
    slot[name] = size;
    size += static_cast<int64_t>(count);
  };
  take(kSlotTileGroups, tiles_x * tiles_y + 1);
  take(kSlotBandRows, rows.size());
  take(kSlotGroupTable, (groups + 1) * sizeof(Group) / sizeof(int32_t));
  take(kSlotSharedHome, all.shared_home.size());
  take(kSlotSharedBegin, all.shared_begin.size());
  for (int a = 0; a < kVertices; ++a) {
    slot[kSlotChainSizes + a] = static_cast<int64_t>(chains[a].size());
    take(kSlotChains + a, chains[a].size());
  }
  slot[kSlotIndexSize] = size;
  at::Tensor index = pooled_tensor({size}, at::TensorOptions().dtype(at::kInt));
  int32_t* out = index.data_ptr<int32_t>();
  auto copy = [&](const std::vector<int32_t>& from, int name) {
    std::copy(from.begin(), from.end(), out + slot[name]);
  };
  copy(rows, kSlotBandRows);
  copy(all.shared_home, kSlotSharedHome);
  copy(all.shared_begin, kSlotSharedBegin);
  for (int a = 0; a < kVertices; ++a) copy(chains[a], kSlotChains + a);
  Group* table = reinterpret_cast<Group*>(out + slot[kSlotGroupTable]);
  write_groups(parts, rows, tiles_x, out + slot[kSlotTileGroups], table);
  table[groups] = Group{static_cast<int32_t>(features.height * features.width), {}, {}};
  return {header, index};
}

template <typename T>
LatticeTensors build(const at::Tensor& image, double sigma_xy, double sigma_rgb,
                     int64_t normalization) {
  const int64_t height = image.size(1), width = image.size(2);
  check_pixel_count(height, width);
  const Features<T> features(image.const_data_ptr<T>(), height, width,
                             layout_of<T>(image, sigma_xy, sigma_rgb), sigma_xy, sigma_rgb);
  const std::vector<int32_t> rows = band_rows(height, width);
  at::Tensor records = pooled_tensor({height * width, 8}, image.options());
  Record<T>* record = reinterpret_cast<Record<T>*>(records.data_ptr<T>());
  std::vector<Band> parts = find_groups(features, rows, record);
  const Numbering all = number_vertices(parts);
  auto [header, index] = lay_out(features, rows, parts, all, normalization);
  if (normalization != kNone) normalize(view_lattice<T>(header, records, index), record);
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
