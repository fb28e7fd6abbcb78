# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Operators: the dense CRF, the permutohedral filter, and their exact reference."""

from wsis_d2.layers.crf_parameters import CRFParameters
from wsis_d2.layers.crf_refine import dense_crf_refine
from wsis_d2.layers.dense_crf import DenseCRF, mean_field, mean_field_batch
from wsis_d2.layers.native_crf import permutohedral_filter, spatial_filter

__all__ = [
    "CRFParameters",
    "DenseCRF",
    "dense_crf_refine",
    "mean_field",
    "mean_field_batch",
    "permutohedral_filter",
    "spatial_filter",
]
