# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Readers of one annotation file an image: Pascal VOC XML, labelme JSON.

Each takes the annotations' folder, an :class:`.base.ImageIndex` and an
:class:`.base.ImportLog`, and returns pictures. A file that cannot be parsed and a record with
impossible values are errors (drops with ``keep_going``); what has no place in the own-data format
is dropped and noted.
"""

import math
import os
import xml.etree.ElementTree as ElementTree
from typing import Any

from wsis_d2.data.datasets.own.values import shorten
from wsis_d2.data.importers.files import (
    annotation_files,
    bad_file,
    check_size,
    hull,
    is_finite,
    parse_xml,
    relative_stem,
    to_number,
    unique,
    upright,
)
from wsis_d2.data.importers.foreign import what_it_is, what_xml_it_is
from wsis_d2.data.importers.image_index import ImageIndex
from wsis_d2.data.importers.import_log import ImportLog
from wsis_d2.data.importers.names import to_flag
from wsis_d2.data.importers.picture import Picture, add_box, add_mark
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.json_io import read_json

_VOC_ENDS = ("xmin", "ymin", "xmax", "ymax")
_TURNED = ("cx", "cy", "w", "h", "angle")  # roLabelImg's turned box; radians
# Shapes of labelme and X-AnyLabeling whose points span the object.
_AREAS = ("polygon", "rectangle", "mask", "oriented_rectangle", "rotation", "quadrilateral",
          "cuboid")  # fmt: skip
_MARKS = ("point", "points", "line", "linestrip")


def read_voc(
    path: str | os.PathLike, images: ImageIndex, log: ImportLog, *, difficult: str = "keep",
    corners: str = "auto",
) -> list[Picture]:  # fmt: skip
    """Read a folder of Pascal VOC XML files (labelImg, CVAT, Roboflow, the VOC challenge).

    Args:
        path, images, log: as for all readers.
        difficult: what becomes of objects marked so: "keep", "crowd" (a group box) or "drop".
        corners: "inclusive": VOC's own, pixel numbers from 1, both ends inside the object;
            "edges": coordinates from 0, as CVAT writes them; "auto": edges if most boxes of the
            folder have a fraction, or if more of them start at 0 than at 1. (A few of VOC 2012's
            own boxes have fractions; none starts at 0.)
    """
    boxes, pictures = [], []
    for file, where in annotation_files(path, ".xml"):
        try:
            root = parse_xml(file)
        except InputError as error:
            bad_file(error, where, log)
            continue
        if root.tag != "annotation":
            what = what_xml_it_is(root) or f"its root is <{root.tag[:40]}>"
            log.bad("file", where, f"{what}; expected VOC's <annotation>")
            continue
        found = images.of_file(relative_stem(file, path), root.findtext("filename"), where, log)
        if found is None:
            continue
        size = None
        if root.find("size") is not None:
            size = to_number(root.findtext("size/width")), to_number(root.findtext("size/height"))
        picture = images.picture(found, where, log, size)
        if picture is None:
            continue
        pictures.append((picture, where))
        for k, item in enumerate(root.iterfind("object")):
            label = f"{where}: object {k}"
            marked = difficult != "keep" and to_flag(item.findtext("difficult"))
            if marked is None:
                log.bad("box", label, f"difficult is {shorten(item.findtext('difficult'))}")
                continue
            if marked and difficult == "drop":
                log.drop("box", label, "marked difficult")
                continue
            ends = [to_number(item.findtext(f"bndbox/{e}")) for e in _VOC_ENDS]
            turned = [to_number(item.findtext(f"robndbox/{e}")) for e in _TURNED]
            if item.find("bndbox") is None and all(map(is_finite, turned)):
                cx, cy, w, h, angle = turned
                degrees = math.degrees(math.remainder(angle, 2 * math.pi))
                corners_of_box = upright(cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2, degrees)
                log.change("box", label, "turned, taken by its upright box")
                add_box(picture, item.findtext("name"), corners_of_box, label, log)
                continue
            crowd = marked and difficult == "crowd"
            boxes.append((picture, item.findtext("name"), ends, label, crowd, _angle(item)))
    finite = [b[2] for b in boxes if all(map(is_finite, b[2]))]
    fractions = sum(any(v != int(v) for v in ends) for ends in finite)
    zeros, ones = (sum(ends[:2].count(v) for ends in finite) for v in (0, 1))
    if corners == "auto":
        corners = "edges" if 2 * fractions > len(finite) or zeros > ones else "inclusive"
    log.notes.append(
        f"VOC corners read as: {corners} (--corners; {fractions} of {len(finite)} boxes have "
        f"fractions, {zeros} sides start at 0 and {ones} at 1)"
    )
    for picture, name, ends, label, crowd, angle in boxes:
        counted = corners == "inclusive" and all(map(is_finite, ends)) and min(ends) >= 1
        if corners == "inclusive" and all(map(is_finite, ends)):
            if 0 in ends[:2]:
                log.change("box", label, "starts at 0 in a folder that numbers pixels from 1")
            ends = [ends[0] - 1, ends[1] - 1, ends[2], ends[3]]
        if angle % 180 and all(map(is_finite, ends)):
            log.change("box", label, "turned, taken by its upright box")
            x0, y0, x1, y1 = ends
            ends = upright(x0, y0, x1, y1, angle)
        add_box(picture, name, ends, label, log, crowd, relative=counted)
    return unique(pictures, log)


def _angle(item: ElementTree.Element) -> float:
    """The degrees by which an object's box is turned: CVAT writes them as an attribute."""
    for attribute in item.iterfind("attributes/attribute"):
        angle = to_number(attribute.findtext("value"))
        if attribute.findtext("name") == "rotation" and is_finite(angle):
            return angle
    return 0.0


