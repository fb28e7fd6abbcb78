// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
// Rows of 8, 16, 24 or 32 numbers in vector registers. Included by kernels_*.cpp only, after
// WSIS_CRF_ISA (the namespace) and WSIS_CRF_BYTES (bytes of a register) are defined.
//
// GCC's vector extensions (Clang has them too) stand for intrinsics: the same source serves SSE2,
// AVX2, AVX-512 and NEON.

#define WSIS_INLINE inline __attribute__((always_inline))
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define WSIS_HAS_SHUFFLE
#endif
#endif

template <typename T, int N>
struct VectorOf {
  typedef T type __attribute__((vector_size(sizeof(T) * N)));
};
template <typename T, int N>
using Vector = typename VectorOf<T, N>::type;

template <typename V, typename T>
WSIS_INLINE V load_vector(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}
template <typename V, typename T>
WSIS_INLINE void store_vector(T* p, V v) {
  __builtin_memcpy(p, &v, sizeof(V));
}

// 8 rows of 8 numbers, `stride` apart, to their columns.
template <typename T>
WSIS_INLINE void transpose(const T* from, int64_t stride, T (&columns)[8][8]) {
#if defined(WSIS_HAS_SHUFFLE)
  if constexpr (8 * sizeof(T) <= WSIS_CRF_BYTES) {
    using V = Vector<T, 8>;
    V a[8], b[8];
    for (int i = 0; i < 8; ++i) a[i] = load_vector<V>(from + i * stride);
    for (int i = 0; i < 8; i += 2) {
      b[i] = __builtin_shufflevector(a[i], a[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
      b[i + 1] = __builtin_shufflevector(a[i], a[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    for (int i = 0; i < 8; i += 4) {
      for (int k = 0; k < 2; ++k) {
        V* to = a + i + 2 * k;
        to[0] = __builtin_shufflevector(b[i + k], b[i + k + 2], 0, 1, 8, 9, 4, 5, 12, 13);
        to[1] = __builtin_shufflevector(b[i + k], b[i + k + 2], 2, 3, 10, 11, 6, 7, 14, 15);
      }
    }
    for (int i = 0; i < 4; ++i) {
      const V low = __builtin_shufflevector(a[i], a[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
      const V high = __builtin_shufflevector(a[i], a[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
      store_vector(columns[i], low);
      store_vector(columns[i + 4], high);
    }
    return;
  }
#endif
  for (int i = 0; i < 8; ++i) {
    for (int k = 0; k < 8; ++k) columns[k][i] = from[i * stride + k];
  }
}

// 2^x; 0 below 2^-126. Relative error below 2e-7 (float); the library's exp2 for double.
template <int N>
WSIS_INLINE Vector<float, N> exp2_vector(Vector<float, N> x) {
  using V = Vector<float, N>;
  using I = Vector<int32_t, N>;
  using U = Vector<uint32_t, N>;
  const I normal = x >= -126.0f;
  const I high = x > 127.0f;
  x = high ? (V{} + 127.0f) : x;
  const V shifted = x + 12582912.0f;  // 1.5 * 2^23: the integer part comes to the low bits
  const V f = x - (shifted - 12582912.0f);
  V p = f * 1.3276414e-3f + 9.6755279e-3f;
  p = p * f + 5.5507135e-2f;
  p = p * f + 2.4022120e-1f;
  p = p * f + 6.9314694e-1f;
  p = p * f + 1.0000001f;
  const U bits = (U)p + ((U)shifted << 23);  // wraps: the upper bits of `shifted` fall out
  return (V)(bits & (U)normal);
}
template <int N>
WSIS_INLINE Vector<double, N> exp2_vector(Vector<double, N> x) {
  Vector<double, N> y;
  for (int i = 0; i < N; ++i) y[i] = x[i] < -1022.0 ? 0.0 : std::exp2(x[i]);
  return y;
}

template <typename T, int BLOCKS>
struct Row {
  static constexpr int kMost = WSIS_CRF_BYTES / sizeof(T);
  static constexpr int kWidth = 8 * BLOCKS;
  // Odd numbers of blocks would leave 8 over beside registers of 16, half of whose loads would
  // straddle two cache lines: they go into registers of 8.
  static constexpr int kLanes = kWidth % kMost == 0 ? kMost : 8;
  static constexpr int kParts = kWidth / kLanes;
  Vector<T, kLanes> part[kParts];

  WSIS_INLINE static Row zero() {
    Row r;
    for (int i = 0; i < kParts; ++i) r.part[i] = Vector<T, kLanes>{};
    return r;
  }
  WSIS_INLINE static Row load(const T* p) {
    Row r;
    for (int i = 0; i < kParts; ++i) r.part[i] = load_vector<Vector<T, kLanes>>(p + i * kLanes);
    return r;
  }
  WSIS_INLINE void store(T* p) const {
    for (int i = 0; i < kParts; ++i) store_vector(p + i * kLanes, part[i]);
  }
  WSIS_INLINE void add(const Row& b) {
    for (int i = 0; i < kParts; ++i) part[i] += b.part[i];
  }
  // this += b * c
  WSIS_INLINE void fma(const Row& b, T c) {
    for (int i = 0; i < kParts; ++i) part[i] += b.part[i] * c;
  }
  WSIS_INLINE void multiply(const Row& b) {
    for (int i = 0; i < kParts; ++i) part[i] *= b.part[i];
  }
  WSIS_INLINE void scale(T c) {
    for (int i = 0; i < kParts; ++i) part[i] *= c;
  }
  WSIS_INLINE void subtract(T c) {
    for (int i = 0; i < kParts; ++i) part[i] -= c;
  }
  WSIS_INLINE void exp2() {
    for (int i = 0; i < kParts; ++i) part[i] = exp2_vector<kLanes>(part[i]);
  }
  // Adds the row's sum in eight parts: adding those up pixel by pixel would cost more than the rest.
  WSIS_INLINE void add_partial(T* to) const {
    Vector<T, kLanes> sum = part[0];
    for (int i = 1; i < kParts; ++i) sum += part[i];
    if constexpr (kLanes == 16) {
      add_vector(to, half<0>(sum) + half<8>(sum));
    } else {
      add_vector(to, sum);
    }
  }
  WSIS_INLINE T sum() const {
    T v[8] = {};
    add_partial(v);
    return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7]));
  }

 private:
  template <typename V>
  WSIS_INLINE static void add_vector(T* to, V v) {
    V sum;
    __builtin_memcpy(&sum, to, sizeof(V));
    sum += v;
    __builtin_memcpy(to, &sum, sizeof(V));
  }
  template <int FIRST>
  WSIS_INLINE static Vector<T, 8> half(Vector<T, 16> v) {
#if defined(WSIS_HAS_SHUFFLE)
    return __builtin_shufflevector(v, v, FIRST, FIRST + 1, FIRST + 2, FIRST + 3, FIRST + 4,
                                   FIRST + 5, FIRST + 6, FIRST + 7);
#else
    Vector<T, 8> h;
    __builtin_memcpy(&h, reinterpret_cast<const char*>(&v) + FIRST * sizeof(T), sizeof(h));
    return h;
#endif
  }
};
