# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""What weak annotation says: of a dataset, its classes; of an image, boxes, tags and marks.

Marks are points and scribbles (polylines), in pixels of the image. Those of an object are in the
``points`` and ``scribbles`` of its entry in ``annotations``, or in ``unboxed`` where it has no box;
those of a class in the fields of the record that have the same names. They are an addition, not in
the paper.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np

from wsis_d2.structures.boxes import Box, by_centre, touched
from wsis_d2.structures.labels import IGNORE

SUPERVISIONS = ("weak", "full", "mixed")
"""What the images of a dataset have: boxes and tags, panoptic truth, or some this, some that."""


class CropTags(NamedTuple):
    """The classes present in one crop of an image; ``x1`` and ``y1`` are exclusive."""

    x0: int
    y0: int
    x1: int
    y1: int
    tags: frozenset[int]

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns, to index an (H, W) array; what reaches out of it is cut off."""
        return slice(max(self.y0, 0), max(self.y1, 0)), slice(max(self.x0, 0), max(self.x1, 0))


@dataclass(frozen=True)
class AnnotatedClasses:
    """What a dataset's annotation knows of its classes; with a record, all that cleaning needs.

    Attributes:
        thing_ids: contiguous ids of the things.
        outside_label: 255, or the class of everything outside all boxes (Pascal VOC: 0).
        has_boxes: boxes and tags are complete; not so on Cityscapes' train_extra, where the tag
            check, the box prior and the instances are left out.
    """

    thing_ids: frozenset[int]
    outside_label: int = IGNORE
    has_boxes: bool = True

    @classmethod
    def of(
        cls,
        categories: Sequence[Mapping],
        outside_boxes: int | str = "ignore",
        has_boxes: bool = True,
    ) -> "AnnotatedClasses":
        """Read the annotation file's categories; contiguous ids follow ascending category ids."""
        ordered = sorted(categories, key=lambda c: c["id"])
        things = frozenset(i for i, c in enumerate(ordered) if c.get("isthing", 1))
        outside = IGNORE if outside_boxes == "ignore" else int(outside_boxes)
        return cls(things, outside, has_boxes)

    @classmethod
    def of_dataset(cls, metadata: Any) -> "AnnotatedClasses":
        """Read the metadata of a registered dataset."""
        return cls.of(
            metadata.categories,
            metadata.get("outside_boxes", "ignore"),
            metadata.get("has_boxes", True),
        )

    @property
    def outside_classes(self) -> frozenset[int]:
        """The class outside boxes, which needs no tag."""
        return frozenset() if self.outside_label == IGNORE else frozenset({self.outside_label})


def touched_boxes(record: Mapping) -> list[Box]:
    """Return a record's boxes by the rule :func:`wsis_d2.structures.boxes.touched`, in order."""
    return [touched(annotation) for annotation in record.get("annotations", ())]


def centre_boxes(record: Mapping) -> list[Box]:
    """Return a record's boxes by the rule :func:`wsis_d2.structures.boxes.by_centre`, in order."""
    height, width = int(record["height"]), int(record["width"])
    return [by_centre(annotation, height, width) for annotation in record.get("annotations", ())]


@dataclass(frozen=True)
class Marks:
    """Points and scribbles of one image, drawn one pixel wide: facts.

    Attributes:
        classes: (H, W) uint8, the class that was marked, 255 = none. A pixel that two classes mark
            is none's.
        owners: (H, W) int32, the object that was marked, -1 = none was told: its place in
            ``annotations``, or behind them, in ``unboxed``.
        denied: (H, W) uint8, the class whose object was marked as not being here, 255 = none.
        denied_owners: (H, W) int32, that object; -1 = none.
    """

    classes: np.ndarray
    owners: np.ndarray
    denied: np.ndarray
    denied_owners: np.ndarray

    def of(self, owner: int) -> np.ndarray:
        """Return the pixels that were marked as an object, (H, W) bool."""
        return self.owners == owner

    def others(self, owner: int, class_id: int) -> np.ndarray:
        """Return the pixels that are marked as something else than an object, (H, W) bool.

        Marks of its class that name no object may be its own.
        """
        same = (self.owners == owner) | ((self.owners < 0) & (self.classes == class_id))
        return ((self.classes != IGNORE) & ~same) | (self.denied_owners == owner)

    def state_facts(self, labels: np.ndarray) -> None:
        """Write what was marked into a semantic map, (H, W) uint8, in place."""
        labels[(self.denied != IGNORE) & (labels == self.denied)] = IGNORE
        marked = self.classes != IGNORE
        labels[marked] = self.classes[marked]


def unboxed_classes(record: Mapping) -> list[int]:
    """Return the classes of the objects that have marks and no box."""
    return [int(entry["category_id"]) for entry in record.get("unboxed", ())]


