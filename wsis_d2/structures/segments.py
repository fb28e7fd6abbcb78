# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Segments of a panoptic map: their ids as the colours of a picture, and their sizes."""

import numpy as np
from scipy import ndimage


def id_picture(ids: np.ndarray) -> np.ndarray:
    """Return segment ids (H, W), 0 to 2^24 - 1, as COCO's colours: R + 256 G + 65536 B.

    Returns:
        uint8 (H, W, 3).
    """
    picture = np.empty((*ids.shape, 3), np.uint8)
    picture[..., 0] = ids & 255
    picture[..., 1] = (ids >> 8) & 255
    picture[..., 2] = (ids >> 16) & 255
    return picture


def picture_ids(picture: np.ndarray) -> np.ndarray:
    """Return the segment ids, int32 (...), of colours, uint8 (..., 3)."""
    ids = picture[..., 2].astype(np.int32)
    for channel in (1, 0):
        ids <<= 8
        ids |= picture[..., channel]
    return ids


def segment_sizes(segment_ids: np.ndarray) -> dict[int, tuple[int, list[int]]]:
    """Measure the segments of an int (H, W) map; 0 is void.

    Returns:
        {segment id, ascending: (area, tight box [x, y, width, height])}; the box holds the first
        and the last pixel.
    """
    areas = np.bincount(segment_ids.reshape(-1))
    areas[0] = 0
    values = np.flatnonzero(areas)
    places = np.zeros(len(areas), np.int32)
    places[values] = np.arange(1, len(values) + 1)
    sizes = {}
    slices = ndimage.find_objects(places[segment_ids])
    for value, (rows, columns) in zip(values.tolist(), slices, strict=True):
        box = [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
        sizes[value] = (int(areas[value]), box)
    return sizes
