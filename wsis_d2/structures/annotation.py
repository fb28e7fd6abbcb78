# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""What weak annotation says: of a dataset, its classes; of an image, boxes, tags and crop tags."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from wsis_d2.structures.boxes import Box, by_centre, touched
from wsis_d2.structures.labels import IGNORE


class CropTags(NamedTuple):
    """The classes present in one crop of an image; ``x1`` and ``y1`` are exclusive."""

    x0: int
    y0: int
    x1: int
    y1: int
    tags: frozenset[int]


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


def record_crops(record: Mapping, extra: Collection[int] = ()) -> list[CropTags]:
    """Return the crops of a weak record and their tags; without crop tags, the image as one crop.

    Args:
        record: a weak record; the ``box`` of a crop tag is ``[x, y, width, height]``.
        extra: classes that every crop may hold beside its tags.

    Returns:
        None where the record has no tags at all.
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
