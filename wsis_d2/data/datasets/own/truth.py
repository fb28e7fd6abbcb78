# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""COCO panoptic truth for records of full supervision; weak records never come through here."""

from pathlib import Path
from typing import Any

from wsis_d2.data.datasets.own.values import shorten
from wsis_d2.data.panoptic_format import PanopticFile
from wsis_d2.structures.classes import ClassTable
from wsis_d2.utils.errors import InputError


def add_truth(
    records: list[dict], panoptic_json: str, panoptic_dir: str, classes: ClassTable
) -> list[dict]:
    """Give each record of full supervision its truth; weak records pass unchanged.

    Args:
        records: dataset dicts; those whose ``supervision`` is "full" gain ``pan_seg_file_name``
            (RGB PNG, id = R + 256 G + 65536 B) and ``segments_info`` (``id``, contiguous
            ``category_id``, ``isthing``, ``iscrowd``, and ``area`` and ``bbox`` where known).
        panoptic_json, panoptic_dir: the COCO panoptic file and its folder of PNGs.
        classes: the dataset's classes, which the file's meet by name.

    Raises:
        InputError: an image without truth, a missing PNG, an id that stands for another picture
            there; or as :class:`PanopticFile` and its :meth:`~PanopticFile.in_classes`.
    """
    if all(record["supervision"] != "full" for record in records):
        return records
    file = PanopticFile(panoptic_json, panoptic_dir).in_classes(classes)
    there: dict[Path, set[str]] = {}
    return [
        {**record, **_truth(record, file, there)} if record["supervision"] == "full" else record
        for record in records
    ]


def _truth(record: dict, file: PanopticFile, there: dict[Path, set[str]]) -> dict:
    """Return the truth of a record; ``there`` holds what folders hold, each listed once."""
    key, classes = str(record["image_id"]), file.classes
    if key not in file.annotations:
        raise InputError(
            f"{file.json_file}: no annotation for image id {shorten(record['image_id'])} "
            f"({record['file_name']}), which is fully supervised; add it under the id of the "
            "own-data file, or make the image weak"
        )
    file.pictures.check(key, record["file_name"], "the own-data file")
    png = file.png(key)
    if png.parent not in there:
        folder = png.parent
        there[folder] = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
    if png.name not in there[png.parent]:
        raise InputError(f"{file.json_file}: image id {key}: no file {png}")
    segments = []
    for segment in file.segments(key):
        class_id = classes.contiguous[segment["category_id"]]
        entry: dict[str, Any] = {k: segment[k] for k in ("area", "bbox") if k in segment}
        entry.update(id=segment["id"], category_id=class_id, isthing=classes.isthing[class_id])
        segments.append(entry | {"iscrowd": int(segment.get("iscrowd", 0))})
    return {"pan_seg_file_name": str(png), "segments_info": segments}
