// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
// The kernels for avx2; every header comes before the target pragma, so that no shared inline
// function is compiled for instructions that another processor lacks.
#include "dense_crf/pass.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>
#include <vector>

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif
namespace wsis_d2 {
namespace crf {
namespace {
#include "dense_crf/kernels_simplex.h"
}  // namespace
}  // namespace crf
}  // namespace wsis_d2
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define WSIS_CRF_BYTES 32

namespace wsis_d2 {
namespace crf {
namespace {
#include "dense_crf/kernels_simd.h"
#include "dense_crf/kernels_tiles.h"
#include "dense_crf/kernels_lattice.h"
#include "dense_crf/kernels_spatial.h"
#include "dense_crf/kernels_pass.h"
}  // namespace

Kernels<float> kernels_avx2_float() { return make_kernels<float>("avx2"); }
Kernels<double> kernels_avx2_double() { return make_kernels<double>("avx2"); }

}  // namespace crf
}  // namespace wsis_d2

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif  // __x86_64__
