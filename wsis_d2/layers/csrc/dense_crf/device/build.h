// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
// Builds the lattice on a GPU. Each tile sorts the keys that its pixels touch and keeps one of each;
// what is left, a fraction, is sorted for the whole image, so that equal keys become one vertex. The
// host waits once, for how many are left and whether the inputs are fit.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "dense_crf/device/lattice.h"
#include "dense_crf/device/mean_field.h"

#if !defined(WSIS_CRF_HOST_CHECK)
#include <cub/device/device_radix_sort.cuh>
#endif

namespace wsis_d2 {
namespace crf {

constexpr int kTilePixels = kDeviceTile * kDeviceTile;
constexpr int kTileKeys = kTilePixels * kVertices;
constexpr int kSorted = 2048;  // a power of two above kTileKeys
static_assert(kTilePixels == kThreads, "a thread a pixel");

// Tensors beside the image that must be finite.
constexpr int kMostChecked = 3;

// What the host waits for.
struct BuildFacts {
  int64_t finite[1 + kMostChecked];  // the image, the others
  int64_t fits;                      // the keys, into 64 bits
  int64_t bits;
  int64_t rows;
};

// Ranges -> the layout of the keys. One thread.
template <typename T>
struct FindLayout {
  const T* low;   // [3 + checked]: least values
  const T* high;  // greatest
  int checked;
  int64_t height, width;
  double sigma_xy, sigma_rgb;
  KeyLayout* layout;
  BuildFacts* facts;

  WSIS_DEVICE static bool finite(T a, T b) { return a - a == T(0) && b - b == T(0); }

  WSIS_DEVICE void operator()(int64_t) const {
    bool image = true;
    double least[kFeatures], most[kFeatures];
    for (int c = 0; c < 3; ++c) image = image && finite(low[c], high[c]);
    feature_ranges(height, width, low, high, sigma_xy, sigma_rgb, least, most);
    facts->finite[0] = image;
    for (int i = 0; i < checked; ++i) facts->finite[1 + i] = finite(low[3 + i], high[3 + i]);
    facts->fits = image && fit_layout(least, most, *layout);
    facts->bits = facts->fits ? layout->total_bits : 0;
    facts->rows = 0;
  }
};

// What the tiles find, each in a slot of kTileKeys: by key and, among equal keys, by pair.
template <typename T>
struct TileSlots {
  int64_t* keys;    // its distinct keys
  int16_t* begin;   // where the pairs of each begin
  int16_t* pairs;   // sorted: (pixel of the tile) * 8 + corner
  int16_t* ranks;   // [pixel * 6 + corner]: which of the distinct keys
  int32_t* counts;  // [tile]: how many are distinct
  Record<T>* records;
};

// One tile: a thread a pixel, then an odd-even merge sort (Batcher's bitonic network), then a scan.
template <typename T>
struct FindTile {
  static constexpr int kSortTurns = 66;  // 11 * 12 / 2, as kSorted is 2^11
  static constexpr int kScanTurns = 8;   // kThreads is 2^8
  static constexpr int kPhases = 5;
  static constexpr int kEach = kSorted / kThreads;
  static constexpr uint64_t kNone = ~uint64_t(0);
  struct Shared {
    uint64_t keys[kSorted];
    uint16_t pairs[kSorted];
    int32_t counts[2][kThreads];
  };
  struct Local {};

  const T* image;
  int height, width, tiles_x;
  T inverse_xy, inverse_rgb;
  T scale[kFeatures];
  const KeyLayout* layout;
  const BuildFacts* facts;
  TileSlots<T> slots;

