# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Boxes and tags to pseudo ground truth, without a neural network; the label store."""
