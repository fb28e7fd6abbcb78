// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
// How kernels are run. A kernel is a functor; no number is written by two threads of a launch, nor
// read by one while another writes it, except between the phases of a block. So there are no
// atomics, results are bitwise reproducible, and with WSIS_CRF_HOST_CHECK the same functors run in
// loops on the CPU, where they can be tested; where WSIS_CRF_HOST_REVERSED is set, from the last
// thread to the first, which must change nothing.
//
//   launch        body(i) for 0 <= i < count
//   launch_rows   body(row, part): threads side by side share a row
//   launch_both   two of those at once, where neither waits for the other
//   launch_blocks body.phase<p>(place, local, shared), all of a block's threads before the next p,
//                 some phases several times over (Turns)
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <cstdint>

#if defined(WSIS_CRF_HOST_CHECK)
#include <cstdlib>
#include <memory>
#include <vector>
#define WSIS_DEVICE inline
#else
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#define WSIS_DEVICE __device__ __forceinline__
#endif

namespace wsis_d2 {
namespace crf {

constexpr int kThreads = 256;

// The threads of a block: `parts` of a row side by side, as many rows as there is room for.
struct BlockShape {
  int x, y;
};
inline BlockShape block_shape(int parts) {
  const int x = std::max(1, std::min(parts, kThreads));
  return {x, kThreads / x};
}

// A thread of launch_blocks.
struct Place {
  uint32_t block;
  int x, y, width, height;  // the thread's, the block's
  int turn = 0;             // of the phase
  WSIS_DEVICE int thread() const { return y * width + x; }
};

// How often a phase of F comes.
template <typename F>
struct Turns {
  static constexpr int of(int) { return 1; }
};

inline uint32_t checked_blocks(int64_t blocks) {
  TORCH_CHECK(blocks < (int64_t(1) << 31), "wsis_d2: ", blocks, " blocks exceed one launch.");
  return static_cast<uint32_t>(blocks);
}

#if defined(WSIS_CRF_HOST_CHECK)

// Calls body(i) for all i, in either order.
template <typename F>
void in_some_order(int64_t count, const F& body) {
  const bool reversed = std::getenv("WSIS_CRF_HOST_REVERSED") != nullptr;
  for (int64_t i = 0; i < count; ++i) body(reversed ? count - 1 - i : i);
}

template <typename F>
void launch(int64_t count, const F& body) {
  in_some_order(count, body);
}

template <typename F>
void launch_rows(int64_t rows, int parts, const F& body) {
  in_some_order(rows * parts, [&](int64_t i) {
    body(static_cast<uint32_t>(i / parts), static_cast<int>(i % parts));
  });
}

template <typename F, typename G>
void launch_both(int64_t rows, const F& body, int64_t other_rows, const G& other, int parts) {
  in_some_order(2, [&](int64_t i) {
    if (i == 0) launch_rows(rows, parts, body);
    if (i == 1) launch_rows(other_rows, parts, other);
  });
}

template <int PHASE, typename F>
void run_phases(const F& body, uint32_t block, BlockShape shape,
                std::vector<typename F::Local>& local, typename F::Shared& shared) {
  if constexpr (PHASE < F::kPhases) {
    for (int turn = 0; turn < Turns<F>::of(PHASE); ++turn) {
      in_some_order(shape.x * shape.y, [&](int64_t t) {
        const Place place{block, static_cast<int>(t) % shape.x, static_cast<int>(t) / shape.x,
                          shape.x, shape.y, turn};
        body.template phase<PHASE>(place, local[t], shared);
      });
    }
    run_phases<PHASE + 1>(body, block, shape, local, shared);
  }
}

template <typename F>
void launch_blocks(int64_t blocks, BlockShape shape, const F& body) {
  const auto shared = std::make_unique<typename F::Shared>();
  in_some_order(blocks, [&](int64_t block) {
    std::vector<typename F::Local> local(shape.x * shape.y);
    run_phases<0>(body, static_cast<uint32_t>(block), shape, local, *shared);
  });
}

#else

template <typename F>
__global__ void __launch_bounds__(kThreads) run_body(int64_t count, F body) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) body(i);
}

template <typename F>
WSIS_DEVICE void run_row(uint32_t block, uint32_t rows, int parts, const F& body) {
  const uint32_t row = block * blockDim.y + threadIdx.y;
  if (row >= rows) return;
  for (int part = threadIdx.x; part < parts; part += blockDim.x) body(row, part);
}

template <typename F>
__global__ void __launch_bounds__(kThreads) run_rows(uint32_t rows, int parts, F body) {
  run_row(blockIdx.x, rows, parts, body);
}

template <typename F, typename G>
__global__ void __launch_bounds__(kThreads)
    run_both(uint32_t blocks, uint32_t rows, F body, uint32_t other_rows, G other, int parts) {
  if (blockIdx.x < blocks) {
    run_row(blockIdx.x, rows, parts, body);
  } else {
    run_row(blockIdx.x - blocks, other_rows, parts, other);
  }
}

template <int PHASE, typename F>
WSIS_DEVICE void run_phases(const F& body, Place& place, typename F::Local& local,
                            typename F::Shared& shared) {
  if constexpr (PHASE < F::kPhases) {
    constexpr int kTurns = Turns<F>::of(PHASE);
#pragma unroll 1
    for (place.turn = 0; place.turn < kTurns; ++place.turn) {
      if (PHASE > 0 || place.turn > 0) __syncthreads();
      body.template phase<PHASE>(place, local, shared);
    }
    run_phases<PHASE + 1>(body, place, local, shared);
  }
}

template <typename F>
__global__ void __launch_bounds__(kThreads) run_block(F body) {
  __shared__ typename F::Shared shared;
  typename F::Local local;
  Place place{blockIdx.x, static_cast<int>(threadIdx.x), static_cast<int>(threadIdx.y),
                    static_cast<int>(blockDim.x), static_cast<int>(blockDim.y)};
  run_phases<0>(body, place, local, shared);
}

// On the current stream of the current device.
template <typename F>
void launch(int64_t count, const F& body) {
  if (count == 0) return;
  const uint32_t blocks = checked_blocks((count + kThreads - 1) / kThreads);
  run_body<F><<<blocks, kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(count, body);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename F>
void launch_rows(int64_t rows, int parts, const F& body) {
  if (rows == 0) return;
  const BlockShape shape = block_shape(parts);
  run_rows<F><<<checked_blocks((rows + shape.y - 1) / shape.y), dim3(shape.x, shape.y), 0,
                c10::cuda::getCurrentCUDAStream()>>>(static_cast<uint32_t>(rows), parts, body);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename F, typename G>
void launch_both(int64_t rows, const F& body, int64_t other_rows, const G& other, int parts) {
  const BlockShape shape = block_shape(parts);
  const int64_t blocks = (rows + shape.y - 1) / shape.y;
  const uint32_t all = checked_blocks(blocks + (other_rows + shape.y - 1) / shape.y);
  if (all == 0) return;
  run_both<F, G>
      <<<all, dim3(shape.x, shape.y), 0, c10::cuda::getCurrentCUDAStream()>>>(
          static_cast<uint32_t>(blocks), static_cast<uint32_t>(rows), body,
          static_cast<uint32_t>(other_rows), other, parts);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename F>
void launch_blocks(int64_t blocks, BlockShape shape, const F& body) {
  if (blocks == 0) return;
  run_block<F><<<checked_blocks(blocks), dim3(shape.x, shape.y), 0,
                 c10::cuda::getCurrentCUDAStream()>>>(body);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

#endif

}  // namespace crf
}  // namespace wsis_d2