  WSIS_DEVICE void find(const Place& place, Shared& shared) const {
    const int t = place.x;
    const int ty = place.block / tiles_x, tx = place.block - ty * tiles_x;
    const int px = tx * kDeviceTile + t % kDeviceTile, py = ty * kDeviceTile + t / kDeviceTile;
    const bool here = px < width && py < height && facts->fits;
    uint64_t keys[kVertices];
    for (int k = 0; k < kVertices; ++k) keys[k] = kNone;
    if (here) {
      const int64_t pixels = int64_t(height) * width, i = int64_t(py) * width + px;
      SimplexBatch<T, 1> simplex;
      simplex.feature[0][0] = static_cast<T>(px) * inverse_xy;
      simplex.feature[1][0] = static_cast<T>(py) * inverse_xy;
      for (int c = 0; c < 3; ++c) simplex.feature[2 + c][0] = image[c * pixels + i] * inverse_rgb;
      simplex.find(*layout, scale);
      vertex_keys(*layout, simplex.key[0], simplex.order[0], keys);
      Record<T> record{};
      for (int k = 0; k < kVertices; ++k) record.w[k] = simplex.weight[k][0];
      record.norm = 1;
      slots.records[i] = record;
    }
    for (int k = 0; k < kVertices; ++k) {
      shared.keys[t * kVertices + k] = keys[k];
      shared.pairs[t * kVertices + k] =
          static_cast<uint16_t>(keys[k] == kNone ? 0xffff : t * 8 + k);
    }
    for (int i = kTileKeys + t; i < kSorted; i += kThreads) {
      shared.keys[i] = kNone;
      shared.pairs[i] = 0xffff;
    }
  }

  // One pass of the network: runs of 2^(stage + 1) rise or fall; partners are 2^step apart.
  WSIS_DEVICE static void sort(const Place& place, Shared& shared) {
    int stage = 0, step = place.turn;
    while (step > stage) step -= ++stage;
    step = stage - step;
    for (int i = place.x; i < kSorted / 2; i += kThreads) {
      const int low = (i >> step << (step + 1)) | (i & ((1 << step) - 1)), high = low | (1 << step);
      const bool rises = (low >> (stage + 1) & 1) == 0;
      const uint64_t a = shared.keys[low], b = shared.keys[high];
      const uint16_t p = shared.pairs[low], q = shared.pairs[high];
      const bool greater = a > b || (a == b && p > q);
      if (greater == rises) {
        shared.keys[low] = b;
        shared.keys[high] = a;
        shared.pairs[low] = q;
        shared.pairs[high] = p;
      }
    }
  }

  WSIS_DEVICE static bool is_first(const Shared& shared, int j) {
    return shared.keys[j] != kNone && (j == 0 || shared.keys[j] != shared.keys[j - 1]);
  }

  template <int PHASE>
  WSIS_DEVICE void phase(const Place& place, Local&, Shared& shared) const {
    const int t = place.x;
    if constexpr (PHASE == 0) {
      find(place, shared);
    } else if constexpr (PHASE == 1) {
      sort(place, shared);
    } else if constexpr (PHASE == 2) {
      int count = 0;
      for (int j = t * kEach; j < (t + 1) * kEach; ++j) count += is_first(shared, j);
      shared.counts[0][t] = count;
    } else if constexpr (PHASE == 3) {
      const int distance = 1 << place.turn;
      const int32_t* from = shared.counts[place.turn % 2];
      shared.counts[1 - place.turn % 2][t] = from[t] + (t >= distance ? from[t - distance] : 0);
    } else {
      const int32_t* counts = shared.counts[kScanTurns % 2];
      int rank = t > 0 ? counts[t - 1] : 0;
      const int64_t slot = int64_t(place.block) * kTileKeys;
      for (int j = t * kEach; j < (t + 1) * kEach && shared.keys[j] != kNone; ++j) {
        if (is_first(shared, j)) {
          slots.keys[slot + rank] = static_cast<int64_t>(shared.keys[j]);
          slots.begin[slot + rank] = static_cast<int16_t>(j);
          ++rank;
        }
        const int pair = shared.pairs[j];
        slots.pairs[slot + j] = static_cast<int16_t>(pair);
        slots.ranks[slot + (pair >> 3) * kVertices + (pair & 7)] = static_cast<int16_t>(rank - 1);
      }
      if (t == kThreads - 1) slots.counts[place.block] = counts[t];
    }
  }
};

template <typename T>
struct Turns<FindTile<T>> {
  static constexpr int of(int phase) {
    return phase == 1 ? FindTile<T>::kSortTurns : phase == 3 ? FindTile<T>::kScanTurns : 1;
  }
};

// How many rows there are, for the host.
struct CountRows {
  const int32_t* tile_rows;  // its last
  BuildFacts* facts;
  WSIS_DEVICE void operator()(int64_t) const { facts->rows = *tile_rows; }
};

// Distinct keys of the tiles, side by side; a block a tile.
struct GatherKeys {
  static constexpr int kPhases = 1;
  struct Shared {};
  struct Local {};
  const int64_t* slots;
  const int32_t* tile_rows;
  int64_t* keys;
  int32_t* rows;

