# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The steps of cleaning that change a semantic map, each a function of map and boxes.

:func:`wsis_d2.weak_labels.clean.clean_labels` calls them in their order. Boxes are in whole pixels
inside the image (:func:`boxes_inside`).
"""

import itertools
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from wsis_d2.structures.annotation import CropTags
from wsis_d2.structures.boxes import Box
from wsis_d2.structures.labels import IGNORE, keep_table, member_table


def boxes_inside(boxes: Iterable[Sequence], shape: tuple[int, int]) -> list[Box]:
    """Return boxes as integers inside an image; one that lies outside becomes empty.

    Raises:
        ValueError: a number that is not whole, a class id outside 0 to 254.
    """
    inside = []
    for box in itertools.starmap(Box, boxes):
        for name, value in zip(Box._fields[:5], box[:5], strict=True):
            if int(value) != value:
                raise ValueError(f"box {tuple(box)}: {name} is {value}, expected a whole number")
        class_id, x0, y0, x1, y1 = (int(value) for value in box[:5])
        check_classes(f"box {tuple(box)}", [class_id])
        inside.append(Box(class_id, x0, y0, x1, y1, bool(box.is_group)).clipped(*shape))
    return inside


def check_classes(name: str, class_ids: Iterable[int]) -> None:
    """Raise a ValueError where an id is none of a class."""
    for class_id in class_ids:
        if not 0 <= class_id < IGNORE:
            raise ValueError(f"{name}: class id {class_id}, expected 0 to {IGNORE - 1}")


def covered(boxes: Iterable[Box], shape: tuple[int, int]) -> np.ndarray:
    """Return the pixels that lie in any of the boxes, (H, W) bool."""
    inside = np.zeros(shape, bool)
    for box in boxes:
        inside[box.window] = True
    return inside


def add_box_classes(crops: Iterable[CropTags], boxes: Sequence[Box]) -> list[CropTags]:
    """Return ``crops`` with the class of every box, groups included, added where it meets one."""
    return [
        crop._replace(
            tags=frozenset(crop.tags)
            | {
                box.class_id
                for box in boxes
                if box.area
                and box.x0 < crop.x1
                and box.x1 >= crop.x0
                and box.y0 < crop.y1
                and box.y1 >= crop.y0
            }
        )
        for crop in crops
    ]


def check_tags(labels: np.ndarray, crops: Iterable[CropTags]) -> None:
    """Step 2: in each crop, set labels that are not among its tags to ignore, in place.

    Args:
        labels: (H, W) uint8, changed.
        crops: the crops; what reaches past the image is cut off.
    """
    for crop in crops:
        kept = [int(tag) for tag in crop.tags]
        check_classes("crop_tags", kept)
        lookup = keep_table(kept)
        window = labels[crop.window]
        window[...] = lookup[window]


def merge_masks(
    labels: np.ndarray,
    box_mask_map: np.ndarray,
    thing_ids: Collection[int],
    mask_ids: Collection[int] | None = None,
) -> np.ndarray:
    """Step 3: the things of the box masks win; elsewhere only predicted stuff stays.

    Args:
        labels: (H, W) uint8.
        box_mask_map: (H, W) uint8, the map of the box masks.
        thing_ids: the things of ``labels``.
        mask_ids: the values of ``box_mask_map`` that are things; None is ``thing_ids``.

    Returns:
        (H, W) uint8, a new array.
    """
    keep = keep_table(set(range(IGNORE)) - set(thing_ids))
    is_mask = member_table(thing_ids if mask_ids is None else mask_ids)
    return np.where(is_mask[box_mask_map], box_mask_map, keep[labels])


def apply_box_prior(
    labels: np.ndarray, boxes: Sequence[Box], thing_ids: Collection[int], outside_label: int
) -> None:
    """Step 4: a thing outside the union of its class's boxes becomes ``outside_label``, in place.

    Groups count as boxes. The ends of boxes are inclusive (paper 3.4). Where everything outside
    all boxes has a class, what is ignored there gets it too: the merge of the step before has made
    predicted things ignore, and they are known to be none.
    """
    for thing in sorted(thing_ids):
        predicted = labels == thing
        if predicted.any():
            own = [box for box in boxes if box.class_id == thing]
            labels[predicted & ~covered(own, labels.shape)] = outside_label
    if outside_label != IGNORE:
        labels[(labels == IGNORE) & ~covered(boxes, labels.shape)] = outside_label


def fill_boxes(
    labels: np.ndarray, boxes: Sequence[Box], thing_ids: Collection[int], threshold: float
) -> np.ndarray:
    """Step 5: give a box that holds too little of its class to that class.

    Boxes go from large to small (equal areas in annotation order). Only pixels that were stuff or
    ignore before the step are written, so things stay and a smaller box overwrites the fill of a
    larger one. Groups are left out. In this step alone a box is without its first column and row,
    as in the rasteriser that the authors used; a box of one column or row has no area here.

    Args:
        labels: (H, W) uint8.
        boxes: inclusive, inside the image.
        thing_ids: what may not be overwritten.
        threshold: boxes whose share of own pixels is below it are filled.

    Returns:
        (H, W) uint8, a new array.
    """
    is_thing = member_table(thing_ids)
    filled = labels.copy()
    candidates = [box for box in boxes if not box.is_group and box.x1 > box.x0 and box.y1 > box.y0]
    candidates.sort(key=lambda box: -box.area)
    for box in candidates:
        window = (slice(box.y0 + 1, box.y1 + 1), slice(box.x0 + 1, box.x1 + 1))
        before = labels[window]
        ratio = np.count_nonzero(before == box.class_id) / before.size
        if ratio < threshold:
            filled[window][~is_thing[before]] = box.class_id
    return filled