def read_labelme(path: str | os.PathLike, images: ImageIndex, log: ImportLog) -> list[Picture]:
    """Read a folder of labelme JSON files.

    Shapes are taken by their box; points and lines are marks; shapes of one label and one
    ``group_id`` are one object; flags of the image that are set are its tags.
    """
    pictures = []
    for file, where in annotation_files(path, ".json"):
        try:
            check_size(file)
            content = read_json(file)
        except InputError as error:
            bad_file(error, where, log)
            continue
        if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
            what = what_it_is(content) or 'has no "shapes" list'
            log.bad("file", where, f"{what}; so it is no labelme file")
            continue
        found = images.of_file(relative_stem(file, path), content.get("imagePath"), where, log)
        if found is None:
            continue
        size = (content.get("imageWidth"), content.get("imageHeight"))
        picture = images.picture(found, where, log, size)
        if picture is None:
            continue
        pictures.append((picture, where))
        flags = content.get("flags")
        if isinstance(flags, dict):
            for name, on in flags.items():
                if to_flag(on) is None:
                    log.bad(
                        "flag", where, f'flag "{name}" is {shorten(on)}, expected true or false'
                    )
                elif to_flag(on):
                    picture.tags.add(name)
                    log.change("flag", where, f'"{name}" is set, taken as an image tag')
        elif flags:
            log.bad("flag", where, f"flags are {shorten(flags)}, expected names with true or false")
        groups: dict[Any, list] = {}
        for k, shape in enumerate(content["shapes"]):
            label = f"{where}: shapes[{k}]"
            kind = shape.get("shape_type") if isinstance(shape, dict) else None
            is_mark = kind in _MARKS and isinstance(shape.get("points"), list) and shape["points"]
            corners = shape["points"] if is_mark else _shape_corners(shape, label, log)
            if corners is None:
                continue
            group = shape.get("group_id")
            name = shape.get("label")
            alone = not isinstance(group, int | float | str) or group == ""
            alone |= not isinstance(name, str)
            groups.setdefault(k if alone else (name, group), []).append(
                (name, corners, label, kind)
            )
        for key, shapes in groups.items():
            parts = [part for part in shapes if part[3] not in _MARKS]
            owner: int | str | None = repr(key) if isinstance(key, tuple) else None
            if parts:
                name, _, label, _ = parts[0]
                corners = hull([p for _, c, _, _ in parts for p in (c[:2], c[2:])])
                if len(parts) > 1:
                    log.change("box", label, "parts of one group_id, taken as one object")
                owner = add_box(picture, name, corners, label, log)
            for name, points, label, kind in shapes:
                if kind in _MARKS:
                    lines = [[p] for p in points] if kind == "points" else [points]
                    for line in lines:
                        add_mark(picture, name, line, label, log, owner)
    return unique(pictures, log)


def _shape_corners(shape: Any, label: str, log: ImportLog) -> list[float] | None:
    points = shape.get("points") if isinstance(shape, dict) else None
    if (
        not isinstance(points, list)
        or not points
        or not all(isinstance(p, list) and len(p) == 2 and all(map(is_finite, p)) for p in points)
    ):
        log.bad("box", label, f"points are {shorten(points)}, expected [x, y] of finite numbers")
        return None
    kind = shape.get("shape_type") or "polygon"
    if kind == "circle" and len(points) == 2:
        (x, y), edge = points
        radius = math.dist((x, y), edge)
        return [x - radius, y - radius, x + radius, y + radius]
    if kind in _AREAS and len(points) >= 2:
        return hull(points)
    log.drop("box", label, f"a {kind} has no area")
    return None
