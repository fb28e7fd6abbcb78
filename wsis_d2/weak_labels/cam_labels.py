# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Class activation maps to cue labels (paper 3.3), as pure functions of arrays."""

from collections.abc import Mapping, Sequence

import numpy as np

from wsis_d2.structures.labels import IGNORE


def stitch_maps(
    size: tuple[int, int],
    crops: Sequence[Sequence],
    maps: Sequence[Mapping[int, np.ndarray]],
) -> dict[int, np.ndarray]:
    """Put the maps of crops together; where crops overlap, the larger activation counts.

    Args:
        size: height and width of the image.
        crops: ``(x0, y0, x1, y1, ...)`` each, ends exclusive.
        maps: for each crop, class id to (crop height, crop width) float in [0, 1].

    Returns:
        Class id to (H, W) float32; 0 where no crop has the class.
    """
    stitched: dict[int, np.ndarray] = {}
    for (x0, y0, x1, y1, *_), own in zip(crops, maps, strict=True):
        for class_id, values in own.items():
            if class_id not in stitched:
                stitched[class_id] = np.zeros(size, np.float32)
            window = stitched[class_id][y0:y1, x0:x1]
            if values.shape != window.shape:
                raise ValueError(
                    f"crop {(x0, y0, x1, y1)}: map has shape {values.shape}, not {window.shape}"
                )
            np.maximum(window, values, out=window)
    return stitched


def cue_labels(
    maps: Mapping[int, np.ndarray], size: tuple[int, int], threshold: float = 0.5
) -> np.ndarray:
    """Threshold maps relative to their maximum and lay the smaller classes over the larger.

    Args:
        maps: class id to (H, W) float, not negative; only the classes that the tags name.
        size: height and width of the image.
        threshold: share of the class's maximum from which a pixel is a cue; above 0, at most 1.

    Returns:
        (H, W) uint8: the class with the smallest thresholded area in the image that claims the
        pixel (equal areas: the lower class id), 255 where none does. A map without a positive
        value claims nothing.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"CAM.THRESHOLD is {threshold}, expected above 0 and at most 1")
    claims = []
    for class_id, values in maps.items():
        if values.shape != tuple(size):
            raise ValueError(f"map of class {class_id}: shape {values.shape}, not {tuple(size)}")
        maximum = float(values.max()) if values.size else 0.0
        if maximum > 0:
            claim = values >= threshold * maximum
            claims.append((int(np.count_nonzero(claim)), class_id, claim))
    labels = np.full(size, IGNORE, np.uint8)
    for _, class_id, claim in sorted(claims, key=lambda item: item[:2], reverse=True):
        labels[claim] = class_id
    return labels
