// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
// One thread an index: every kernel of the CUDA part is a functor called for 0 <= i < count, which
// writes only what belongs to i. So there are no atomics, results are bitwise reproducible, and
// with WSIS_CRF_HOST_CHECK the same functors run in a loop on the CPU, where they can be tested; where
// WSIS_CRF_HOST_REVERSED is set, from the last index to the first, which must change nothing.
#pragma once

#include <cstdint>

#if defined(WSIS_CRF_HOST_CHECK)

#include <cstdlib>

#define WSIS_DEVICE inline

namespace wsis_d2 {
namespace crf {
template <typename F>
void launch(int64_t count, const F& body) {
  const bool reversed = std::getenv("WSIS_CRF_HOST_REVERSED") != nullptr;
  for (int64_t i = 0; i < count; ++i) body(reversed ? count - 1 - i : i);
}
}  // namespace crf
}  // namespace wsis_d2

#else

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#define WSIS_DEVICE __device__ __forceinline__

namespace wsis_d2 {
namespace crf {

constexpr int kThreads = 256;

template <typename F>
__global__ void __launch_bounds__(kThreads) run_body(int64_t count, F body) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) body(i);
}

// On the current stream of the current device.
template <typename F>
void launch(int64_t count, const F& body) {
  if (count == 0) return;
  const int64_t blocks = (count + kThreads - 1) / kThreads;
  TORCH_CHECK(blocks < (int64_t(1) << 31), "wsis_d2: ", count, " threads exceed one launch.");
  run_body<F><<<static_cast<unsigned>(blocks), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
      count, body);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace crf
}  // namespace wsis_d2

#endif
