# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""COCO panoptic truth for records of full supervision; weak records never come through here."""

import os
from typing import Any

from wsis_d2.data.datasets.own.values import shorten
from wsis_d2.data.datasets.own.weak import resolve_image_path
from wsis_d2.structures.classes import (
    ClassTable,
    check_segment_kind,
    match_classes,
    parse_categories,
)
from wsis_d2.structures.pictures import PictureNames
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.json_io import read_json


def add_truth(
    records: list[dict], panoptic_json: str, panoptic_dir: str, classes: ClassTable
) -> list[dict]:
    """Give each record of full supervision its truth; weak records pass unchanged.

    Args:
        records: dataset dicts; those whose ``supervision`` is "full" gain ``pan_seg_file_name``
            (RGB PNG, id = R + 256 G + 65536 B) and ``segments_info`` (``id``, contiguous
            ``category_id``, ``isthing``, ``iscrowd``, ``area``, ``bbox``).
        panoptic_json, panoptic_dir: the COCO panoptic file and its folder of PNGs.
        classes: the dataset's classes, which the file's meet by name.

    Raises:
        InputError: an image without truth, a missing PNG, other classes, a double segment id, an
            id that stands for another picture there.
    """
    wanted = {r["image_id"]: r["file_name"] for r in records if r["supervision"] == "full"}
    if not wanted:
        return records
    truth = _read_panoptic(panoptic_json, panoptic_dir, classes, wanted)
    result = []
    for record in records:
        if record["supervision"] == "full":
            if record["image_id"] not in truth:
                raise InputError(
                    f"{panoptic_json}: no annotation for image id {shorten(record['image_id'])} "
                    f"({record['file_name']}), which is fully supervised; add it under the id of "
                    "the own-data file, or make the image weak"
                )
            record = {**record, **truth[record["image_id"]]}
        result.append(record)
    return result


def _read_panoptic(
    path: str, folder: str, classes: ClassTable, wanted: dict[Any, str]
) -> dict[Any, dict[str, Any]]:
    content = read_json(path)
    annotations = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(annotations, list):
        raise InputError(f'{path}: "annotations" is no list; expected COCO panoptic JSON')
    known_classes = parse_categories(content.get("categories"), path)
    places = match_classes(classes, known_classes)
    try:
        there = set(os.listdir(folder))
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from None
    images = content.get("images") or []
    if not isinstance(images, list):
        raise InputError(f'{path}: "images" is no list; expected COCO panoptic JSON')
    pictures = PictureNames(images, path)
    truth: dict[Any, dict[str, Any]] = {}
    for position, annotation in enumerate(annotations):
        where = f"{path}: annotations[{position}]"
        if not isinstance(annotation, dict) or not isinstance(
            annotation.get("segments_info"), list
        ):
            raise InputError(
                f"{where}: has no segments_info; expected COCO panoptic JSON, not instances"
            )
        image_id = annotation.get("image_id")
        if not isinstance(image_id, int | str) or image_id not in wanted:
            continue
        pictures.check(image_id, wanted[image_id], "the own-data file")
        where += f" (image {shorten(image_id)})"
        if image_id in truth:
            raise InputError(f"{where}: the image is annotated twice")
        png = resolve_image_path(annotation.get("file_name"), folder, where)
        known = os.path.basename(png) in there if os.path.dirname(png) == folder else None
        if not (os.path.isfile(png) if known is None else known):
            raise InputError(f"{where}: no file {png}")
        segments, ids = [], set()
        for k, segment in enumerate(annotation["segments_info"]):
            label = f"{where}: segments_info[{k}]"
            if not isinstance(segment, dict) or type(segment.get("id")) is not int:
                raise InputError(f"{label}: expected an object with an integer id")
            if segment["id"] in ids or not 0 < segment["id"] < 2**24:
                raise InputError(f"{label}: id {segment['id']} is used twice or not in 1..2^24-1")
            ids.add(segment["id"])
            category = segment.get("category_id")
            if type(category) is not int or category not in known_classes.contiguous:
                raise InputError(
                    f"{label}: unknown class: category_id {shorten(category)}; "
                    f"expected one of {known_classes.id_text()}"
                )
            class_id = places[known_classes.contiguous[segment["category_id"]]]
            check_segment_kind(segment, classes.isthing[class_id], label)
            kept = {key: segment[key] for key in ("area", "bbox") if key in segment}
            segments.append(
                {
                    "id": segment["id"],
                    "category_id": class_id,
                    "isthing": bool(classes.isthing[class_id]),
                    "iscrowd": int(segment.get("iscrowd", 0)),
                    **kept,
                }
            )
        truth[image_id] = {"pan_seg_file_name": png, "segments_info": segments}
    return truth
