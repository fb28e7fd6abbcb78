# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Objects of one class told apart by their boxes (paper 3.2)."""

from collections.abc import Sequence

import numpy as np

from wsis_d2.structures.annotation import Marks
from wsis_d2.structures.boxes import Box
from wsis_d2.structures.labels import IGNORE, INSTANCE_IGNORE


def instance_labels(
    labels: np.ndarray,
    boxes: Sequence[Box],
    stuff_ids: Sequence[int] = (),
    marks: Marks | None = None,
) -> tuple[np.ndarray, list[dict]]:
    """Tell instances apart by their boxes: the last step of cleaning.

    Repeated boxes of one class count once, groups give no instance, and each remaining box has an
    id of its own, 1 to N, even where it ends without a pixel. A pixel of a class belongs to the
    one box of that class that covers it; covered by two it is ignored.

    Args:
        labels: (H, W) uint8.
        boxes: things and groups, in annotation order.
        stuff_ids: stuff classes that get an instance over the whole image, before the boxes.
        marks: points and scribbles; what an object's own say, holds.

    Returns:
        (H, W) int32 (0 = no instance, -1 = ignore), and ``{"id", "category_id"}`` of the
        instances that have pixels.
    """
    height, width = labels.shape
    instance = np.zeros(labels.shape, np.int32)
    instance[labels == IGNORE] = INSTANCE_IGNORE
    whole = [Box(int(i), 0, 0, width - 1, height - 1) for i in stuff_ids]
    # A group that repeats a box hides it where it comes first, as unique rows do in the authors'
    # code.
    unique: dict[tuple, Box] = {}
    for box in [*whole, *boxes]:
        unique.setdefault(tuple(box[:5]), box)
    kept = [box for box in unique.values() if not box.is_group]
    for number, box in enumerate(kept, start=1):
        own = labels[box.window] == box.class_id
        inside = instance[box.window]
        free = inside == 0
        inside[own & ~free] = INSTANCE_IGNORE
        inside[own & free] = number
    if marks is not None:
        for owner, box in enumerate(boxes):
            number = next((n for n, b in enumerate(kept, 1) if b[:5] == box[:5]), None)
            if number is not None:
                instance[marks.of(owner) & (labels == box.class_id)] = number
    present = np.unique(instance)
    segments = [
        {"id": int(i), "category_id": int(kept[i - 1].class_id)} for i in present[present > 0]
    ]
    return instance, segments
