// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
// The lattice's blur. See lattice.h; included by kernels_*.cpp only, after kernels_tiles.h.

template <typename T>
void reduce_rows(const Lattice<T>& lattice, T* sums, int blocks, int64_t begin, int64_t end) {
  with_blocks(blocks, [&](auto constant) {
    using R = Row<T, constant.value>;
    for (int64_t s = begin; s < end; ++s) {
      T* home = sums + static_cast<int64_t>(lattice.shared_home[s]) * R::kWidth;
      R total = R::load(home);
      for (int64_t e = lattice.shared_begin[s]; e < lattice.shared_begin[s + 1]; ++e) {
        total.add(R::load(sums + (lattice.vertices + e) * R::kWidth));
      }
      total.store(home);
    }
  });
}

// new[v] = old[v] + (old[before] + old[after]) / 2 along each run. Runs are short and of any length:
// their ends (~id) become factors of 0, as branches would be mispredicted.
template <typename T>
void blur_rows(const Lattice<T>& lattice, T* sums, int blocks, int axis, int64_t begin,
               int64_t end) {
  constexpr int64_t kAhead = 12;
  const int32_t* chain = lattice.chains[axis];
  const int64_t size = lattice.chain_sizes[axis];
  // A run belongs to whoever owns its first element.
  while (begin > 0 && begin < size && chain[begin - 1] >= 0) ++begin;
  while (end > 0 && end < size && chain[end - 1] >= 0) ++end;
  if (begin >= end) return;
  with_blocks(blocks, [&](auto constant) {
    using R = Row<T, constant.value>;
    auto row = [&](int64_t i) {
      const int32_t code = chain[std::min(i, end - 1)];
      return sums + static_cast<int64_t>(code ^ (code >> 31)) * R::kWidth;
    };
    T* place = row(begin);
    R before = R::zero(), here = R::load(place);
    for (int64_t i = begin; i < end; ++i) {
      prefetch_row<T, constant.value>(row(i + kAhead));
      const T goes_on = static_cast<T>(1 + (chain[i] >> 31));
      T* next_place = row(i + 1);
      const R next = R::load(next_place);
      before.fma(next, goes_on);
      R fresh = here;
      fresh.fma(before, T(0.5));
      fresh.store(place);
      before = here;
      before.scale(goes_on);
      here = next;
      place = next_place;
    }
  });
}