  template <int PHASE>
  WSIS_DEVICE void phase(const Place& place, Local&, Shared&) const {
    const int first = tile_rows[place.block], count = tile_rows[place.block + 1] - first;
    for (int r = place.x; r < count; r += place.width) {
      keys[first + r] = slots[int64_t(place.block) * kTileKeys + r];
      rows[first + r] = first + r;
    }
  }
};

// 1 where a key is not the one before.
struct MarkFirst {
  const int64_t* keys;
  int32_t* marks;
  WSIS_DEVICE void operator()(int64_t j) const {
    marks[j] = j == 0 || keys[j] != keys[j - 1];
  }
};

// Vertices from the sorted keys and the running sums of the marks.
struct NumberVertices {
  const int64_t* keys;
  const int32_t* numbers;  // of the vertex, from 1
  const int32_t* order;
  int64_t rows;
  int64_t* unique;       // [vertex]: its key
  int32_t* row_vertex;   // [row]
  int32_t* vertex_begin;
  int32_t* count;

  WSIS_DEVICE void operator()(int64_t j) const {
    const int32_t vertex = numbers[j] - 1;
    row_vertex[order[j]] = vertex;
    if (j == 0 || numbers[j - 1] <= vertex) {
      unique[vertex] = keys[j];
      vertex_begin[vertex] = static_cast<int32_t>(j);
    }
    if (j == rows - 1) {
      vertex_begin[vertex + 1] = static_cast<int32_t>(rows);
      *count = vertex + 1;
    }
  }
};

// The vertex one step along an axis, by bisection; it learns of this one in turn. A row a vertex, a
// part an axis.
struct FindNeighbours {
  const int64_t* unique;
  const int32_t* count;
  const KeyLayout* layout;
  int32_t* neighbours;
  int64_t rows;

  WSIS_DEVICE void operator()(uint32_t vertex, int axis) const {
    const int32_t vertices = *count;
    if (vertex >= static_cast<uint32_t>(vertices)) return;
    const uint64_t wanted = static_cast<uint64_t>(unique[vertex]) + layout->step[axis];
    int32_t first = 0, last = vertices;  // the first key that is not below the wanted one
    while (first < last) {
      const int32_t middle = first + (last - first) / 2;
      if (static_cast<uint64_t>(unique[middle]) < wanted) {
        first = middle + 1;
      } else {
        last = middle;
      }
    }
    if (first == vertices || static_cast<uint64_t>(unique[first]) != wanted) return;
    int32_t* of_axis = neighbours + axis * rows * 2;
    of_axis[2 * int64_t(vertex) + 1] = first;
    of_axis[2 * int64_t(first)] = static_cast<int32_t>(vertex);
  }
};

// A tile's part of the index; a block a tile.
struct WriteTile {
  static constexpr int kPhases = 1;
  struct Shared {};
  struct Local {};
  int height, width, tiles_x;
  const int16_t* begin;
  const int16_t* pairs_in;
  const int16_t* ranks;
  const int32_t* tile_rows;
  const int32_t* row_vertex;
  int32_t* pair_begin;
  uint16_t* pairs;
  int32_t* corners;

