// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
// Large scratch buffers, kept from call to call: fresh ones cost a page fault every 4 KiB.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>

namespace wsis_d2 {
namespace crf {

// A 64-byte aligned, uninitialised buffer on loan from a process-wide pool.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t bytes);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// An uninitialised CPU tensor on memory of the pool, which gets it back when the tensor ends.
at::Tensor pooled_tensor(at::IntArrayRef sizes, const at::TensorOptions& options);

// Free the buffers that nobody uses.
void clear_workspace();

}  // namespace crf
}  // namespace wsis_d2
