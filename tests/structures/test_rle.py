# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Run lengths are pycocotools' own where they are sound, and refused where they are not."""

import numpy as np
import pycocotools.mask as mask_util
import pytest

from wsis_d2.structures.rle import checked_rle


def encoded(mask):
    return mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("as_text", [False, True])
def test_sound_masks_come_back(seed, as_text):
    rng = np.random.default_rng(seed)
    size = tuple(int(v) for v in rng.integers(1, 90, 2))
    mask = rng.random(size) < rng.random() ** 3
    if seed % 2:  # long runs, whose numbers take several characters
        mask = np.zeros((700, 900), bool)
        mask[tuple(slice(*sorted(rng.integers(0, 700, 2))) for _ in range(2))] = True
    rle = encoded(mask)
    given = {**rle, "counts": rle["counts"].decode()} if as_text else rle
    found = checked_rle(given, mask.shape)
    np.testing.assert_array_equal(mask_util.decode(found), mask)
    runs = np.diff(np.flatnonzero(np.diff(np.r_[2, np.r_[False, mask.ravel("F")], 2])))
    runs[0] -= 1  # the pixel put before the mask, which makes the first run one of zeros
    from_list = checked_rle({"size": list(mask.shape), "counts": runs.tolist()}, mask.shape)
    np.testing.assert_array_equal(mask_util.decode(from_list), mask)


GOOD = encoded(np.eye(6, 8))["counts"]


@pytest.mark.parametrize(
    "change",
    [
        {"size": [8, 6]}, {"size": 5}, {"size": None}, {"size": ["6", "8"]},
        {"counts": None}, {"counts": []}, {"counts": 5}, {"counts": ""}, {"counts": "é"},
        {"counts": GOOD + b"1"}, {"counts": GOOD[:-1]}, {"counts": GOOD + b"o"},
        {"counts": b"\0"}, {"counts": b"`" * 40}, {"counts": b"oooooooooooo0"},
        {"counts": [49]}, {"counts": [-1, 49]}, {"counts": [48.0]}, {"counts": [True] * 48},
        {"counts": [2**31, 48 - 2**31]}, {"counts": [[48]]},
    ],
    ids=str,
)  # fmt: skip
def test_runs_that_do_not_make_up_the_picture_are_refused(change):
    with pytest.raises(ValueError):
        checked_rle({"size": [6, 8], "counts": GOOD, **change}, (6, 8))


@pytest.mark.parametrize("value", [None, [], "x", 3])
def test_what_is_no_mask_is_refused(value):
    with pytest.raises(ValueError, match="no run-length mask of 6 x 8"):
        checked_rle(value, (6, 8))
