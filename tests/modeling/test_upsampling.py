# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Small label maps brought up to a photograph's size."""

import cv2
import numpy as np
import pytest

from wsis_d2.modeling.upsampling import upsample_labels


def scene(height, width):
    """Three shapes of different colours with noise, and their labels, of any size."""
    y, x = (np.mgrid[:height, :width] + 0.5) / np.array([height, width])[:, None, None]
    labels = np.full((height, width), 7, np.int32)
    labels[(x - 0.3) ** 2 + (y - 0.5) ** 2 < 0.05] = 2
    labels[x + 0.6 * y > 1.1] = 40
    image = np.zeros((height, width, 3))
    for label, color in ((7, (60, 90, 60)), (2, (190, 60, 50)), (40, (80, 120, 210))):
        image[labels == label] = color
    image += np.random.default_rng(0).normal(0, 5, image.shape)
    return labels, np.clip(image, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [(230, 307), (240, 320), (93, 401)])
def test_borders_come_from_the_photograph(size):
    """Labels of a quarter of the sides, sound but for their grid: the true ones come back."""
    labels, image = scene(*size)
    wide, high = round(size[1] / 4.3), round(size[0] / 4.3)
    small = scene(high, wide)[0]
    found = upsample_labels(small, image)
    assert found.shape == size and found.dtype == small.dtype
    nearest = cv2.resize(small, size[::-1], interpolation=cv2.INTER_NEAREST)
    wrong, before = (found != labels).mean(), (nearest != labels).mean()
    assert before > 0.005 and wrong < before / 4


def reference(labels, image, cells=1.0, color=16.0):
    """The definition, pixel by pixel."""
    h, w = labels.shape
    height, width = image.shape[:2]
    small = cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA).astype(float)
    result = np.zeros((height, width), labels.dtype)
    for y in range(height):
        for x in range(width):
            py, px = (y + 0.5) * h / height - 0.5, (x + 0.5) * w / width - 0.5
            cy, cx = int(np.rint(py)), int(np.rint(px))
            votes = {}
            for ny in range(max(0, cy - 1), min(h, cy + 2)):
                for nx in range(max(0, cx - 1), min(w, cx + 2)):
                    far = (py - ny) ** 2 + (px - nx) ** 2
                    unlike = ((image[y, x].astype(float) - small[ny, nx]) ** 2).sum()
                    weight = np.exp(-far / (2 * cells**2) - unlike / (2 * color**2))
                    votes[labels[ny, nx]] = votes.get(labels[ny, nx], 0) + weight
            result[y, x] = max(votes, key=votes.get)
    return result


def test_it_is_the_vote_of_its_definition():
    rng = np.random.default_rng(1)
    labels = rng.integers(1, 4, (7, 9)).astype(np.int32)
    image = rng.integers(90, 130, (23, 31, 3)).astype(np.uint8)
    found, wanted = upsample_labels(labels, image), reference(labels, image)
    assert (found == wanted).mean() > 0.995  # weights are single precision: ties may differ


def test_bands_cover_tall_pictures_and_nothing_is_invented():
    rng = np.random.default_rng(2)
    labels = rng.choice(np.array([3, 900, 70000], np.int32), (40, 3))
    found = upsample_labels(labels, rng.integers(0, 255, (333, 17, 3)).astype(np.uint8))
    assert set(np.unique(found)) <= {3, 900, 70000} and found.shape == (333, 17)
    plain = upsample_labels(np.full((2, 3), 5, np.int32), np.zeros((90, 70, 3), np.uint8))
    assert (plain == 5).all()


def test_colours_like_none_still_get_a_label():
    """White against black neighbours: every weight underflows, the nearest in colour wins."""
    image = np.zeros((40, 40, 3), np.uint8)
    image[:, 20:] = 255
    image[10, 18] = 120
    labels = np.repeat([[1, 1, 2, 2]], 4, axis=0).astype(np.int32)
    found = upsample_labels(labels, image)
    assert (found[:, 20:] == 2).all() and set(np.unique(found)) == {1, 2}
