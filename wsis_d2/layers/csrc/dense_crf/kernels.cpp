// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
// Chooses the kernels for the processor at hand, once.
#include <cstdlib>
#include <string>

#include "dense_crf/pass.h"

namespace wsis_d2 {
namespace crf {

Kernels<float> kernels_default_float();
Kernels<double> kernels_default_double();
Kernels<float> kernels_avx2_float();
Kernels<double> kernels_avx2_double();
Kernels<float> kernels_avx512_float();
Kernels<double> kernels_avx512_double();

namespace {

int capability() {
  int found = 0;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    found = 1;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw")) {
      found = 2;
    }
  }
#endif
  const char* cap = std::getenv("WSIS_D2_CPU_CAPABILITY");
  if (cap != nullptr) {
    const std::string name(cap);
    const int wanted = name == "default" ? 0 : name == "avx2" ? 1 : 2;
    if (wanted < found) found = wanted;
  }
  return found;
}

}  // namespace

#if defined(__x86_64__)
#define WSIS_CHOOSE(TYPE)                                        \
  template <>                                                    \
  const Kernels<TYPE>& kernels<TYPE>() {                         \
    static const int level = capability();                       \
    static const Kernels<TYPE> chosen =                          \
        level == 2   ? kernels_avx512_##TYPE()                   \
        : level == 1 ? kernels_avx2_##TYPE()                     \
                     : kernels_default_##TYPE();                 \
    return chosen;                                               \
  }
#else
#define WSIS_CHOOSE(TYPE)                                        \
  template <>                                                    \
  const Kernels<TYPE>& kernels<TYPE>() {                         \
    static const Kernels<TYPE> chosen = kernels_default_##TYPE(); \
    return chosen;                                               \
  }
#endif

WSIS_CHOOSE(float)
WSIS_CHOOSE(double)

}  // namespace crf
}  // namespace wsis_d2
