# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""GrabCut from a box: what it finds, where it cannot be asked, that chance is held fixed."""

import cv2
import numpy as np
import pytest

from wsis_d2.utils.errors import InputError
from wsis_d2.weak_labels.grabcut import GrabCutOptions, ellipse_mask, grabcut_mask


def disc_image(height=120, width=160, centre=(80, 60), radius=30, seed=0):
    """A red disc on green ground, noisy; returns image and mask."""
    y, x = np.mgrid[:height, :width]
    mask = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2
    image = np.where(mask[..., None], (40, 60, 200), (60, 150, 70)).astype(float)
    image += np.random.default_rng(seed).normal(0, 8, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), mask


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize(
    "options",
    [
        GrabCutOptions(),
        GrabCutOptions(init="rectangle", seed_radius=0, iterations=5),
        GrabCutOptions(size=0),
        GrabCutOptions(size=64),
        GrabCutOptions(seed_radius=0.5, margin=1.0),
    ],
)
def test_finds_a_disc(options):
    image, mask = disc_image()
    found = grabcut_mask(image, (50, 30, 111, 91), options)
    assert found.shape == (61, 61) and found.dtype == bool
    assert iou(found, mask[30:91, 50:111]) > 0.9


def test_finds_a_small_disc_by_scaling_up():
    image, mask = disc_image(40, 40, (20, 20), 6)
    found = grabcut_mask(image, (14, 14, 27, 27), GrabCutOptions())
    assert iou(found, mask[14:27, 14:27]) > 0.8


def test_does_not_depend_on_earlier_calls():
    image, _ = disc_image()
    box = (45, 25, 120, 100)
    first = grabcut_mask(image, box, GrabCutOptions())
    cv2.setRNGSeed(12345)
    for seed in range(3):
        grabcut_mask(disc_image(seed=seed)[0], (40, 20, 120, 100), GrabCutOptions(rng_seed=seed))
    np.testing.assert_array_equal(first, grabcut_mask(image, box, GrabCutOptions()))


def test_a_whole_image_box_cannot_be_asked():
    image, _ = disc_image()
    assert grabcut_mask(image, (0, 0, 160, 120), GrabCutOptions()) is None


@pytest.mark.parametrize("box", [(0, 0, 1, 1), (3, 0, 5, 2), (0, 0, 7, 3), (159, 119, 160, 120)])
def test_tiny_and_border_boxes_are_answered(box):
    image, _ = disc_image()
    found = grabcut_mask(image, box, GrabCutOptions())
    assert found.shape == (box[3] - box[1], box[2] - box[0])


def test_uniform_surroundings_give_nothing():
    image = np.full((50, 50, 3), 90, np.uint8)
    assert not grabcut_mask(image, (10, 10, 30, 30), GrabCutOptions()).any()


def test_one_pixel_image_cannot_be_asked():
    assert grabcut_mask(np.zeros((1, 1, 3), np.uint8), (0, 0, 1, 1), GrabCutOptions()) is None


def test_ellipse_has_the_area_of_an_ellipse():
    assert ellipse_mask(200, 100, 1.0).mean() == pytest.approx(np.pi / 4, abs=0.01)
    assert ellipse_mask(200, 100, 0.5).mean() == pytest.approx(np.pi / 16, abs=0.01)
    assert ellipse_mask(1, 1, 0.1).all() and ellipse_mask(2, 9, 0.01).sum() == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [("init", "circle"), ("seed_radius", 1.5), ("margin", -1), ("iterations", 0), ("size", 3)],
)
def test_bad_options_name_their_key(key, value):
    name = f"WEAK_LABELS.GRABCUT.{key.upper()}" if key in ("init", "seed_radius") else f"^{key}: "
    with pytest.raises(InputError, match=name):
        GrabCutOptions(**{key: value})
