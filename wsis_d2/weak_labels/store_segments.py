# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The segments of a label store: which maps it takes, and how COCO's panoptic format lists them."""

import os
from collections.abc import Mapping

import numpy as np

from wsis_d2.structures.classes import ClassTable
from wsis_d2.structures.labels import IGNORE, INSTANCE_IGNORE
from wsis_d2.structures.segments import segment_sizes
from wsis_d2.utils.errors import InputError
from wsis_d2.weak_labels.store_manifest import COMMAND
from wsis_d2.weak_labels.store_status import image_key

_ANEW = f"delete it and run the command that made it again: {COMMAND}"


def check_labels(
    semantic: np.ndarray,
    instance: np.ndarray,
    segments: list[dict],
    size: tuple[int, int],
    num_classes: int,
) -> list[dict]:
    """Check what a store is to hold; return the segments with pixels, their area and box."""
    for name, array in (("semantic", semantic), ("instance", instance)):
        if array.shape != size:
            raise ValueError(f"{name} map has shape {array.shape}, the image has {size}")
        if array.dtype.kind not in "iu":
            raise ValueError(f"{name} map has type {array.dtype}, integers were expected")
    classes = np.unique(semantic)
    wrong = classes[(classes < 0) | ((classes >= num_classes) & (classes != IGNORE))]
    if wrong.size:
        raise ValueError(f"semantic map holds {wrong.tolist()}, classes are 0..{num_classes - 1}")
    ids = [int(s["id"]) for s in segments]
    if len(set(ids)) != len(ids) or any(not 0 < i < 1 << 24 for i in ids):
        raise ValueError(f"segment ids must be different and in 1..2^24-1, found {ids}")
    bad = [s for s in segments if not 0 <= int(s["category_id"]) < num_classes]
    if bad:
        raise ValueError(f"segments of classes outside 0..{num_classes - 1}: {bad}")
    present = np.unique(instance)
    unknown = sorted(set(present[present > 0].tolist()) - set(ids))
    if unknown or (present.size and present[0] < INSTANCE_IGNORE):
        raise ValueError(f"instance map holds ids without a segment: {unknown or present[0]}")
    sizes = segment_sizes(np.maximum(instance, 0).astype(np.int32))
    return [
        {
            "id": int(segment["id"]),
            "category_id": int(segment["category_id"]),
            "area": sizes[int(segment["id"])][0],
            "bbox": sizes[int(segment["id"])][1],
            **({"score": float(segment["score"])} if "score" in segment else {}),
        }
        for segment in segments
        if int(segment["id"]) in sizes
    ]


def check_semantic(
    path: str | os.PathLike, semantic: np.ndarray, entry: Mapping, num_classes: int
) -> None:
    """Refuse a semantic map that another program has written since.

    Raises:
        InputError: it is of another size than its image, or holds what is no class.
    """
    size = (entry["height"], entry["width"])
    if semantic.shape != size:
        raise InputError(f"{path}: has shape {semantic.shape}, its image {size}; {_ANEW}")
    wrong = semantic[(semantic >= num_classes) & (semantic != IGNORE)]
    if wrong.size:
        raise InputError(
            f"{path}: holds class {wrong[0]}, expected 0 to {num_classes - 1} or {IGNORE}; {_ANEW}"
        )


def panoptic_content(entries: list[dict], classes: ClassTable) -> dict:
    """Return ``images`` and ``annotations`` of ``panoptic.json``.

    Args:
        entries: the status of the images whose labels are there.
        classes: whose category ids the file has.
    """
    keys = ("file_name", "height", "width")
    return {
        "images": [{"id": e["image_id"], **{key: e[key] for key in keys}} for e in entries],
        "annotations": [
            {
                "image_id": entry["image_id"],
                "file_name": f"{image_key(entry['image_id'])}.png",
                "segments_info": [
                    {
                        "id": s["id"],
                        "category_id": classes.ids[s["category_id"]],
                        "area": s["area"],
                        "bbox": s["bbox"],
                        "iscrowd": 0,
                        **({"score": s["score"]} if "score" in s else {}),
                    }
                    for s in entry["segments"]
                ],
            }
            for entry in entries
        ],
    }
