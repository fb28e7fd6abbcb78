// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
// Simplices of some pixels. Included by kernels_*.cpp only, for instruction sets without fused
// multiply-add: its rounding would give other lattices on other processors (see `product`).

// `flatten` has the header's function compiled for this instruction set.
template <typename T>
__attribute__((flatten)) void find_simplices(SimplexBatch<T, kSimplexLanes>& batch,
                                             const KeyLayout& layout, const T* scale) {
  batch.find(layout, scale);
}
