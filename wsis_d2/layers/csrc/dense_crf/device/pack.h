// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
// Rows of labels on a GPU: padded to a multiple of kLanes (one label alone: to 1), so that a thread
// loads and stores kLanes of them at once.
#pragma once

#include "dense_crf/device/launch.h"

namespace wsis_d2 {
namespace crf {

constexpr int kLanes = 4;

inline int lanes_of(int64_t labels) { return labels == 1 ? 1 : kLanes; }
inline int64_t row_width(int64_t labels) {
  return labels == 1 ? 1 : (labels + kLanes - 1) / kLanes * kLanes;
}

// A number in [0, 1] in 16 bits, to within 2^-17: a half would lose 2^-12 of what is near 1.
struct Fixed {
  uint16_t bits;
  Fixed() = default;
  WSIS_DEVICE explicit Fixed(float value) : bits(static_cast<uint16_t>(value * 65535.f + 0.5f)) {}
  WSIS_DEVICE explicit operator float() const { return static_cast<float>(bits) * (1.f / 65535.f); }
};

// What marginals are kept and read as, and the dtype of the tensors that hold them.
template <typename T>
struct Kept {
  using type = T;
  static constexpr at::ScalarType kType = at::kDouble;
};
template <>
struct Kept<float> {
  using type = Fixed;
  static constexpr at::ScalarType kType = at::kShort;
};

template <typename T, int W>
struct alignas(sizeof(T) * W) Pack {
  T v[W];

  WSIS_DEVICE static Pack zero() {
    Pack p;
    for (int i = 0; i < W; ++i) p.v[i] = T(0);
    return p;
  }
  // W numbers of type S from p on.
  template <typename S>
  WSIS_DEVICE static Pack load(const S* p) {
    const Pack<S, W> from = *reinterpret_cast<const Pack<S, W>*>(p);
    Pack to;
    for (int i = 0; i < W; ++i) to.v[i] = static_cast<T>(from.v[i]);
    return to;
  }
  template <typename S>
  WSIS_DEVICE void store(S* p) const {
    Pack<S, W> to;
    for (int i = 0; i < W; ++i) to.v[i] = static_cast<S>(v[i]);
    *reinterpret_cast<Pack<S, W>*>(p) = to;
  }
  // this += b * c
  WSIS_DEVICE void fma(const Pack& b, T c) {
    for (int i = 0; i < W; ++i) v[i] += b.v[i] * c;
  }
  WSIS_DEVICE void add(const Pack& b) {
    for (int i = 0; i < W; ++i) v[i] += b.v[i];
  }
  WSIS_DEVICE void scale(T c) {
    for (int i = 0; i < W; ++i) v[i] *= c;
  }
};

// A kernel's weight: a number, or one on the device, which the host does not wait for.
template <typename T>
struct Scalar {
  const T* there;
  T here;
  WSIS_DEVICE T get() const { return there != nullptr ? *there : here; }
  bool is_zero() const { return there == nullptr && here == T(0); }
};

}  // namespace crf
}  // namespace wsis_d2
