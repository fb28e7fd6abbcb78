// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
#define WSIS_CRF_NAME avx2
#define WSIS_CRF_TARGET "avx2,fma"
#define WSIS_CRF_BYTES 32
#include "dense_crf/kernels_x86.h"