  template <int PHASE>
  WSIS_DEVICE void phase(const Place& place, Local&, Shared&) const {
    const int ty = place.block / tiles_x, tx = place.block - ty * tiles_x;
    const int x0 = tx * kDeviceTile, y0 = ty * kDeviceTile;
    const int wide = width - x0 < kDeviceTile ? width - x0 : kDeviceTile;
    const int tall = height - y0 < kDeviceTile ? height - y0 : kDeviceTile;
    // Tiles before this one: whole bands, and tiles of its own band's height.
    const int64_t before = (int64_t(y0) * width + int64_t(x0) * tall) * kVertices;
    const int64_t slot = int64_t(place.block) * kTileKeys;
    const int first = tile_rows[place.block], count = tile_rows[place.block + 1] - first;
    for (int r = place.x; r < count; r += place.width) {
      pair_begin[first + r] = static_cast<int32_t>(before + begin[slot + r]);
    }
    const int held = wide * tall * kVertices;
    for (int j = place.x; j < held; j += place.width) {
      pairs[before + j] = static_cast<uint16_t>(pairs_in[slot + j]);
      const int pixel = j / kVertices, corner = j % kVertices;
      const int x = pixel % wide, y = pixel / wide;
      const int rank = ranks[slot + (y * kDeviceTile + x) * kVertices + corner];
      corners[(int64_t(y0 + y) * width + x0 + x) * kVertices + corner] = row_vertex[first + rank];
    }
    if (place.x == 0 && before + held == int64_t(height) * width * kVertices) {
      pair_begin[first + count] = static_cast<int32_t>(before + held);
    }
  }
};

// Fold the kernel's row sums (sums[N]) into the weights.
template <typename T>
struct FoldNorm {
  Record<T>* records;
  const T* sums;
  int normalization;

