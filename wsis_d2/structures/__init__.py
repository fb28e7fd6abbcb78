# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Data structures that all parts share: boxes, label maps, classes, annotation."""
