# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Reader of COCO instances JSON, as CVAT, Label Studio, Roboflow and FiftyOne write it."""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from wsis_d2.data.datasets.own.values import shorten
from wsis_d2.data.importers.files import box_order, hull, is_finite, to_number, upright
from wsis_d2.data.importers.foreign import what_it_is
from wsis_d2.data.importers.image_index import ImageIndex
from wsis_d2.data.importers.import_log import ImportLog
from wsis_d2.data.importers.names import fold, to_flag
from wsis_d2.data.importers.own_data import file_categories
from wsis_d2.data.importers.picture import Picture, add_box, add_crop, add_mark
from wsis_d2.data.importers.tags import split_names
from wsis_d2.structures.rle import checked_rle
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.json_io import read_json
from wsis_d2.weak_labels.store_status import id_names, is_image_id


def read_coco(
    path: str | os.PathLike,
    images: ImageIndex,
    log: ImportLog,
    *,
    bbox: str = "auto",
    crowds_as_objects: bool = False,
    known: Iterable[str] = (),
) -> tuple[list[Picture], list[dict]]:
    """Read COCO instances JSON (CVAT, Label Studio, Roboflow, FiftyOne, ...).

    Boxes without ``bbox`` are made of the polygon or run lengths; CVAT's ``rotation`` attribute
    gives the upright box of the turned one. ``image_tags`` of an image entry are names or category
    ids; its ``tags``, where tools put names of splits too, count where they are known classes;
    own-data ``crop_tags``, ``points``, ``scribbles`` and ``supervision`` are kept; visible key
    points are points.

    Args:
        path, images, log: as for all readers.
        bbox: what the four numbers are: "xywh", "xyxy", or "auto": x, y, width, height, and an
            error where boxes leave their images so but all of them fit as corners.
        crowds_as_objects: take ``iscrowd`` boxes as objects, which CVAT's brush masks are.
        known: class names beside the file's that ``tags`` may name.

    Returns:
        The pictures and the file's categories; ids of both, and of boxes, are kept.
    """
    source = os.fspath(path)
    content = read_json(source)
    what = what_it_is(content)
    if what and "is COCO JSON" not in what:
        raise InputError(f"{source}: no COCO instances JSON: {what}")
    if not isinstance(content, dict):
        raise InputError(f"{source}: is a JSON {type(content).__name__}; expected a COCO object")
    for key in ("images", "categories"):
        if not isinstance(content.get(key), list):
            raise InputError(f'{source}: has no "{key}" list; expected COCO JSON')
    annotations = content.get("annotations", [])
    if not isinstance(annotations, list):
        raise InputError(f'{source}: "annotations" is no list; expected COCO JSON')
    used_ids = {a.get("category_id") for a in annotations
                if isinstance(a, dict) and isinstance(a.get("category_id"), int)}  # fmt: skip
    categories, names = file_categories(
        _without_dummy(content["categories"], used_ids, source, log), source, log
    )
    tag_names = {fold(name) for name in (*names.values(), *known)}
    pictures: dict[str, Picture | None] = {}  # by ids as text: VIA has them in quotes in boxes
    used: set[str] = set()
    called: set[str] = set()
    for k, entry in enumerate(content["images"]):
        where = f"{source}: images[{k}]"
        if not isinstance(entry, dict) or not is_image_id(entry.get("id")):
            log.bad("image", where, "expected an object with an id: an integer or a short name")
            continue
        if called & id_names(entry["id"]):
            log.bad("image", where, f"id {shorten(entry['id'])} is used twice")
            continue
        called |= id_names(entry["id"])
        pictures[str(entry["id"])] = None
        found = images.find(entry.get("file_name"), where, log)
        if found is None:
            continue
        if found in used:
            log.bad("image", where, f"the image {found} has two entries")
            continue
        width, height = (
            to_number(v) if isinstance(v, str) else v
            for v in (entry.get("width"), entry.get("height"))
        )
        picture = images.picture(found, where, log, (width, height))
        if picture is None:
            continue
        used.add(found)
        pictures[str(entry["id"])] = picture
        picture.image_id = entry["id"]
        if entry.get("supervision") not in (None, "weak", "full"):
            found = shorten(entry["supervision"])
            log.bad("image", where, f'supervision is {found}, expected "weak" or "full"')
        picture.full = entry.get("supervision") == "full"
        picture.tags |= _names(entry.get("image_tags"), names, where, log, tag_names)
        for name in sorted(_names(entry.get("tags"), names, where, log)):
            if fold(name) in tag_names:
                picture.tags.add(name)
            else:
                why = f'"tags" has {shorten(name)}, no class of the file; --stuff makes it one'
                log.drop("tag", where, why)
        for crop in _listed(entry.get("crop_tags")):
            box = crop.get("box") if isinstance(crop, dict) else None
            if not isinstance(box, list) or crop.get("tags") is None:
                log.bad("tag", where, f"crop {shorten(crop)}: expected box and tags")
                continue
            seen = _names(crop["tags"], names, where, log, tag_names)
            add_crop(picture, box, seen, where, log)
        for key in ("points", "scribbles"):
            for mark in _listed(entry.get(key)):
                category = mark.get("category_id") if isinstance(mark, dict) else None
                if type(category) is not int or category not in names:
                    log.bad("mark", where, f"{key} has {shorten(mark)}, of no class of the file")
                    continue
                line = mark.get("xy")
                line = [line] if key == "points" else _entries(line)
                add_mark(picture, names[category], line, f"{where}: {key}", log, -1)
    taken = []
    for k, annotation in enumerate(annotations):
        where = f"{source}: annotations[{k}]"
        if not isinstance(annotation, dict):
            log.bad("box", where, "expected an object")
            continue
        image_id, category = annotation.get("image_id"), annotation.get("category_id")
        if type(image_id) not in (int, str) or str(image_id) not in pictures:
            log.bad("box", where, f"image_id {shorten(image_id)} is no image of the file")
            continue
        if type(category) is not int or category not in names:
            log.bad("box", where, f"category_id {shorten(category)} is no category of the file")
            continue
        picture = pictures[str(image_id)]
        if picture is None:
            log.drop("box", where, "its image was left out")
            continue
        flags = {key: to_flag(annotation.get(key)) for key in ("iscrowd", "ignore")}
        wrong = next((key for key, flag in flags.items() if flag is None), None)
        if wrong:
            log.bad("box", where, f"{wrong} is {shorten(annotation[wrong])}, expected 0 or 1")
            continue
        crowd = bool(flags["iscrowd"] or flags["ignore"])
        if flags["iscrowd"] and crowds_as_objects:
            log.change("box", where, "a group (iscrowd), taken as an object")
            crowd = bool(flags["ignore"])
        elif crowd and not flags["iscrowd"]:
            log.change("box", where, "marked ignore, taken as a group (iscrowd)")
        taken.append((annotation, picture, where, crowd))
    if bbox == "auto":
        bbox = box_order(
            ((b, (b[0], b[1], b[0] + b[2], b[1] + b[3]), p, _polygon_corners(a))
             for a, p, _, _ in taken if _is_box(b := a.get("bbox"))),
            f'{source}: "bbox"',
        )  # fmt: skip
    for annotation, picture, where, crowd in taken:
        name = names[annotation["category_id"]]
        marks = list(_coco_marks(annotation, where, log))
        if not annotation.get("bbox") and _is_bare(annotation) and marks:
            if crowd:
                log.bad("mark", where, "a group (iscrowd) without a bbox, expected its box")
                continue
            for line, inside in marks:
                add_mark(picture, name, line, where, log, where, inside)
            continue
        corners = _coco_corners(annotation, picture, where, log, bbox)
        if corners is None:
            continue
        place = add_box(picture, name, corners, where, log, crowd)
        if place is not None:
            if type(annotation.get("id")) in (int, str):
                picture.box_ids[place] = annotation["id"]
            for line, inside in marks:
                add_mark(picture, name, line, where, log, place, inside)
    return [p for p in pictures.values() if p is not None], categories