def whole_image_groups(record: Mapping, thing_ids: Collection[int]) -> list[Box]:
    """Return, as one group over the image, each class that has objects of unknown extent.

    These are the objects without a box, and what tags and marks of a class in ``thing_ids`` tell of
    where it has no box at all.
    """
    height, width = int(record["height"]), int(record["width"])
    boxed = {int(a["category_id"]) for a in record.get("annotations", ())}
    named = {int(m["category_id"]) for k in ("points", "scribbles") for m in record.get(k, ())}
    named |= set(record.get("image_tags") or ())
    classes = {*unboxed_classes(record), *((named & set(thing_ids)) - boxed)}
    return [Box(class_id, 0, 0, width - 1, height - 1, True) for class_id in sorted(classes)]


def record_marks(record: Mapping) -> Marks | None:
    """Draw the points and scribbles of a record; None where it has none.

    A mark of a class of things that lies in one box of its class alone is that box's.
    """
    entries = list(_marks(record))
    if not entries:
        return None
    shape = int(record["height"]), int(record["width"])
    classes = np.full(shape, IGNORE, np.uint8)
    owners = np.full(shape, -1, np.int32)
    denied, denied_owners = classes.copy(), owners.copy()
    twice = np.zeros(shape, bool)
    for class_id, owner, inside, line in entries:
        rows, columns = _pixels(line, shape)
        if not inside:
            denied[rows, columns], denied_owners[rows, columns] = class_id, owner
            continue
        held = classes[rows, columns]
        twice[rows, columns] |= (held != IGNORE) & (held != class_id)
        classes[rows, columns] = class_id
        if owner >= 0:
            owners[rows, columns] = owner
    classes[twice] = IGNORE
    owners[twice] = -1
    _find_owners(record, classes, owners)
    return Marks(classes, owners, denied, denied_owners)


def _marks(record: Mapping) -> Iterator[tuple[int, int, bool, Sequence]]:
    """Yield class, object or -1, whether it is inside, and points of each mark."""
    for entry in record.get("points", ()):
        yield int(entry["category_id"]), -1, True, [entry["xy"]]
    for entry in record.get("scribbles", ()):
        yield int(entry["category_id"]), -1, True, entry["xy"]
    objects = [*record.get("annotations", ()), *record.get("unboxed", ())]
    for owner, entry in enumerate(objects):
        class_id = int(entry["category_id"])
        for x, y, *inside in entry.get("points", ()):
            yield class_id, owner, not inside or bool(inside[0]), [(x, y)]
        for line in entry.get("scribbles", ()):
            yield class_id, owner, True, line


def _pixels(line: Sequence, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns of a polyline."""
    corners = np.floor(np.asarray(line, float)).astype(np.int64)
    corners = np.clip(corners, 0, [shape[1] - 1, shape[0] - 1])
    low = corners.min(axis=0)
    window = np.zeros(tuple((corners.max(axis=0) - low + 1)[::-1]), np.uint8)
    cv2.polylines(window, [(corners - low).astype(np.int32)], False, 1)
    window[tuple((corners - low).T[::-1])] = 1  # OpenCV draws nothing of a single point
    rows, columns = np.nonzero(window)
    return rows + low[1], columns + low[0]


def _find_owners(record: Mapping, classes: np.ndarray, owners: np.ndarray) -> None:
    count = np.zeros(owners.shape, np.int32)
    only = np.full(owners.shape, -1, np.int32)
    unowned = (owners < 0) & (classes != IGNORE)
    if not unowned.any():
        return
    for owner, box in enumerate(touched_boxes(record)):
        if not box.is_group:
            window = box.clipped(*owners.shape).window
            own = unowned[window] & (classes[window] == box.class_id)
            count[window] += own
            only[window][own] = owner
    sure = unowned & (count == 1)
    owners[sure] = only[sure]


def record_crops(record: Mapping, extra: Collection[int] = ()) -> list[CropTags]:
    """Return the crops of a weak record and their tags; without crop tags, the image as one crop.

    Args:
        record: a weak record; the ``box`` of a crop tag is ``[x, y, width, height]``.
        extra: classes that every crop may hold beside its tags.

    Returns:
        The crops; [] where the record has no tags at all.
    """
    extra = frozenset(extra)
    crops = record.get("crop_tags")
    if crops:
        return [
            CropTags(
                round(x), round(y), round(x + w), round(y + h), frozenset(crop["tags"]) | extra
            )
            for crop in crops
            for x, y, w, h in [crop["box"]]
        ]
    if not record.get("image_tags"):
        return []
    tags = frozenset(record["image_tags"]) | extra
    return [CropTags(0, 0, record["width"], record["height"], tags)]


def stuff_crops(
    record: Mapping, thing_ids: Collection[int], extra: Collection[int] = ()
) -> list[CropTags]:
    """Return :func:`record_crops`, or [] where all tags are of things.

    Nobody has tagged the stuff of such an image: any may be there.

    Args:
        record, extra: as for :func:`record_crops`.
        thing_ids: contiguous ids of the things.
    """
    if all(crop.tags <= set(thing_ids) for crop in record_crops(record)):
        return []
    return record_crops(record, extra)
