// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
// The kernels for one x86 instruction set. Included by kernels_avx*.cpp, which define WSIS_CRF_NAME,
// WSIS_CRF_TARGET and WSIS_CRF_BYTES (of a register). Every header comes before the target pragma,
// so that no shared inline function is compiled for instructions that another processor lacks.
#include "dense_crf/kernels_includes.h"

#if defined(__x86_64__)
#define WSIS_PRAGMA_(text) _Pragma(#text)
#define WSIS_PRAGMA(text) WSIS_PRAGMA_(text)
#if defined(__clang__)
#define WSIS_BEGIN_TARGET(set) \
  WSIS_PRAGMA(clang attribute push(__attribute__((target(set))), apply_to = function))
#define WSIS_END_TARGET WSIS_PRAGMA(clang attribute pop)
#else
#define WSIS_BEGIN_TARGET(set) WSIS_PRAGMA(GCC push_options) WSIS_PRAGMA(GCC target(set))
#define WSIS_END_TARGET WSIS_PRAGMA(GCC pop_options)
#endif
#define WSIS_JOIN_(a, b) a##b
#define WSIS_JOIN(a, b) WSIS_JOIN_(a, b)
#define WSIS_TEXT_(name) #name
#define WSIS_TEXT(name) WSIS_TEXT_(name)

// Without fused multiply-add, see kernels_simplex.h.
WSIS_BEGIN_TARGET("avx2")
namespace wsis_d2 {
namespace crf {
namespace {
#include "dense_crf/kernels_simplex.h"
}  // namespace
}  // namespace crf
}  // namespace wsis_d2
WSIS_END_TARGET

WSIS_BEGIN_TARGET(WSIS_CRF_TARGET)
namespace wsis_d2 {
namespace crf {
namespace {
#include "dense_crf/kernels_simd.h"
#include "dense_crf/kernels_tiles.h"
#include "dense_crf/kernels_lattice.h"
#include "dense_crf/kernels_spatial.h"
#include "dense_crf/kernels_pass.h"
}  // namespace

Kernels<float> WSIS_JOIN(WSIS_JOIN(kernels_, WSIS_CRF_NAME), _float)() {
  return make_kernels<float>(WSIS_TEXT(WSIS_CRF_NAME));
}
Kernels<double> WSIS_JOIN(WSIS_JOIN(kernels_, WSIS_CRF_NAME), _double)() {
  return make_kernels<double>(WSIS_TEXT(WSIS_CRF_NAME));
}

}  // namespace crf
}  // namespace wsis_d2
WSIS_END_TARGET
#endif  // __x86_64__