def _entries(value: Any) -> list:
    return value if isinstance(value, list) else []


def _listed(value: Any) -> list:
    """A list's entries; what should be a list and is none, as one, so that it is reported."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _coco_marks(annotation: dict, where: str, log: ImportLog) -> Iterator[tuple[list, bool]]:
    """Yield the marks of an annotation: its own-data ones and its visible key points."""
    for point in _listed(annotation.get("points")):
        if isinstance(point, list) and len(point) == 3 and point[2] in (0, 1):
            yield [point[:2]], bool(point[2])
        else:
            yield [point], True
    for line in _listed(annotation.get("scribbles")):
        yield _entries(line), True
    flat = _listed(annotation.get("keypoints"))
    if len(flat) % 3 or any(v not in (0, 1, 2) for v in flat[2::3]):
        log.drop("mark", where, "keypoints are no x, y and visibility of 0, 1 or 2")
        return
    for x, y, visible in zip(flat[::3], flat[1::3], flat[2::3], strict=False):
        if visible == 2:  # 1: hidden, so something else is seen there; 0: not annotated
            yield [[x, y]], True


def _without_dummy(categories: list, used: set[int], source: str, log: ImportLog) -> list:
    """Leave out the class that Roboflow writes as the parent of all others and boxes never have."""
    if len(categories) < 2 or not all(isinstance(c, dict) for c in categories):
        return categories
    for k, category in enumerate(categories):
        others = categories[:k] + categories[k + 1 :]
        name = category.get("name")
        if (
            isinstance(name, str)
            and category.get("supercategory") == "none"
            and category.get("id") not in used
            and all(c.get("supercategory") == name for c in others)
        ):
            why = f"{shorten(name)} has no box and is the parent of all others (Roboflow)"
            log.drop("class", f"{source}: categories[{k}]", why)
            return others
    return categories


def _names(
    tags: Any, names: Mapping[Any, str], where: str, log: ImportLog, known: set[str] | None = None
) -> set[str]:
    """Tags as class names: ids of the file, (lists of) names, or ``{"name": ...}`` objects.

    Texts that are numbers, such as ids in quotes, are names only where they are ``known``. Without
    ``known``, a field of other tools is read, which may hold anything.
    """
    result = set()
    refuse = log.drop if known is None else log.bad
    whole = {fold(name) for name in names.values()}
    for tag in tags if isinstance(tags, list) else [] if tags in (None, "") else [tags]:
        if isinstance(tag, dict):
            tag = tag.get("name", tag.get("label"))
        name = names.get(tag, tag) if type(tag) in (int, str) else None
        found = split_names(name, whole) if isinstance(name, str) else None
        if known is not None and any(is_finite(to_number(n)) and fold(n) not in known
                                     for n in found or ()):  # fmt: skip
            log.bad("tag", where, f"tag {shorten(tag)} is a number in quotes, and no class's name")
        elif found:
            result |= found
        else:
            refuse("tag", where, f"tag {shorten(tag)} is no class of the file")
    return result


def _coco_corners(
    annotation: dict, picture: Picture, where: str, log: ImportLog, order: str
) -> list[float] | None:
    box = annotation.get("bbox")
    if box and not _is_box(box):
        log.bad("box", where, f"bbox is {shorten(box)}, expected four finite numbers")
        return None
    if box and order == "xyxy":
        return list(box)
    if box and box[2] > 0 and box[3] > 0:
        x, y, w, h = box
        attributes = annotation.get("attributes")
        angle = attributes.get("rotation") if isinstance(attributes, dict) else None
        angle = to_number(angle) if isinstance(angle, str) else angle
        if is_finite(angle) and angle % 180:
            log.change("box", where, "rotated, taken by its upright box")
            return upright(x, y, x + w, y + h, angle)
        return [x, y, x + w, y + h]
    outline, how = _polygon_corners(annotation), "polygon"
    if outline is None and isinstance(annotation.get("segmentation"), dict):
        outline, how = _rle_corners(annotation["segmentation"], picture), "run lengths"
    if outline is not None:
        log.change("box", where, f"no bbox with an area, taken from the {how}")
        return outline
    log.drop("box", where, "no area" if box else "neither bbox nor a usable segmentation")
    return None


def _is_bare(annotation: dict) -> bool:
    mask = annotation.get("segmentation")
    return not mask or mask == [[]]  # VIA's points have it so


def _is_box(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(map(is_finite, box))


def _polygon_corners(annotation: dict) -> list[float] | None:
    mask = annotation.get("segmentation")
    flat = mask if isinstance(mask, list) else []
    if any(isinstance(part, list) for part in flat):  # else VIA's, whose one polygon stands alone
        flat = [v for part in flat if isinstance(part, list) for v in part]
    if flat and len(flat) % 2 == 0 and all(map(is_finite, flat)):
        return hull(list(zip(flat[::2], flat[1::2], strict=True)))
    return None


def _rle_corners(mask: dict, picture: Picture) -> list[float] | None:
    """Corners of a run-length mask of the image's size; None where it is anything else."""
    import pycocotools.mask as mask_util

    try:
        rle = checked_rle(mask, (picture.height, picture.width))
    except ValueError:
        return None
    x, y, w, h = map(float, mask_util.toBbox(rle))
    return [x, y, x + w, y + h]
