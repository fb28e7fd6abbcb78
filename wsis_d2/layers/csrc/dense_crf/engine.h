// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
// Passes put together: mean-field iterations, their backward, single filters. CPU.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "dense_crf/pass.h"
#include "dense_crf/workspace.h"

namespace wsis_d2 {
namespace crf {

template <typename T>
class Engine {
 public:
  // bilateral / plan: which kernels run. plan may be nullptr.
  Engine(const Lattice<T>& lattice, const SpatialPlan<T>* plan, bool bilateral, int64_t labels)
      : kernels_(kernels<T>()), lattice_(lattice) {
    pass_.lattice = &lattice_;
    pass_.plan = plan;
    pass_.bilateral = bilateral;
    pass_.chunks = make_chunks(labels);
    pass_.padded = padded_labels(labels);
    const size_t row = pass_.padded * sizeof(T);
    if (bilateral) {
      for (Buffer& b : vertices_) b = Buffer(lattice_.rows() * row);
    }
    if (plan != nullptr) {
      strips_ = Buffer(plan->strip_total * plan->grid_x * row);
      grid_ = Buffer(plan->grid_y * plan->grid_x * row);
    }
  }

  Pass<T>& pass() { return pass_; }
  size_t pixel_bytes() const { return lattice_.pixels * pass_.padded * sizeof(T); }

  // Passes. Those that slice read what filter() left; those that splat add into fresh sums.
  // Softmax of the logits, splatted; the marginals go to `q_out` too, where it is not nullptr.
  void begin(T* q_out) {
    pass_.q_out = q_out;
    splat();
    run(Mode::kFirst);
  }
  // The messages and the logits -> marginals, splatted where another iteration follows.
  void iterate(T* q_out, bool more) {
    pass_.q_out = q_out;
    slice();
    if (more) splat();
    run(Mode::kForward);
  }
  // `values` [pixel], splatted as they are.
  void spread(T* values) {
    T* logits = std::exchange(pass_.logits, values);
    splat();
    run(Mode::kRaw);
    pass_.logits = logits;
  }
  // The messages times `scale`, plus `scores` where there are any -> `output`; both (L, H, W).
  void finish(const T* scores, T* output, T scale) {
    pass_.scores = scores;
    pass_.output = output;
    pass_.output_scale = scale;
    slice();
    run(Mode::kMessage);
  }
  // The messages, which are gradients of the marginals `q`, to gradients of their scores.
  void go_back(const T* q, bool more) {
    pass_.q = q;
    slice();
    if (more) splat();
    run(Mode::kBackward);
  }

  // Blur what run() splatted; reverse: the transpose.
  void filter(bool reverse) {
    if (pass_.bilateral) {
      for (const Chunk& chunk : pass_.chunks) {
        T* sums = vertices_[current_].template as<T>() + lattice_.rows() * chunk.offset;
        at::parallel_for(0, lattice_.shared_count, 4096, [&](int64_t begin, int64_t end) {
          kernels_.reduce(lattice_, sums, chunk.blocks, begin, end);
        });
        for (int i = 0; i < kVertices; ++i) {
          const int axis = reverse ? kVertices - 1 - i : i;
          at::parallel_for(0, lattice_.chain_sizes[axis], 4096, [&](int64_t begin, int64_t end) {
            kernels_.blur(lattice_, sums, chunk.blocks, axis, begin, end);
          });
        }
      }
    }
    if (pass_.plan == nullptr) return;
    const SpatialPlan<T>& plan = *pass_.plan;
    for (const Chunk& chunk : pass_.chunks) {
      const T* strips = strips_.template as<T>() + plan.strip_total * plan.grid_x * chunk.offset;
      T* grid = grid_.template as<T>() + plan.grid_y * plan.grid_x * chunk.offset;
      at::parallel_for(0, plan.grid_y, 8, [&](int64_t begin, int64_t end) {
        const int64_t ring = 2 * plan.radius + 1;
        Buffer scratch((2 * plan.radius + (ring + 2) * plan.grid_x) * chunk.width() *
                       sizeof(T));
        kernels_.fir(plan, strips, grid, scratch.as<T>(), chunk.blocks, begin, end);
      });
    }
  }

  // (L, H, W) -> `logits`; false if a value is not finite.
  bool read(const T* values, bool softmax) {
    std::vector<char> finite(lattice_.bands, 1);
    at::parallel_for(0, lattice_.bands, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        finite[b] = kernels_.read(pass_, values, softmax, static_cast<int>(b));
      }
    });
    return std::find(finite.begin(), finite.end(), 0) == finite.end();
  }

  // [pixel] -> (L, H, W)
  void write(const T* values, T* output) {
    pass_.scores = nullptr;
    pass_.output = output;
    pass_.output_scale = 1;
    at::parallel_for(0, lattice_.bands, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) kernels_.write(pass_, values, static_cast<int>(b));
    });
  }

 private:
  void slice() {
    pass_.values = vertices_[current_].template as<T>();
    pass_.grid = grid_.template as<T>();
    current_ ^= 1;
  }
  void splat() {
    if (pass_.bilateral) pass_.sums = zeroed(vertices_[current_], lattice_.rows());
    if (pass_.plan != nullptr) {
      pass_.strips = zeroed(strips_, pass_.plan->strip_total * pass_.plan->grid_x);
    }
  }
  void run(Mode mode) {
    pass_.mode = mode;
    at::parallel_for(0, lattice_.bands, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) kernels_.pass(pass_, static_cast<int>(b));
    });
    pass_.sums = nullptr;
    pass_.strips = nullptr;
  }
  T* zeroed(Buffer& buffer, int64_t rows) {
    T* data = buffer.as<T>();
    at::parallel_for(0, rows * pass_.padded, 1 << 18, [&](int64_t begin, int64_t end) {
      std::fill(data + begin, data + end, T(0));
    });
    return data;
  }

  const Kernels<T>& kernels_;
  const Lattice<T> lattice_;
  Pass<T> pass_;
  Buffer vertices_[2], strips_, grid_;
  int current_ = 0;
};

}  // namespace crf
}  // namespace wsis_d2