  WSIS_DEVICE void operator()(int64_t i) const {
    const T sum = sums[i] > T(1e-20) ? sums[i] : T(1e-20);
    const T factor = normalization == kAfter ? T(1) / sum : T(1) / static_cast<T>(sqrt(sum));
    for (int k = 0; k < kVertices; ++k) records[i].w[k] *= factor;
    records[i].norm = normalization == kAfter ? sum : T(1);
  }
};

// (keys, rows) by key, the lowest `bits` of which count; equal keys keep their order.
inline std::tuple<at::Tensor, at::Tensor> sort_rows(const at::Tensor& keys, const at::Tensor& rows,
                                                    int bits) {
#if defined(WSIS_CRF_HOST_CHECK)
  // Keys count as unsigned numbers.
  const at::Tensor flipped = keys.bitwise_xor(std::numeric_limits<int64_t>::min());
  const at::Tensor order = std::get<1>(flipped.sort(/*stable=*/true, 0, false));
  return {keys.index_select(0, order), rows.index_select(0, order)};
#else
  at::Tensor sorted = at::empty_like(keys), order = at::empty_like(rows);
  const auto* from = reinterpret_cast<const uint64_t*>(keys.const_data_ptr<int64_t>());
  auto* to = reinterpret_cast<uint64_t*>(sorted.data_ptr<int64_t>());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  size_t bytes = 0;
  at::Tensor room;
  for (int pass = 0; pass < 2; ++pass) {  // the first asks for the room needed
    C10_CUDA_CHECK(cub::DeviceRadixSort::SortPairs(
        pass == 0 ? nullptr : room.data_ptr(), bytes, from, to, rows.const_data_ptr<int32_t>(),
        order.data_ptr<int32_t>(), static_cast<int>(keys.size(0)), 0, bits, stream));
    if (pass == 0) {
      room = at::empty({static_cast<int64_t>(bytes)}, keys.options().dtype(at::kByte));
    }
  }
  return {sorted, order};
#endif
}

// `checked`: at most kMostChecked tensors of the image's dtype that must be finite, by `names`.
template <typename T>
LatticeTensors build_device_lattice(const at::Tensor& image_in, double sigma_xy, double sigma_rgb,
                                    int64_t normalization, at::TensorList checked,
                                    const std::vector<std::string>& names) {
  const at::Tensor image = image_in.contiguous();
  const int64_t height = image.size(1), width = image.size(2), pixels = height * width;
  check_pixel_count(height, width);
  TORCH_CHECK_VALUE(checked.size() <= kMostChecked && names.size() == checked.size(),
                    "finite: expected at most ", kMostChecked, " tensors and their names.");
  const int64_t tiles_x = (width + kDeviceTile - 1) / kDeviceTile;
  const int64_t tiles = tiles_x * ((height + kDeviceTile - 1) / kDeviceTile);
  const auto of = [&](at::ScalarType dtype) { return image.options().dtype(dtype); };

  // Ranges; NaN and infinity show in them.
  auto [low, high] = at::aminmax(image.reshape({3, -1}), 1);
  std::vector<at::Tensor> lows = {low}, highs = {high};
  for (const at::Tensor& t : checked) {
    auto [least, most] = at::aminmax(t.to(image.scalar_type()));
    lows.push_back(least.reshape(1));
    highs.push_back(most.reshape(1));
  }
  low = at::cat(lows);
  high = at::cat(highs);
  at::Tensor layout_room = at::zeros({static_cast<int64_t>(sizeof(KeyLayout))}, of(at::kByte));
  at::Tensor facts_room =
      at::empty({static_cast<int64_t>(sizeof(BuildFacts) / sizeof(int64_t))}, of(at::kLong));
  auto* layout = reinterpret_cast<KeyLayout*>(layout_room.data_ptr<uint8_t>());
  auto* facts = reinterpret_cast<BuildFacts*>(facts_room.data_ptr<int64_t>());
  launch(1, FindLayout<T>{low.const_data_ptr<T>(), high.const_data_ptr<T>(),
                          static_cast<int>(checked.size()), height, width, sigma_xy, sigma_rgb,
                          layout, facts});

  // Tiles.
  at::Tensor records = at::empty({pixels, 8}, image.options());
  at::Tensor slot_keys = at::empty({tiles * kTileKeys}, of(at::kLong));
  const at::Tensor slot_begin = at::empty({tiles * kTileKeys}, of(at::kShort));
  const at::Tensor slot_pairs = at::empty_like(slot_begin);
  const at::Tensor slot_ranks = at::empty_like(slot_begin);
  const at::Tensor counts = at::empty({tiles}, of(at::kInt));
  FindTile<T> find;
  find.image = image.const_data_ptr<T>();
  find.height = static_cast<int>(height);
  find.width = static_cast<int>(width);
  find.tiles_x = static_cast<int>(tiles_x);
  find.inverse_xy = static_cast<T>(1.0 / sigma_xy);
  find.inverse_rgb = static_cast<T>(1.0 / sigma_rgb);
  double scale[kFeatures];
  embedding_scales(scale);
  for (int i = 0; i < kFeatures; ++i) find.scale[i] = static_cast<T>(scale[i]);
  find.layout = layout;
  find.facts = facts;
  auto* record = reinterpret_cast<Record<T>*>(records.data_ptr<T>());
  find.slots = {slot_keys.data_ptr<int64_t>(),  slot_begin.data_ptr<int16_t>(),
                slot_pairs.data_ptr<int16_t>(), slot_ranks.data_ptr<int16_t>(),
                counts.data_ptr<int32_t>(),     record};
  launch_blocks(tiles, BlockShape{kThreads, 1}, find);
  const at::Tensor tile_rows = at::zeros({tiles + 1}, of(at::kInt));
  tile_rows.slice(0, 1).copy_(counts.cumsum(0, at::kInt));
  launch(1, CountRows{tile_rows.const_data_ptr<int32_t>() + tiles, facts});

  // The one wait.
  const at::Tensor here = facts_room.to(at::kCPU);
  const auto& found = *reinterpret_cast<const BuildFacts*>(here.const_data_ptr<int64_t>());
  for (size_t i = 0; i < names.size(); ++i) {
    TORCH_CHECK_VALUE(found.finite[1 + i], names[i],
                      ": NaN or infinity found; all values must be finite.");
  }
  TORCH_CHECK_VALUE(found.finite[0], "image: NaN or infinity found; all values must be finite.");
  check_layout_fits(found.fits, height, width, sigma_xy, sigma_rgb);
  const int64_t rows = found.rows;

  // One numbering of the tiles' rows.
  at::Tensor keys = at::empty({rows}, of(at::kLong)), order = at::empty({rows}, of(at::kInt));
  launch_blocks(tiles, BlockShape{kThreads, 1},
                GatherKeys{slot_keys.const_data_ptr<int64_t>(),
                           tile_rows.const_data_ptr<int32_t>(), keys.data_ptr<int64_t>(),
                           order.data_ptr<int32_t>()});
  slot_keys = at::Tensor();
  std::tie(keys, order) = sort_rows(keys, order, static_cast<int>(found.bits));

  at::Tensor header = at::zeros({kHeaderSize}, at::TensorOptions().dtype(at::kLong));
  int64_t* slot = header.data_ptr<int64_t>();
  slot[kSlotMagic] = kDeviceMagic;
  slot[kSlotHeight] = height;
  slot[kSlotWidth] = width;
  slot[kSlotBytes] = sizeof(T);
  slot[kSlotNormalization] = normalization;
  slot[kDeviceRows] = rows;
  int64_t size = 0;
  auto take = [&](int name, int64_t count) {
    slot[name] = size;
    size += (count + 3) / 4 * 4;
  };
  take(kDeviceCount, 1);
  take(kDeviceCorners, pixels * kVertices);
  take(kDeviceTileRows, tiles + 1);
  take(kDevicePairBegin, rows + 1);
  take(kDevicePairs, (pixels * kVertices + 1) / 2);
  take(kDeviceVertexBegin, rows + 1);
  take(kDeviceOrder, rows);
  take(kDeviceNeighbours, rows * kVertices * 2);
  slot[kSlotIndexSize] = size;
  at::Tensor index = at::empty({size}, of(at::kInt));
  int32_t* base = index.data_ptr<int32_t>();
  index.narrow(0, slot[kDeviceTileRows], tiles + 1).copy_(tile_rows);
  index.narrow(0, slot[kDeviceOrder], rows).copy_(order);
  index.narrow(0, slot[kDeviceNeighbours], rows * kVertices * 2).fill_(-1);

  at::Tensor numbers = at::empty({rows}, of(at::kInt));
  launch(rows, MarkFirst{keys.const_data_ptr<int64_t>(), numbers.data_ptr<int32_t>()});
  numbers = numbers.cumsum(0, at::kInt);
  const at::Tensor row_vertex = at::empty({rows}, of(at::kInt));
  const at::Tensor unique = at::empty({rows}, of(at::kLong));
  launch(rows, NumberVertices{keys.const_data_ptr<int64_t>(), numbers.const_data_ptr<int32_t>(),
                              order.const_data_ptr<int32_t>(), rows, unique.data_ptr<int64_t>(),
                              row_vertex.data_ptr<int32_t>(), base + slot[kDeviceVertexBegin],
                              base + slot[kDeviceCount]});
  launch_rows(rows, kVertices,
              FindNeighbours{unique.const_data_ptr<int64_t>(), base + slot[kDeviceCount], layout,
                             base + slot[kDeviceNeighbours], rows});
  launch_blocks(tiles, BlockShape{kThreads, 1},
                WriteTile{find.height, find.width, find.tiles_x,
                          slot_begin.const_data_ptr<int16_t>(),
                          slot_pairs.const_data_ptr<int16_t>(),
                          slot_ranks.const_data_ptr<int16_t>(), base + slot[kDeviceTileRows],
                          row_vertex.const_data_ptr<int32_t>(), base + slot[kDevicePairBegin],
                          reinterpret_cast<uint16_t*>(base + slot[kDevicePairs]),
                          base + slot[kDeviceCorners]});
  if (normalization != kNone) {
    DeviceLattice<T> plain = view_device_lattice<T>(header, records, index);
    plain.normalization = kNone;
    const at::Tensor ones = at::ones({1, height, width}, image.options());
    // The filter restores the kernel's height where nothing is normalised; row sums do not.
    const at::Tensor sums = device_lattice_filter<T, 1>(ones, plain, false) * (33.0 / 32.0);
    launch(pixels, FoldNorm<T>{record, sums.const_data_ptr<T>(), static_cast<int>(normalization)});
  }
  return {header, records, index};
}

}  // namespace crf
}  // namespace wsis_d2
