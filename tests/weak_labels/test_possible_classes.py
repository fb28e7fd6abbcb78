# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The classes that annotation leaves a pixel are those that cleaning would not delete."""

import numpy as np
import pytest

from wsis_d2.weak_labels.clean import Box, CleanOptions, clean_labels
from wsis_d2.weak_labels.possible_classes import possible_classes

THINGS = frozenset({3, 4})


@pytest.mark.parametrize("seed", range(20))
def test_possible_classes_are_those_that_tags_and_prior_do_not_delete(seed):
    rng = np.random.default_rng(seed)
    height, width = (int(n) for n in rng.integers(4, 14, 2))
    boxes = []
    for _ in range(rng.integers(0, 6)):
        x0, x1 = np.sort(rng.integers(-2, width + 2, 2))
        y0, y1 = np.sort(rng.integers(-2, height + 2, 2))
        boxes.append(Box(int(rng.choice([3, 4])), x0, y0, x1, y1, bool(rng.random() < 0.3)))
    crops = [
        (x, y, x + 2 * width // 3, y + 2 * height // 3 + 1, frozenset({int(rng.integers(3)), 1}))
        for x in (-1, width // 3)
        for y in (0, height // 3)
    ]
    steps = CleanOptions(
        score_threshold=None, tags=bool(seed % 4), merge=False, prior=bool(seed % 3), fill=False,
        add_box_classes_to_tags=bool(seed % 2),
    )  # fmt: skip
    possible = possible_classes((height, width), 5, boxes, crops, THINGS, steps)
    assert possible.shape == (5, height, width) and possible.dtype == bool
    for class_id in range(5):
        everywhere = np.full((height, width), class_id, np.uint8)
        kept = clean_labels(
            everywhere, boxes=boxes, crop_tags=crops, thing_ids=THINGS, options=steps
        )
        np.testing.assert_array_equal(possible[class_id], kept.semantic == class_id)
