# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Reader of COCO instances JSON, as CVAT, Label Studio, Roboflow and FiftyOne write it."""

import math
import os
from typing import Any

from wsis_d2.data.datasets.own.weak import shorten
from wsis_d2.data.importers.base import ImageIndex, ImportLog, Picture, add_box, check_known
from wsis_d2.data.importers.files import hull, is_finite
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.json_io import read_json


def read_coco(
    path: str | os.PathLike, images: ImageIndex, log: ImportLog
) -> tuple[list[Picture], list[dict]]:
    """Read COCO instances JSON (CVAT, Label Studio, Roboflow, FiftyOne, ...).

    Boxes without ``bbox`` are made of the polygon or run lengths; CVAT's ``rotation`` attribute
    gives the upright box of the turned one. ``image_tags`` or ``tags`` of an image entry are
    names or category ids; own-data ``crop_tags`` are kept.

    Returns:
        The pictures, whose ids are kept, and the file's categories, whose ids are kept too.
    """
    source = os.fspath(path)
    content = read_json(source)
    if not isinstance(content, dict):
        raise InputError(f"{source}: is a JSON {type(content).__name__}; expected a COCO object")
    for key in ("images", "categories"):
        if not isinstance(content.get(key), list):
            raise InputError(f'{source}: has no "{key}" list; expected COCO JSON')
    annotations = content.get("annotations", [])
    if not isinstance(annotations, list):
        raise InputError(f'{source}: "annotations" is no list; expected COCO JSON')
    categories = check_known(content["categories"], source)
    names = {c["id"]: c["name"] for c in categories}
    pictures: dict[Any, Picture | None] = {}
    used: set[str] = set()
    for k, entry in enumerate(content["images"]):
        where = f"{source}: images[{k}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), int | str):
            log.bad("image", where, "expected an object with an id")
            continue
        if entry["id"] in pictures:
            log.bad("image", where, f"id {shorten(entry['id'])} is used twice")
            continue
        pictures[entry["id"]] = None
        found = images.find(entry.get("file_name"), where, log)
        if found is None:
            continue
        if found in used:
            log.bad("image", where, f"the image {found} has two entries")
            continue
        size = (entry.get("width"), entry.get("height"))
        picture = images.picture(found, where, log, size)
        if picture is None:
            continue
        used.add(found)
        pictures[entry["id"]] = picture
        picture.image_id = entry["id"]
        picture.tags |= _names(entry.get("image_tags", entry.get("tags")), names, where, log)
        for crop in entry.get("crop_tags") or []:
            box = crop.get("box") if isinstance(crop, dict) else None
            if not isinstance(box, list) or len(box) != 4 or not all(map(is_finite, box)):
                log.bad("tag", where, f"crop {shorten(crop)}: expected box and tags")
                continue
            picture.crop_tags.append((tuple(box), _names(crop.get("tags"), names, where, log)))
    for k, annotation in enumerate(annotations):
        where = f"{source}: annotations[{k}]"
        if not isinstance(annotation, dict):
            log.bad("box", where, "expected an object")
            continue
        image_id, category = annotation.get("image_id"), annotation.get("category_id")
        if not isinstance(image_id, int | str) or image_id not in pictures:
            log.bad("box", where, f"image_id {shorten(image_id)} is no image of the file")
            continue
        if not isinstance(category, int) or category not in names:
            log.bad("box", where, f"category_id {shorten(category)} is no category of the file")
            continue
        picture = pictures[image_id]
        if picture is None:
            log.drop("box", where, "its image was left out")
            continue
        corners = _coco_corners(annotation, picture, where, log)
        if corners is not None:
            crowd = annotation.get("iscrowd") in (1, True)
            add_box(picture, names[category], corners, where, log, crowd)
    return [p for p in pictures.values() if p is not None], categories


def _names(tags: Any, names: dict[int, str], where: str, log: ImportLog) -> set[str]:
    """Tags as class names: ids of the file, names, or ``{"name": ...}`` objects."""
    result = set()
    for tag in tags if isinstance(tags, list) else [tags] if tags else []:
        if isinstance(tag, dict):
            tag = tag.get("name", tag.get("label"))
        name = names.get(tag, tag) if isinstance(tag, int | str) else None
        if isinstance(name, str) and name.strip():
            result.add(name.strip())
        else:
            log.bad("tag", where, f"tag {shorten(tag)} is no class of the file")
    return result


def _coco_corners(annotation: dict, picture: Picture, where: str, log: ImportLog):
    box = annotation.get("bbox")
    if box:
        if not isinstance(box, list) or len(box) != 4 or not all(map(is_finite, box)):
            log.bad("box", where, f"bbox is {shorten(box)}, expected four finite numbers")
            return None
        x, y, w, h = box
        attributes = annotation.get("attributes")
        angle = attributes.get("rotation") if isinstance(attributes, dict) else None
        if is_finite(angle) and angle % 180 and w > 0 and h > 0:
            c, s = abs(math.cos(math.radians(angle))), abs(math.sin(math.radians(angle)))
            half_w, half_h = (w * c + h * s) / 2, (w * s + h * c) / 2
            x, y, w, h = x + w / 2 - half_w, y + h / 2 - half_h, 2 * half_w, 2 * half_h
            log.change("box", where, "rotated, taken by its upright box")
        return [x, y, x + w, y + h]
    mask = annotation.get("segmentation")
    if isinstance(mask, list) and mask:
        flat = [v for part in mask if isinstance(part, list) for v in part]
        if flat and len(flat) % 2 == 0 and all(map(is_finite, flat)):
            log.change("box", where, "no bbox, taken from the polygon")
            return hull(list(zip(flat[::2], flat[1::2], strict=True)))
    if isinstance(mask, dict):
        corners = _rle_corners(mask, picture)
        if corners is not None:
            log.change("box", where, "no bbox, taken from the run lengths")
            return corners
    log.drop("box", where, "neither bbox nor a usable segmentation")
    return None


def _rle_corners(mask: dict, picture: Picture) -> list[float] | None:
    """Corners of a run-length mask of the image's size; None where it is anything else."""
    import pycocotools.mask as mask_util

    size, counts = mask.get("size"), mask.get("counts")
    if size != [picture.height, picture.width]:
        return None
    try:
        if isinstance(counts, list):
            runs = all(type(v) is int and v >= 0 for v in counts)
            if not runs or sum(counts) != size[0] * size[1]:
                return None
            mask = mask_util.frPyObjects({"size": size, "counts": counts}, *size)
        x, y, w, h = map(float, mask_util.toBbox(mask))
    except (TypeError, ValueError, KeyError, AttributeError):
        return None
    return [x, y, x + w, y + h]
