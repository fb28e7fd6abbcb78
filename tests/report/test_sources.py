# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""What a report compares, by hand."""

import math

import numpy as np

from wsis_d2.report.sources import disagreement
from wsis_d2.visualization.layers import LabelLayer


def layer(*rows):
    return LabelLayer(np.array(rows, np.uint8))


def test_disagreement_is_over_pixels_that_both_label():
    assert disagreement(layer([0, 1, 255, 2]), layer([0, 2, 1, 255])) == 0.5
    assert math.isnan(disagreement(layer([255]), layer([0])))
    assert math.isnan(disagreement(layer([0, 1]), layer([0, 1, 1])))  # of another size
