// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
// The lattice on a GPU: vertex keys are sorted, not hashed. Pixels stay row by row; a vertex gathers
// from the (pixel, corner) pairs sorted by vertex, long rows in pieces of kPiece.
#pragma once

#include <ATen/ATen.h>

#include <tuple>

#include "dense_crf/device/launch.h"
#include "dense_crf/lattice_build.h"

namespace wsis_d2 {
namespace crf {

constexpr int64_t kPiece = 64;

// Slots of a GPU lattice's header beyond kSlotNormalization; offsets into its index tensor.
enum DeviceHeader : int {
  kDeviceVertices = kSlotVertices,
  kDevicePieces = kSlotExtras,
  kDeviceCorners = kSlotTileGroups,  // [N][6]: vertex of each corner
  kDevicePairs,                      // [6 N]: pixel * 6 + corner, sorted by vertex
  kDevicePieceBegin,                 // [pieces + 1]: into the pairs
  kDeviceVertexPiece,                // [M + 1]: into the pieces
  kDeviceNeighbours,                 // [6][M][2]: before and after along each axis; -1: none
};
constexpr int64_t kDeviceMagic = kMagic ^ 1;

template <typename T>
struct DeviceLattice {
  int64_t height, width, pixels, vertices, pieces;
  int normalization;
  const Record<T>* records;
  const int32_t* corners;
  const int32_t* pairs;
  const int32_t* piece_begin;
  const int32_t* vertex_piece;
  const int32_t* neighbours;
};

template <typename T>
struct FindSimplex {
  const T* image;
  Record<T>* records;
  int64_t* keys;  // [N][6]
  int64_t width, pixels;
  T inverse_xy, inverse_rgb;
  KeyLayout layout;
  T scale[kFeatures];

