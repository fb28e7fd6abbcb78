// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
// The kernels for any processor of the architecture.
#include "dense_crf/kernels_includes.h"

#define WSIS_CRF_BYTES 16

namespace wsis_d2 {
namespace crf {
namespace {
#include "dense_crf/kernels_simplex.h"
#include "dense_crf/kernels_simd.h"
#include "dense_crf/kernels_tiles.h"
#include "dense_crf/kernels_lattice.h"
#include "dense_crf/kernels_spatial.h"
#include "dense_crf/kernels_pass.h"
}  // namespace

Kernels<float> kernels_default_float() { return make_kernels<float>("default"); }
Kernels<double> kernels_default_double() { return make_kernels<double>("default"); }

}  // namespace crf
}  // namespace wsis_d2
