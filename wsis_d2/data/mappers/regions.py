# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Windows with tags and boxes of a weak record, moved with its image."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

from wsis_d2.structures.annotation import whole_image_groups

UNKNOWN = -1.0
"""The target of a class that may or may not be there."""


def annotation_regions(
    record: Mapping,
    windows: Sequence[tuple[Sequence[int], torch.Tensor]],
    transforms: T.TransformList,
    thing_ids: Collection[int],
    has_boxes: bool = True,
) -> dict:
    """Return what :class:`wsis_d2.modeling.annotation_losses.AnnotationLosses` reads.

    Args:
        record: its boxes are taken from ``annotations``; a thing that tags or marks alone tell of
            is a group over the image.
        windows: corners ``(x0, y0, x1, y1)``, ends exclusive, and target of each, (classes,)
            float32: 1 present, 0 absent, -1 unknown.
        transforms: what the image went through. After a crop, windows and boxes may reach past
            the image, or lie outside it.
        thing_ids: contiguous ids of the things.
        has_boxes: whether the dataset's boxes are complete.

    Returns:
        ``crops``, a list of ``(x0, y0, x1, y1)``; ``crop_targets`` (crops, classes); ``boxes``, a
        list of ``(corners, class, is a group)``; ``has_boxes``.
    """
    annotations = [
        *record.get("annotations", ()),
        *(
            {"bbox": box.corners, "bbox_mode": 0, "category_id": box.class_id, "iscrowd": 1}
            for box in whole_image_groups(record, thing_ids)
        ),
    ]
    corners = [
        BoxMode.convert(a["bbox"], BoxMode(a["bbox_mode"]), BoxMode.XYXY_ABS) for a in annotations
    ]
    before = np.array([w for w, _ in windows] + corners, float).reshape(-1, 4)
    moved = [tuple(row) for row in transforms.apply_box(before).tolist()] if len(before) else []
    return {
        "crops": moved[: len(windows)],
        "crop_targets": torch.stack([t for _, t in windows]) if windows else torch.zeros(0, 0),
        "boxes": [
            (box, int(a["category_id"]), bool(a.get("iscrowd", 0)))
            for box, a in zip(moved[len(windows) :], annotations, strict=True)
        ],
        "has_boxes": has_boxes,
    }
