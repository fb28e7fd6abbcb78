// Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
// The headers that the kernels use, for files that change the instruction set after them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>
#include <vector>

#include "dense_crf/pass.h"
