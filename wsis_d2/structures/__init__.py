# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The vocabulary: boxes, labels and classes, as all parts of the package speak of them."""
