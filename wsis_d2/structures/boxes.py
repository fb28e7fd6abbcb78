# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Boxes in whole pixels, and the rules by which real-valued corners become pixels.

Annotated corners are continuous: pixel k spans [k, k + 1). Which pixels a box has, a rule decides:

- :func:`by_centre`: those whose centre it covers; boxes to masks, where a box is to be as tight as
  its object;
- :func:`touched`: those that it covers any of; cleaning, where a box must not cut its object;
- truncated: corners cut to integers, the last one included, as the authors' instance network has
  it (:func:`wsis_d2.modeling.instance.labels.box_masks`, on tensors).
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from wsis_d2.utils.errors import InputError


class Box(NamedTuple):
    """One annotated box of a thing, in whole pixels, both ends inclusive.

    Attributes:
        class_id: the class's contiguous id, 0 to 254.
        x0, y0, x1, y1: first and last column and row; ``x1 < x0`` or ``y1 < y0`` is an empty box.
        is_group: the box holds several objects that were not told apart (COCO's ``iscrowd``).
    """

    class_id: int
    x0: int
    y0: int
    x1: int
    y1: int
    is_group: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels; 0 where it is empty."""
        return max(0, self.y1 - self.y0 + 1), max(0, self.x1 - self.x0 + 1)

    @property
    def area(self) -> int:
        """Pixels."""
        height, width = self.shape
        return height * width

    @property
    def corners(self) -> tuple[int, int, int, int]:
        """x0, y0, x1, y1 with exclusive ends."""
        return self.x0, self.y0, self.x1 + 1, self.y1 + 1

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns, to index an (H, W) array that a box lies in; none of an empty one."""
        return slice(self.y0, max(self.y1 + 1, 0)), slice(self.x0, max(self.x1 + 1, 0))

    def clipped(self, height: int, width: int) -> "Box":
        """Return what of the box is inside an image; empty where that is nothing."""
        return self._replace(
            x0=max(self.x0, 0),
            y0=max(self.y0, 0),
            x1=min(self.x1, width - 1),
            y1=min(self.y1, height - 1),
        )


def xyxy(annotation: Mapping) -> tuple[float, float, float, float]:
    """Return the corners of a record's annotation.

    Detectron2's BoxMode is read by its numbers: worker processes need neither it nor torch.

    Raises:
        InputError: another mode than XYXY_ABS (0) and XYWH_ABS (1).
    """
    a, b, c, d = annotation["bbox"]
    mode = int(annotation["bbox_mode"])
    if mode == 0:
        return a, b, c, d
    if mode == 1:
        return a, b, a + c, b + d
    raise InputError(f"bbox_mode {mode}: expected XYXY_ABS (0) or XYWH_ABS (1)")


def touched(annotation: Mapping) -> Box:
    """Return the pixels that a box covers any of: 2.3 to 5.0 is columns 2, 3 and 4."""
    x0, y0, x1, y1 = xyxy(annotation)
    return Box(
        int(annotation["category_id"]), math.floor(x0), math.floor(y0), math.ceil(x1) - 1,
        math.ceil(y1) - 1, bool(annotation.get("iscrowd", 0)),
    )  # fmt: skip


def by_centre(annotation: Mapping, height: int, width: int) -> Box:
    """Return the pixels of an image whose centres a box covers, at least one.

    Args:
        annotation: of a record.
        height, width: of the image, in pixels; the box is clipped to it.
    """
    x0, y0, x1, y1 = (math.floor(value + 0.5) for value in xyxy(annotation))
    left = min(max(x0, 0), width - 1)
    top = min(max(y0, 0), height - 1)
    return Box(
        int(annotation["category_id"]), left, top, min(max(x1, left + 1), width) - 1,
        min(max(y1, top + 1), height) - 1, bool(annotation.get("iscrowd", 0)),
    )  # fmt: skip
