# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Photographs of every kind that a folder of users may hold, and what their pixels are."""

import numpy as np
from PIL import Image

# The EXIF standard's table: which visual side the stored row 0 and the stored column 0 are.
SIDES = {
    1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left"),
    5: ("left", "top"), 6: ("right", "top"), 7: ("right", "bottom"), 8: ("left", "bottom"),
}  # fmt: skip


def turned(shown, orientation):
    """Return the pixels to store so that a viewer which follows EXIF shows ``shown``."""
    row, column = SIDES[orientation]
    height, width = shown.shape[:2]
    forward = {"top": np.arange(height), "bottom": np.arange(height)[::-1],
               "left": np.arange(width), "right": np.arange(width)[::-1]}  # fmt: skip
    if orientation <= 4:
        return shown[forward[row]][:, forward[column]]
    # Row r is a visual column and column c a visual row: stored[r, c] = shown[y(c), x(r)].
    return shown[forward[column][None, :], forward[row][:, None]]


def save(path, shown, orientation=1, **options):
    """Save a photograph turned by EXIF."""
    exif = Image.Exif()
    if orientation != 1:
        exif[0x0112] = orientation
    Image.fromarray(turned(shown, orientation)).save(path, exif=exif, **options)


def red_square():
    """Return the issue's picture: 160 x 120, a red 40 x 40 square at x 20, y 70, and its mask."""
    image = np.full((120, 160, 3), (90, 120, 90), np.float64)
    mask = np.zeros((120, 160), bool)
    mask[70:110, 20:60] = True
    image[mask] = (200, 20, 20)
    image += np.random.default_rng(0).normal(0, 6, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), mask


def is_red(image):
    """Return where an RGB picture is red, bool (H, W)."""
    image = np.asarray(image, np.int64)
    return image[..., 0] - image[..., 1] > 60
