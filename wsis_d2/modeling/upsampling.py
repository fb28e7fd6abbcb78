# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Upsampling of a label map to its photograph's size, with borders along the photograph's edges.

Addition, not in the paper: the vote of joint bilateral upsampling (Kopf et al., "Joint Bilateral
Upsampling", SIGGRAPH 2007), which weighs small pixels by distance and by likeness of colour.
"""

import cv2
import numpy as np
from scipy import ndimage

_BAND = 64  # rows at a time, which bounds memory
_CELLS = 1.0  # deviation of the distance, in small pixels
_COLOR = 16.0  # deviation of the colour, in steps of 0 to 255
_NEIGHBOURS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]


def upsample_labels(labels: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Give each pixel of a photograph the label of the small pixels that it is near to and like.

    A pixel takes the label that gathers most weight among the 3 x 3 small pixels around it, the
    weights Gaussian in distance and colour; where these agree, nothing is computed.

    Args:
        labels: (h, w) integers, made from the photograph scaled down to h x w.
        image: (H, W, 3) uint8, the photograph, H >= h and W >= w.

    Returns:
        (H, W), ``labels``' type; no label that is not in ``labels``.
    """
    height, width = image.shape[:2]
    small_height, small_width = labels.shape
    small = cv2.resize(image, (small_width, small_height), interpolation=cv2.INTER_AREA)
    small = small.astype(np.float32)
    border = ndimage.maximum_filter(labels, 3) != ndimage.minimum_filter(labels, 3)
    # The centre of each row and column in small pixels, and the small pixel it lies in.
    rows, columns = (
        (np.arange(length, dtype=np.float32) + 0.5) * (short / length) - 0.5
        for length, short in ((height, small_height), (width, small_width))
    )
    near_rows = np.rint(rows).astype(np.intp).clip(0, small_height - 1)
    near_columns = np.rint(columns).astype(np.intp).clip(0, small_width - 1)
    result = labels[near_rows[:, None], near_columns]
    for top in range(0, height, _BAND):
        band = near_rows[top : top + _BAND]
        y, x = np.nonzero(border[band[:, None], near_columns])
        y += top
        if len(y):
            result[y, x] = _vote(
                labels, small, image[y, x].astype(np.float32),
                (rows[y], columns[x]), (near_rows[y], near_columns[x]),
            )  # fmt: skip
    return result


def _vote(
    labels: np.ndarray,
    small: np.ndarray,
    colors: np.ndarray,
    places: tuple[np.ndarray, np.ndarray],
    cells: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """Return the (N,) labels of N pixels of ``colors`` (N, 3), from the small pixels around."""
    labels_near, weights_near = [], []
    for dy, dx in _NEIGHBOURS:
        y, x = cells[0] + dy, cells[1] + dx
        inside = (y >= 0) & (y < labels.shape[0]) & (x >= 0) & (x < labels.shape[1])
        y, x = y.clip(0, labels.shape[0] - 1), x.clip(0, labels.shape[1] - 1)
        labels_near.append(labels[y, x])
        distance = (places[0] - y) ** 2 + (places[1] - x) ** 2
        likeness = ((colors - small[y, x]) ** 2).sum(1)
        weight = -distance / (2 * _CELLS**2) - likeness / (2 * _COLOR**2)
        weights_near.append(np.where(inside, weight, -np.inf))
    found, weights = np.stack(labels_near), np.stack(weights_near)
    weights = np.exp(weights - weights.max(0))  # a pixel like none still has a nearest in colour
    votes = np.stack([(weights * (found == own)).sum(0) for own in found])
    return np.take_along_axis(found, votes.argmax(0)[None], 0)[0]
