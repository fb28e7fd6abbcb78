// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
// From a pixel's features to the simplex that holds it: Adams et al. 2010, section 3.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "dense_crf/lattice.h"

#if defined(__CUDACC__)
#define WSIS_HOST_DEVICE __host__ __device__
#else
#define WSIS_HOST_DEVICE
#endif

namespace wsis_d2 {
namespace crf {

// a * b, rounded, whatever it is added to: nvcc would fuse the two, which gives other lattices than
// the CPU's. (The CPU's own kernels are compiled for instruction sets without fused ones.)
template <typename T>
WSIS_HOST_DEVICE inline T product(T a, T b) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(T) == 8) {
    return __dmul_rn(a, b);
  } else {
    return __fmul_rn(a, b);
  }
#elif defined(WSIS_CRF_HOST_CHECK)
  T c = a * b;
  asm volatile("" : "+x"(c));  // stands for __fmul_rn where a compiler is told to fuse
  return c;
#else
  return a * b;
#endif
}

// Lattice coordinates packed into 64 bits: `bits[i]` for each of the first five (the sixth follows,
// as they sum to 0), offset so that none is negative.
struct KeyLayout {
  int shift[kFeatures];
  int64_t low[kFeatures];
  uint64_t ones = 0;            // 1 in every field
  uint64_t six[kVertices];      // 6 in field i; the sixth coordinate has no field
  uint64_t step[kVertices];     // to the next vertex along an axis (modulo 2^64)
  int total_bits = 0;
};

// Scales of the embedding: standard deviation 1 in feature space becomes that of the blur.
WSIS_HOST_DEVICE inline void embedding_scales(double* scale) {
  for (int i = 0; i < kFeatures; ++i) {
    scale[i] = std::sqrt(2.0 / 3.0) * kVertices / std::sqrt((i + 1.0) * (i + 2.0));
  }
}

// Least and greatest features of an image whose colours lie in [low[c], high[c]].
template <typename T>
WSIS_HOST_DEVICE inline void feature_ranges(int64_t height, int64_t width, const T* low,
                                            const T* high, double sigma_xy, double sigma_rgb,
                                            double* least, double* most) {
  least[0] = least[1] = 0;
  most[0] = (width - 1) / sigma_xy;
  most[1] = (height - 1) / sigma_xy;
  for (int c = 0; c < 3; ++c) {
    least[2 + c] = static_cast<double>(low[c]) / sigma_rgb;
    most[2 + c] = static_cast<double>(high[c]) / sigma_rgb;
  }
}

// Fits `layout` to features in [low, high]; false if 64 bits do not suffice.
WSIS_HOST_DEVICE inline bool fit_layout(const double* low, const double* high, KeyLayout& layout) {
  double scale[kFeatures];
  embedding_scales(scale);
  int shift = 0;
  for (int i = 0; i < kVertices - 1; ++i) {
    // elevated[i] = sum over j >= i of f[j] scale[j], minus i f[i - 1] scale[i - 1]
    double least = 0, most = 0;
    for (int j = i; j < kFeatures; ++j) {
      least += low[j] * scale[j];
      most += high[j] * scale[j];
    }
    if (i > 0) {
      least -= i * high[i - 1] * scale[i - 1];
      most -= i * low[i - 1] * scale[i - 1];
    }
    least = std::floor(least) - 26;  // rounding (6), the correction (6), vertices and steps (12)
    most = std::ceil(most) + 26;
    if (!(most - least < 1e15)) return false;
    int bits = 1;
    while (bits < 62 && (int64_t(1) << bits) <= static_cast<int64_t>(most - least)) ++bits;
    layout.shift[i] = shift;
    layout.low[i] = static_cast<int64_t>(least);
    shift += bits;
    if (shift > 64 || std::abs(least) > 1e9 || std::abs(most) > 1e9) return false;
  }
  layout.total_bits = shift;
  layout.ones = 0;
  for (int i = 0; i < kFeatures; ++i) layout.ones += uint64_t(1) << layout.shift[i];
  for (int i = 0; i < kVertices; ++i) {
    layout.six[i] = i < kFeatures ? uint64_t(6) << layout.shift[i] : 0;
    layout.step[i] = layout.six[i] - layout.ones;  // +5 along the axis, -1 along the others
  }
  return true;
}

// Simplices of kLanes pixels at once (plain loops over lanes; compilers vectorise them).
template <typename T, int kLanes>
struct SimplexBatch {
  T feature[kFeatures][kLanes];
  uint64_t key[kLanes];       // the vertex of remainder 0
  uint32_t order[kLanes];     // rank of coordinate i in bits [3 i, 3 i + 3)
  T weight[kVertices][kLanes];