  WSIS_DEVICE void operator()(int64_t i) const {
    SimplexBatch<T, 1> simplex;
    simplex.feature[0][0] = static_cast<T>(i % width) * inverse_xy;
    simplex.feature[1][0] = static_cast<T>(i / width) * inverse_xy;
    for (int c = 0; c < 3; ++c) simplex.feature[2 + c][0] = image[c * pixels + i] * inverse_rgb;
    simplex.find(layout, scale);
    uint64_t key[kVertices];
    vertex_keys(layout, simplex.key[0], simplex.order[0], key);
    Record<T> record{};
    for (int k = 0; k < kVertices; ++k) {
      record.w[k] = simplex.weight[k][0];
      keys[i * kVertices + k] = static_cast<int64_t>(key[k]);
    }
    record.norm = 1;
    records[i] = record;
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

// partial[piece][label] = sum over the piece's pairs of weight * values[pixel][label]
template <typename T>
struct SplatPieces {
  DeviceLattice<T> lattice;
  const T* values;
  T* partial;
  int64_t labels;
  bool norm;
  T factor;

  WSIS_DEVICE void operator()(int64_t i) const {
    const int64_t piece = i / labels, label = i % labels;
    T sum = 0;
    for (int32_t j = lattice.piece_begin[piece]; j < lattice.piece_begin[piece + 1]; ++j) {
      const int32_t pair = lattice.pairs[j], pixel = pair / kVertices;
      const Record<T>& record = lattice.records[pixel];
      const T weight = norm ? record.w[pair % kVertices] * record.norm : record.w[pair % kVertices];
      sum += weight * values[static_cast<int64_t>(pixel) * labels + label];
    }
    partial[i] = sum * factor;
  }
};

template <typename T>
struct SplatVertices {
  DeviceLattice<T> lattice;
  const T* partial;
  T* sums;
  int64_t labels;

  WSIS_DEVICE void operator()(int64_t i) const {
    const int64_t vertex = i / labels, label = i % labels;
    T sum = 0;
    for (int64_t p = lattice.vertex_piece[vertex]; p < lattice.vertex_piece[vertex + 1]; ++p) {
      sum += partial[p * labels + label];
    }
    sums[i] = sum;
  }
};

template <typename T>
struct BlurAxis {
  const int32_t* neighbours;  // [M][2] of the axis
  const T* from;
  T* to;
  int64_t labels;

  WSIS_DEVICE void operator()(int64_t i) const {
    const int64_t vertex = i / labels, label = i % labels;
    const int32_t before = neighbours[2 * vertex], after = neighbours[2 * vertex + 1];
    T sides = 0;
    if (before >= 0) sides += from[static_cast<int64_t>(before) * labels + label];
    if (after >= 0) sides += from[static_cast<int64_t>(after) * labels + label];
    to[i] = from[i] + T(0.5) * sides;
  }
};

template <typename T>
struct Slice {
  DeviceLattice<T> lattice;
  const T* sums;
  T* messages;  // [N][labels]
  int64_t labels;
  bool norm;

  WSIS_DEVICE void operator()(int64_t i) const {
    const int64_t pixel = i / labels, label = i % labels;
    const Record<T>& record = lattice.records[pixel];
    const int32_t* corner = lattice.corners + pixel * kVertices;
    T sum = 0;
    for (int k = 0; k < kVertices; ++k) {
      sum += record.w[k] * sums[static_cast<int64_t>(corner[k]) * labels + label];
    }
    messages[i] = norm ? sum * record.norm : sum;
  }
};

// values (N, labels) -> K values (N, labels), times `factor`.
template <typename T>
at::Tensor device_lattice_filter(const DeviceLattice<T>& lattice, const at::Tensor& values,
                                 bool transpose, T factor) {
  const int64_t labels = values.size(1);
  const bool after = lattice.normalization == kAfter;
  at::Tensor here = at::empty({lattice.vertices, labels}, values.options());
  {
    at::Tensor partial = at::empty({lattice.pieces, labels}, values.options());
    launch(lattice.pieces * labels,
           SplatPieces<T>{lattice, values.const_data_ptr<T>(), partial.template data_ptr<T>(),
                          labels, after && !transpose, factor});
    launch(lattice.vertices * labels,
           SplatVertices<T>{lattice, partial.template const_data_ptr<T>(),
                            here.template data_ptr<T>(), labels});
  }
  at::Tensor other = at::empty_like(here);
  for (int i = 0; i < kVertices; ++i) {
    const int axis = transpose ? kVertices - 1 - i : i;
    launch(lattice.vertices * labels,
           BlurAxis<T>{lattice.neighbours + axis * lattice.vertices * 2,
                       here.template const_data_ptr<T>(), other.template data_ptr<T>(), labels});
    std::swap(here, other);
  }
  at::Tensor result = at::empty_like(values);
  launch(lattice.pixels * labels,
         Slice<T>{lattice, here.template const_data_ptr<T>(), result.template data_ptr<T>(),
                  labels, after && transpose});
  return result;
}

template <typename T>
DeviceLattice<T> view_device_lattice(const at::Tensor& header, const at::Tensor& records,
                                     const at::Tensor& index) {
  const int64_t* slot = header.const_data_ptr<int64_t>();
  TORCH_CHECK_VALUE(slot[kSlotMagic] == kDeviceMagic,
                    "header: the lattice was not built on this kind of device.");
  TORCH_CHECK_VALUE(slot[kSlotBytes] == sizeof(T), "header: the lattice was built for ",
                    slot[kSlotBytes] * 8, "-bit numbers, found ", sizeof(T) * 8, "-bit ones.");
  const int64_t pixels = slot[kSlotHeight] * slot[kSlotWidth];
  TORCH_CHECK_VALUE(records.dim() == 2 && records.size(0) == pixels && records.size(1) == 8 &&
                        records.is_contiguous(),
                    "records: they do not belong to this header.");
  TORCH_CHECK_VALUE(index.dim() == 1 && index.scalar_type() == at::kInt && index.is_contiguous() &&
                        index.size(0) == slot[kSlotIndexSize],
                    "index: it does not belong to this header.");
  const int32_t* base = index.const_data_ptr<int32_t>();
  return {slot[kSlotHeight],
          slot[kSlotWidth],
          pixels,
          slot[kDeviceVertices],
          slot[kDevicePieces],
          static_cast<int>(slot[kSlotNormalization]),
          reinterpret_cast<const Record<T>*>(records.const_data_ptr<T>()),
          base + slot[kDeviceCorners],
          base + slot[kDevicePairs],
          base + slot[kDevicePieceBegin],
          base + slot[kDeviceVertexPiece],
          base + slot[kDeviceNeighbours]};
}

template <typename T>
LatticeTensors build_device_lattice(const at::Tensor& image_in, double sigma_xy, double sigma_rgb,
                                    int64_t normalization) {
  const at::Tensor image = image_in.contiguous();
  const int64_t height = image.size(1), width = image.size(2), pixels = height * width;
  check_pixel_count(height, width);
  // One transfer: the colours' ranges; NaN and infinity show in them.
  const at::Tensor flat = image.reshape({3, -1});
  const at::Tensor range =
      at::cat({flat.amin(1), flat.amax(1)}).to(at::kCPU, at::kDouble).contiguous();
  const double* ends = range.const_data_ptr<double>();
  for (int i = 0; i < 6; ++i) {
    TORCH_CHECK_VALUE(std::isfinite(ends[i]),
                      "image: it holds NaN or infinity; all values must be finite.");
  }
  FindSimplex<T> find;
  find.layout = checked_layout(height, width, ends, ends + 3, sigma_xy, sigma_rgb);
  double scale[kFeatures];
  embedding_scales(scale);
  for (int i = 0; i < kFeatures; ++i) find.scale[i] = static_cast<T>(scale[i]);
  const auto longs = image.options().dtype(at::kLong);
  at::Tensor records = at::empty({pixels, 8}, image.options());
  at::Tensor keys = at::empty({pixels * kVertices}, longs);
  find.image = image.template const_data_ptr<T>();
  find.records = reinterpret_cast<Record<T>*>(records.template data_ptr<T>());
  find.keys = keys.template data_ptr<int64_t>();
  find.width = width;
  find.pixels = pixels;
  find.inverse_xy = static_cast<T>(1.0 / sigma_xy);
  find.inverse_rgb = static_cast<T>(1.0 / sigma_rgb);
  launch(pixels, find);

  // Equal keys become neighbours; a stable sort keeps their pixels in order.
  auto [sorted, pairs] = keys.sort(/*stable=*/true, /*dim=*/0, /*descending=*/false);
  const at::Tensor fresh = at::ones({pixels * kVertices}, longs);
  if (pixels > 0) {
    fresh.slice(0, 1).copy_(sorted.slice(0, 1).ne(sorted.slice(0, 0, -1)));
  }
  const at::Tensor id = fresh.cumsum(0) - 1;  // vertex of each sorted pair
  const at::Tensor begin = fresh.nonzero().squeeze(1);  // first pair of each vertex
  const int64_t vertices = begin.size(0);
  const at::Tensor unique = sorted.index_select(0, begin);
  const at::Tensor corners = at::empty({pixels * kVertices}, longs);
  corners.scatter_(0, pairs, id);
  // Rows of pairs, cut into pieces.
  const at::Tensor end =
      at::cat({begin.slice(0, 1), at::full({1}, pixels * kVertices, longs)});
  const at::Tensor pieces_of = (end - begin + (kPiece - 1)).floor_divide(kPiece);
  const at::Tensor vertex_piece = at::cat({at::zeros({1}, longs), pieces_of.cumsum(0)});
  const at::Tensor owner = at::repeat_interleave(pieces_of);
  const int64_t pieces = owner.size(0);
  const at::Tensor piece_begin =
      begin.index_select(0, owner) +
      (at::arange(pieces, longs) - vertex_piece.index_select(0, owner)) * kPiece;
  std::vector<at::Tensor> neighbours;
  for (int axis = 0; axis < kVertices; ++axis) {
    const int64_t step = static_cast<int64_t>(find.layout.step[axis]);
    std::vector<at::Tensor> sides;
    for (const int64_t sign : {-1, 1}) {
      const at::Tensor wanted =
          unique + static_cast<int64_t>(static_cast<uint64_t>(step) * static_cast<uint64_t>(sign));
      const at::Tensor place = at::searchsorted(unique, wanted).clamp_max(vertices - 1);
      sides.push_back(at::where(unique.index_select(0, place).eq(wanted), place,
                                at::full({1}, -1, longs)));
    }
    neighbours.push_back(at::stack(sides, 1).reshape(-1));
  }

  at::Tensor header = at::zeros({kHeaderSize}, at::TensorOptions().dtype(at::kLong));
  int64_t* slot = header.data_ptr<int64_t>();
  slot[kSlotMagic] = kDeviceMagic;
  slot[kSlotHeight] = height;
  slot[kSlotWidth] = width;
  slot[kSlotBytes] = sizeof(T);
  slot[kSlotNormalization] = normalization;
  slot[kDeviceVertices] = vertices;
  slot[kDevicePieces] = pieces;
  std::vector<at::Tensor> parts;
  int64_t size = 0;
  auto take = [&](int name, const at::Tensor& part) {
    slot[name] = size;
    size += part.size(0);
    parts.push_back(part.to(at::kInt));
  };
  take(kDeviceCorners, corners);
  take(kDevicePairs, pairs);
  take(kDevicePieceBegin, at::cat({piece_begin, at::full({1}, pixels * kVertices, longs)}));
  take(kDeviceVertexPiece, vertex_piece);
  take(kDeviceNeighbours, at::cat(neighbours));
  slot[kSlotIndexSize] = size;
  at::Tensor index = at::cat(parts);
  if (normalization != kNone) {
    DeviceLattice<T> plain = view_device_lattice<T>(header, records, index);
    plain.normalization = kNone;
    const at::Tensor sums =
        device_lattice_filter<T>(plain, at::ones({pixels, 1}, image.options()), false, T(1));
    launch(pixels, FoldNorm<T>{find.records, sums.template const_data_ptr<T>(),
                               static_cast<int>(normalization)});
  }
  return {header, records, index};
}

}  // namespace crf
}  // namespace wsis_d2
