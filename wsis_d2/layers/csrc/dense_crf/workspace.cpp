// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
#include "dense_crf/workspace.h"

#include <ATen/ops/from_blob.h>
#include <c10/util/accumulate.h>

#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <map>
#include <mutex>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace wsis_d2 {
namespace crf {
namespace {

constexpr size_t kHugePage = size_t(2) << 20;
constexpr size_t kKept = size_t(1) << 30;  // bytes of unused buffers kept

struct Pool {
  std::mutex mutex;
  std::multimap<size_t, void*> unused;
  size_t bytes = 0;
};

Pool& pool() {
  static Pool* instance = new Pool;  // outlives every static that may still hold a buffer
  return *instance;
}

// Ask for huge pages behind [data, data + bytes), where the system has them.
void advise_huge_pages(void* data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kHugePage * kHugePage;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

}  // namespace

Buffer::Buffer(size_t bytes) {
  const size_t unit = bytes >= kHugePage ? kHugePage : 4096;
  bytes_ = (bytes + unit - 1) / unit * unit;
  if (bytes_ == 0) bytes_ = unit;
  {
    Pool& p = pool();
    std::lock_guard<std::mutex> lock(p.mutex);
    auto found = p.unused.lower_bound(bytes_);
    if (found != p.unused.end() && found->first <= bytes_ + bytes_ / 2) {
      bytes_ = found->first;
      data_ = found->second;
      p.bytes -= bytes_;
      p.unused.erase(found);
      return;
    }
  }
  data_ = std::aligned_alloc(unit, bytes_);
  if (data_ == nullptr) throw std::bad_alloc();
  if (unit == kHugePage) advise_huge_pages(data_, bytes_);
}

Buffer::~Buffer() {
  if (data_ == nullptr) return;
  Pool& p = pool();
  std::lock_guard<std::mutex> lock(p.mutex);
  p.unused.emplace(bytes_, data_);
  p.bytes += bytes_;
  while (p.bytes > kKept) {  // the largest go first
    auto largest = std::prev(p.unused.end());
    std::free(largest->second);
    p.bytes -= largest->first;
    p.unused.erase(largest);
  }
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

at::Tensor pooled_tensor(at::IntArrayRef sizes, const at::TensorOptions& options) {
  const size_t bytes = c10::multiply_integers(sizes) * options.dtype().itemsize();
  auto* buffer = new Buffer(bytes);
  return at::from_blob(
      buffer->as<void>(), sizes, [buffer](void*) { delete buffer; }, options);
}

void clear_workspace() {
  Pool& p = pool();
  std::lock_guard<std::mutex> lock(p.mutex);
  for (auto& entry : p.unused) std::free(entry.second);
  p.unused.clear();
  p.bytes = 0;
}

}  // namespace crf
}  // namespace wsis_d2
