// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
// What one pass over the pixels does, and the table of its kernels for one instruction set.
//
// Label-wise arrays are cut into chunks of at most 32 labels (16 where there are more than 32), each
// padded to a multiple of 8; a chunk's array holds all rows (pixels, vertices or grid cells) before
// the next chunk's begins. Pixels are in the order of the lattice's records.
#pragma once

#include <cstdint>
#include <vector>

#include "dense_crf/lattice.h"
#include "dense_crf/simplex.h"
#include "dense_crf/spatial.h"

namespace wsis_d2 {
namespace crf {

struct Chunk {
  int64_t first;   // first label
  int64_t labels;  // labels held
  int blocks;      // row width / 8
  int64_t offset;  // padded labels of the chunks before
  int64_t width() const { return 8 * blocks; }
};

inline std::vector<Chunk> make_chunks(int64_t labels) {
  std::vector<Chunk> chunks;
  const int64_t step = labels <= 32 ? 32 : 16;
  int64_t offset = 0;
  for (int64_t first = 0; first < labels; first += step) {
    const int64_t held = labels - first < step ? labels - first : step;
    const int blocks = static_cast<int>((held + 7) / 8);
    chunks.push_back({first, held, blocks, offset});
    offset += 8 * blocks;
  }
  return chunks;
}

inline int64_t padded_labels(int64_t labels) { return (labels + 7) / 8 * 8; }

enum class Mode {
  kFirst,     // softmax of the logits, splat
  kForward,   // slice, add the logits, softmax, splat
  kMessage,   // slice, write messages to `output`
  kRaw,       // splat `logits` as they are
  kBackward,  // slice gradients, backward of softmax at `q`, splat
};

template <typename T>
struct Pass {
  const Lattice<T>* lattice = nullptr;
  const SpatialPlan<T>* plan = nullptr;  // nullptr: no spatial kernel
  bool bilateral = true;
  std::vector<Chunk> chunks;
  int64_t padded = 0;
  Mode mode = Mode::kFirst;

  T* logits = nullptr;       // [pixel]: base-2 logits, or the values of kRaw
  const T* values = nullptr;  // [row of lattice]: blurred
  T* sums = nullptr;          // [row of lattice]: splat into; nullptr: no splat
  const T* grid = nullptr;    // [cell]: filtered
  T* strips = nullptr;        // [cell of strips]: splat into
  T splat_bilateral = 1, splat_spatial = 1;  // factors while splatting
  bool norm_splat = false;    // multiply by the record's norm while splatting (kAfter, forwards)
  bool norm_slice = false;    // ... while slicing (kAfter, transposed)
  T* q_out = nullptr;         // [pixel]: marginals kept
  // kBackward
  const T* q = nullptr;       // [pixel]
  T* grad = nullptr;          // [pixel]: += gradient of the scores
  T weight_bilateral = 0, weight_spatial = 0;
  double* weight_grads = nullptr;  // [band][2]
  // kMessage, and reading and writing images
  const T* scores = nullptr;  // (L, H, W): added to messages; nullptr: nothing
  T* output = nullptr;        // (L, H, W)
  T output_scale = 1;
};

constexpr int kSimplexLanes = 16;

template <typename T>
struct Kernels {
  // One band of a pass.
  void (*pass)(const Pass<T>&, int band);
  // (L, H, W) -> logits; `softmax`: minus the pixel's maximum, times log2 e. False: not finite.
  bool (*read)(const Pass<T>&, const T* scores, bool softmax, int band);
  // [pixel] -> (L, H, W)
  void (*write)(const Pass<T>&, const T* values, int band);
  // sums[home] += its extra rows, for shared vertices [begin, end), one chunk.
  void (*reduce)(const Lattice<T>&, T* sums, int blocks, int64_t begin, int64_t end);
  // Blur the runs of chains[axis] that begin in [begin, end), one chunk, in place.
  void (*blur)(const Lattice<T>&, T* sums, int blocks, int axis, int64_t begin, int64_t end);
  // Grid rows [begin, end) from the strips, one chunk.
  void (*fir)(const SpatialPlan<T>&, const T* strips, T* grid, T* scratch, int blocks,
              int64_t begin, int64_t end);
  // The simplices of some pixels.
  void (*simplices)(SimplexBatch<T, kSimplexLanes>&, const KeyLayout&, const T* scale);
  const char* name;
};

// The best table that this machine's processor can run; WSIS_D2_CPU_CAPABILITY (default, avx2,
// avx512) caps it.
template <typename T>
const Kernels<T>& kernels();

}  // namespace crf
}  // namespace wsis_d2
