// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
#pragma once

#include <string>

#include "dense_crf/pass.h"

namespace wsis_d2 {
namespace crf {

// Which instruction set the CPU's kernels use: default, avx2 or avx512.
inline std::string kernels_name() { return kernels<float>().name; }

}  // namespace crf
}  // namespace wsis_d2
