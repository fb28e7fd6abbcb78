# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Activation maps to cue labels: crops, stitching, thresholds, precedence."""

import numpy as np
import pytest

from wsis_d2.structures.annotation import record_crops
from wsis_d2.weak_labels.cam_labels import cue_labels, stitch_maps


def test_crops_of_a_record():
    record = {
        "height": 8,
        "width": 10,
        "image_tags": [1, 2],
        "crop_tags": [{"box": [2.0, 0.0, 5.0, 8.0], "tags": [1]}],
    }
    assert record_crops(record) == [(2, 0, 7, 8, frozenset({1}))]
    assert record_crops({**record, "crop_tags": None}, extra=[0]) == [
        (0, 0, 10, 8, frozenset({0, 1, 2}))
    ]
    assert record_crops({"height": 8, "width": 10, "image_tags": []}) == []


def test_the_larger_activation_counts_where_crops_overlap():
    first = {3: np.array([[0.2, 0.9, 0.4]], np.float32)}
    second = {3: np.array([[0.6, 0.1]], np.float32), 5: np.array([[1.0, 0.0]], np.float32)}
    maps = stitch_maps((1, 4), [(0, 0, 3, 1), (2, 0, 4, 1)], [first, second])
    np.testing.assert_allclose(maps[3], [[0.2, 0.9, 0.6, 0.1]])
    np.testing.assert_allclose(maps[5], [[0, 0, 1.0, 0]])
    with pytest.raises(ValueError, match="crop \\(0, 0, 2, 1\\): map has shape"):
        stitch_maps((1, 4), [(0, 0, 2, 1)], [first])


def test_threshold_is_relative_to_the_maximum_of_the_class():
    maps = {
        0: np.array([[0.2, 0.1, 0.099, 0.0]]),
        1: np.array([[0.0, 0.0, 0.0, 30.0]]),
    }
    assert cue_labels(maps, (1, 4), 0.5).tolist() == [[0, 0, 255, 1]]


def test_the_smaller_area_lies_on_top_whatever_the_order():
    wide, narrow = np.ones((1, 4)), np.array([[0, 0.7, 0.1, 0.1]])
    for maps in ({2: wide, 7: narrow}, {7: narrow, 2: wide}):
        assert cue_labels(maps, (1, 4)).tolist() == [[2, 7, 2, 2]]
    # The areas compared are those after the threshold, not how far a map is positive.
    maps = {2: np.array([[0.1, 0.1, 1.0, 0.1]]), 7: np.array([[0, 1.0, 1.0, 0]])}
    assert cue_labels(maps, (1, 4)).tolist() == [[255, 7, 2, 255]]


def test_equal_areas_go_to_the_lower_class_and_empty_maps_claim_nothing():
    one = np.array([[1.0, 1.0, 0.0]])
    assert cue_labels({4: one, 1: one, 0: np.zeros((1, 3))}, (1, 3)).tolist() == [[1, 1, 255]]
    assert cue_labels({}, (1, 2)).tolist() == [[255, 255]]
    with pytest.raises(ValueError, match="CAM.THRESHOLD is 0"):
        cue_labels({}, (1, 2), 0)


def test_against_a_pixelwise_reference():
    rng = np.random.default_rng(0)
    for _ in range(20):
        size = tuple(rng.integers(3, 9, 2))
        maps = {int(k): rng.random(size) ** 3 for k in rng.choice(10, 4, replace=False)}
        threshold = rng.uniform(0.1, 0.9)
        claims = {k: m >= threshold * m.max() for k, m in maps.items()}
        labels = cue_labels(maps, size, threshold)
        for y in range(size[0]):
            for x in range(size[1]):
                own = [(int(c.sum()), k) for k, c in claims.items() if c[y, x]]
                assert labels[y, x] == (min(own)[1] if own else 255)
