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

// new[v] = old[v] + (old[before] + old[after]) / 2 along each run.
template <typename T>
void blur_rows(const Lattice<T>& lattice, T* sums, int blocks, int axis, int64_t begin,
               int64_t end) {
  constexpr int64_t kAhead = 12;
  const int32_t* chain = lattice.chains[axis];
  const int64_t size = lattice.chain_sizes[axis];
  // A run belongs to whoever owns its first element.
  while (begin > 0 && begin < size && chain[begin - 1] >= 0) ++begin;
  while (end > 0 && end < size && chain[end - 1] >= 0) ++end;
  with_blocks(blocks, [&](auto constant) {
    using R = Row<T, constant.value>;
    int64_t i = begin;
    while (i < end) {
      int32_t id = chain[i];  // runs hold two vertices or more
      T* place = sums + static_cast<int64_t>(id) * R::kWidth;
      R before = R::zero(), here = R::load(place);
      bool last = false;
      while (!last) {
        const int32_t code = chain[++i];
        last = code < 0;
        id = last ? ~code : code;
        if (i + kAhead < end) {
          const int32_t ahead = chain[i + kAhead];
          prefetch_row<T, constant.value>(
              sums + static_cast<int64_t>(ahead < 0 ? ~ahead : ahead) * R::kWidth);
        }
        T* next_place = sums + static_cast<int64_t>(id) * R::kWidth;
        const R next = R::load(next_place);
        R fresh = here;
        before.add(next);
        fresh.fma(before, T(0.5));
        fresh.store(place);
        before = here;
        here = next;
        place = next_place;
      }
      here.fma(before, T(0.5));
      here.store(place);
      ++i;
    }
  });
}
