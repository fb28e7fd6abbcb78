// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "dense_crf/workspace.h"

namespace wsis_d2 {
namespace crf {

// 64-bit keys -> consecutive ids; open addressing.
class KeyTable {
 public:
  explicit KeyTable(size_t expected) { reserve(expected); }

  size_t slot(uint64_t key) const { return (key * 0x9E3779B97F4A7C15ull) >> shift_; }
  void prefetch(size_t at) const { __builtin_prefetch(&entries_[at]); }

  int32_t insert(uint64_t key) {
    size_t at = slot(key);
    while (entries_[at].id >= 0) {
      if (entries_[at].key == key) return entries_[at].id;
      at = (at + 1) & mask_;
    }
    const int32_t id = static_cast<int32_t>(keys_.size());
    entries_[at] = {key, id};
    keys_.push_back(key);
    if (keys_.size() * 2 > mask_) reserve(keys_.size() * 2);
    return id;
  }

  int32_t find(uint64_t key) const {
    size_t at = slot(key);
    while (entries_[at].id >= 0) {
      if (entries_[at].key == key) return entries_[at].id;
      at = (at + 1) & mask_;
    }
    return -1;
  }

  const std::vector<uint64_t>& keys() const { return keys_; }

 private:
  struct Entry {
    uint64_t key;
    int32_t id;
  };

  void reserve(size_t expected) {
    size_t size = 1024;
    shift_ = 54;
    while (size < expected * 2) {
      size *= 2;
      --shift_;
    }
    mask_ = size - 1;
    storage_ = Buffer(size * sizeof(Entry));
    entries_ = storage_.as<Entry>();
    std::fill(entries_, entries_ + size, Entry{0, -1});
    for (size_t i = 0; i < keys_.size(); ++i) {
      size_t at = slot(keys_[i]);
      while (entries_[at].id >= 0) at = (at + 1) & mask_;
      entries_[at] = {keys_[i], static_cast<int32_t>(i)};
    }
  }

  Buffer storage_;  // fresh pages would cost more than the look-ups
  Entry* entries_ = nullptr;
  std::vector<uint64_t> keys_;
  size_t mask_ = 0;
  int shift_ = 0;
};

}  // namespace crf
}  // namespace wsis_d2
