# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""What points and scribbles add to the labels of an image.

Addition, not in the paper.
"""

from typing import NamedTuple

import numpy as np

from wsis_d2.structures.annotation import Marks
from wsis_d2.structures.boxes import Box
from wsis_d2.structures.labels import IGNORE, INSTANCE_IGNORE

#: An object without a box is looked for around its marks: their box, grown by this share of its
#: sides, and no side less than this share of the image's shorter one.
_GROWN, _LEAST = 0.25, 1 / 3


class Hints(NamedTuple):
    """What is known of a box's object beside the box.

    Attributes:
        owner: its place in the record's annotations; -1 is unknown.
        inside, outside: (H, W) bool, pixels marked as the object and as something else.
        guessed: the box is no annotation but was guessed from the marks.
    """

    owner: int = -1
    inside: np.ndarray | None = None
    outside: np.ndarray | None = None
    guessed: bool = False


NO_HINTS = Hints()


def hints_of(index: int, class_id: int, marks: Marks | None, guessed: bool = False) -> Hints:
    """Return the hints of one object of an image."""
    if marks is None:
        return Hints(index)
    return Hints(index, marks.of(index), marks.others(index, class_id), guessed)


def guessed_box(marks: Marks, index: int, class_id: int) -> Box | None:
    """Return where to look for an object without a box; None where no mark of it is left."""
    rows, columns = np.nonzero(marks.of(index))
    if not rows.size:
        return None
    height, width = marks.classes.shape
    ends = []
    for values, side in ((columns, width), (rows, height)):
        low, high = int(values.min()), int(values.max()) + 1
        least = _LEAST * min(height, width) - (high - low)
        grow = round(max(_GROWN * (high - low), least / 2))
        ends.append((max(0, low - grow), min(side, high + grow) - 1))
    (x0, x1), (y0, y1) = ends
    return Box(class_id, x0, y0, x1, y1)


def grow_class_marks(
    marks: Marks, regions: np.ndarray | None, semantic: np.ndarray, closed: np.ndarray
) -> int:
    """Give the regions that marks of one class alone touch to it, in place; return the pixels.

    Marks of objects do not grow so, but keep others from growing into their regions.

    Args:
        marks: the image's.
        regions: (H, W) int, small regions of like pixels; None: nothing grows.
        semantic: (H, W) uint8, changed where it is 255.
        closed: (H, W) bool, where nothing may grow (boxes).
    """
    if regions is None or not (marks.owners[marks.classes != IGNORE] < 0).any():
        return 0
    count = int(regions.max()) + 1
    low, high = np.full(count, 999), np.full(count, -1)
    marked = marks.classes != IGNORE
    np.minimum.at(low, regions[marked], marks.classes[marked])
    np.maximum.at(high, regions[marked], marks.classes[marked])
    free = low == high
    free[regions[marks.owners >= 0]] = False
    grown = free[regions] & (semantic == IGNORE) & ~closed
    semantic[grown] = low[regions[grown]]
    return int(np.count_nonzero(grown))


def state_marks(
    marks: Marks,
    semantic: np.ndarray,
    instance: np.ndarray,
    numbers: dict[int, int],
    segments: list[dict],
    thing_classes: set[int],
) -> None:
    """Write marks into labels, and stuff that came from them into instances, in place.

    Args:
        marks: the image's.
        semantic: (H, W) uint8.
        instance: (H, W) int32.
        numbers: place in the annotations to segment id.
        segments: gets those of the stuff classes that have none.
        thing_classes: classes whose pixels without an object are of no known instance.
    """
    marks.state_facts(semantic)
    instance[semantic == IGNORE] = INSTANCE_IGNORE
    classes = marks.classes[marks.classes != IGNORE]
    known = {s["category_id"]: s["id"] for s in segments}
    for class_id in np.unique(classes).tolist():
        marked = marks.classes == class_id
        if class_id in thing_classes:
            instance[marked] = INSTANCE_IGNORE
            continue
        if class_id not in known:
            known[class_id] = max((s["id"] for s in segments), default=0) + 1
            segments.append({"id": known[class_id], "category_id": class_id})
        instance[semantic == class_id] = known[class_id]
    for owner in np.unique(marks.owners[marks.owners >= 0]).tolist():
        instance[marks.of(owner)] = numbers.get(owner, INSTANCE_IGNORE)
