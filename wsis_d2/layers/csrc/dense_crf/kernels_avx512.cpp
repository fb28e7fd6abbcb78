// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
#define WSIS_CRF_NAME avx512
#define WSIS_CRF_TARGET "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma"
#define WSIS_CRF_BYTES 64
#include "dense_crf/kernels_x86.h"