  WSIS_HOST_DEVICE void find(const KeyLayout& layout, const T* scale) {
    T elevated[kVertices][kLanes], rest[kVertices][kLanes];
    int32_t base[kVertices][kLanes], rank[kVertices][kLanes], sum[kLanes];
    T running[kLanes];
    for (int n = 0; n < kLanes; ++n) running[n] = 0;
    for (int j = kFeatures; j > 0; --j) {
      for (int n = 0; n < kLanes; ++n) {
        const T f = product(feature[j - 1][n], scale[j - 1]);
        elevated[j][n] = running[n] - product(T(j), f);
        running[n] += f;
      }
    }
    for (int n = 0; n < kLanes; ++n) {
      elevated[0][n] = running[n];
      sum[n] = 0;
    }
    for (int i = 0; i < kVertices; ++i) {
      for (int n = 0; n < kLanes; ++n) {
        const T scaled = product(elevated[i][n], T(1.0 / 6.0)) + T(0.5);
        int32_t whole = static_cast<int32_t>(scaled);
        whole -= static_cast<T>(whole) > scaled;
        base[i][n] = whole;
        sum[n] += whole;
        rest[i][n] = elevated[i][n] - product(T(6), static_cast<T>(whole));
        rank[i][n] = 0;
      }
    }
    for (int i = 0; i < kVertices; ++i) {
      for (int j = i + 1; j < kVertices; ++j) {
        for (int n = 0; n < kLanes; ++n) {
          const int32_t less = rest[i][n] < rest[j][n];
          rank[i][n] += less;
          rank[j][n] += 1 - less;
        }
      }
    }
    // Bring the base onto the plane of sum 0.
    for (int i = 0; i < kVertices; ++i) {
      for (int n = 0; n < kLanes; ++n) {
        const int32_t shifted = rank[i][n] + sum[n];
        const int32_t under = shifted < 0, over = shifted > kFeatures;
        rank[i][n] = shifted + 6 * (under - over);
        base[i][n] += under - over;
        rest[i][n] = elevated[i][n] - product(T(6), static_cast<T>(base[i][n]));
      }
    }
    for (int n = 0; n < kLanes; ++n) {
      key[n] = 0;
      order[n] = 0;
    }
    for (int i = 0; i < kVertices; ++i) {
      for (int n = 0; n < kLanes; ++n) order[n] |= static_cast<uint32_t>(rank[i][n]) << (3 * i);
    }
    for (int i = 0; i < kFeatures; ++i) {
      const int32_t low = static_cast<int32_t>(layout.low[i]);
      for (int n = 0; n < kLanes; ++n) {
        key[n] += static_cast<uint64_t>(static_cast<uint32_t>(6 * base[i][n] - low))
                  << layout.shift[i];
      }
    }
    // sorted[r]: the remainder of rank r; weights are differences of neighbours.
    T sorted[kVertices][kLanes];
    for (int r = 0; r < kVertices; ++r) {
      for (int n = 0; n < kLanes; ++n) sorted[r][n] = 0;
      for (int i = 0; i < kVertices; ++i) {
        for (int n = 0; n < kLanes; ++n) sorted[r][n] += rank[i][n] == r ? rest[i][n] : T(0);
      }
    }
    for (int k = 1; k < kVertices; ++k) {
      for (int n = 0; n < kLanes; ++n) {
        weight[k][n] = product(sorted[5 - k][n] - sorted[6 - k][n], T(1.0 / 6.0));
      }
    }
    for (int n = 0; n < kLanes; ++n) {
      weight[0][n] = T(1) + product(sorted[5][n] - sorted[0][n], T(1.0 / 6.0));
    }
  }
};

// Keys of a simplex's six vertices: vertex k has the coordinates base + k, less 6 where the rank is
// above 5 - k.
WSIS_HOST_DEVICE inline void vertex_keys(const KeyLayout& layout, uint64_t base, uint32_t order, uint64_t* keys) {
  uint64_t by_rank[kVertices] = {};
  for (int i = 0; i < kVertices; ++i) by_rank[(order >> (3 * i)) & 7] = layout.six[i];
  keys[0] = base;
  for (int k = 1; k < kVertices; ++k) keys[k] = keys[k - 1] + layout.ones - by_rank[6 - k];
}

}  // namespace crf
}  // namespace wsis_d2
