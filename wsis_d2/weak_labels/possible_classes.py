# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Which classes annotation leaves each pixel.

Addition, not in the paper, which applies its rules after the CRF alone.
"""

from collections.abc import Collection, Iterable, Sequence

import numpy as np

from wsis_d2.structures.annotation import CropTags
from wsis_d2.structures.boxes import Box
from wsis_d2.weak_labels.clean import CleanOptions
from wsis_d2.weak_labels.clean_steps import add_box_classes, boxes_inside, covered


def possible_classes(
    shape: tuple[int, int],
    num_classes: int,
    boxes: Sequence[Box] = (),
    crop_tags: Iterable[CropTags] = (),
    thing_ids: Collection[int] = frozenset(),
    options: CleanOptions | None = None,
) -> np.ndarray:
    """Return the classes of each pixel that cleaning's tag check and box prior would not delete.

    Args:
        shape: height and width of the image.
        num_classes: classes are 0 to ``num_classes - 1``.
        boxes, crop_tags, thing_ids: as :func:`wsis_d2.weak_labels.clean.clean_labels`.
        options: ``tags``, ``prior`` and ``add_box_classes_to_tags`` are read; None is the defaults.

    Returns:
        (num_classes, H, W) bool. A pixel may be left no class at all, where crops contradict.
    """
    options = options or CleanOptions()
    boxes = boxes_inside(boxes, shape)
    possible = np.ones((num_classes, *shape), bool)
    if options.tags:
        crops = [CropTags(*crop) for crop in crop_tags]
        if options.add_box_classes_to_tags:
            crops = add_box_classes(crops, boxes)
        for crop in crops:
            untagged = [i for i in range(num_classes) if i not in crop.tags]
            rows, columns = crop.window
            possible[untagged, rows, columns] = False
    if options.prior:
        for thing in {*thing_ids, *(box.class_id for box in boxes)}:
            possible[thing] &= covered([box for box in boxes if box.class_id == thing], shape)
    return possible
