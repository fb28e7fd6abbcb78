# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Readers of one annotation file an image: Pascal VOC XML, YOLO text, labelme JSON.

Each takes the annotations' folder, an :class:`~.formats.ImageIndex` and an
:class:`~.formats.ImportLog`, and returns pictures. A file that cannot be parsed and a record with
impossible values are errors (drops with ``keep_going``); what has no place in the own-data format
is dropped and noted.
"""

import math
import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any
from xml.parsers import expat

import yaml

from wsis_d2.data.datasets.own.weak import shorten
from wsis_d2.data.importers.base import ImageIndex, ImportLog, Picture, add_box
from wsis_d2.data.importers.files import (
    annotation_files,
    bad_file,
    check_size,
    hull,
    is_finite,
    read_bytes,
    relative_stem,
    to_number,
)
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.json_io import read_json

_VOC_ENDS = ("xmin", "ymin", "xmax", "ymax")


def read_voc(
    path: str | os.PathLike, images: ImageIndex, log: ImportLog, *, difficult: str = "keep",
    corners: str = "auto",
) -> list[Picture]:  # fmt: skip
    """Read a folder of Pascal VOC XML files (labelImg, CVAT, Roboflow, the VOC challenge).

    Args:
        path, images, log: as for all readers.
        difficult: what becomes of objects marked so: "keep", "crowd" (a group box) or "drop".
        corners: "inclusive": VOC's own, pixel numbers from 1, both ends inside the object;
            "edges": coordinates from 0, as CVAT writes them; "auto": edges if any box of the
            folder has a fraction or a 0, which VOC's own cannot.
    """
    boxes, pictures = [], []
    for file, where in annotation_files(path, ".xml"):
        try:
            root = _parse_xml(file)
        except InputError as error:
            bad_file(error, where, log)
            continue
        if root.tag != "annotation":
            log.bad("file", where, f"its root is <{root.tag[:40]}>, expected VOC's <annotation>")
            continue
        named = root.findtext("filename")
        quiet = ImportLog(keep_going=True)
        found = images.find(named, where, quiet) if named else None
        if found is None:
            found = images.by_stem(relative_stem(file, path), where, log)
        if found is None:
            continue
        size = None
        if root.find("size") is not None:
            size = tuple(to_number(root.findtext(f"size/{side}")) for side in ("width", "height"))
        picture = images.picture(found, where, log, size)
        if picture is None:
            continue
        pictures.append(picture)
        for k, item in enumerate(root.iterfind("object")):
            label = f"{where}: object {k}"
            marked = to_number(item.findtext("difficult")) == 1
            if marked and difficult == "drop":
                log.drop("box", label, "marked difficult")
                continue
            ends = [
                to_number(item.findtext(f"bndbox/{e}")) for e in ("xmin", "ymin", "xmax", "ymax")
            ]
            crowd = marked and difficult == "crowd"
            boxes.append((picture, item.findtext("name"), ends, label, crowd))
    if corners == "auto":
        odd = any(is_finite(v) and (v == 0 or v != int(v)) for b in boxes for v in b[2])
        corners = "edges" if odd else "inclusive"
    log.notes.append(f"VOC corners read as: {corners}")
    for picture, name, ends, label, crowd in boxes:
        if corners == "inclusive" and all(map(is_finite, ends)):
            ends = [ends[0] - 1, ends[1] - 1, ends[2], ends[3]]
        add_box(picture, name, ends, label, log, crowd)
    return _unique(pictures, log)


def _parse_xml(path: Path) -> ElementTree.Element:
    """Parse XML that declares nothing: entities could be bombs or read other files."""
    data = read_bytes(path)

    def refuse(*_):
        raise InputError(f"{path}: declares a document type or entities; refused, remove them")

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(data, True)
        return ElementTree.fromstring(data)
    except (expat.ExpatError, ElementTree.ParseError, ValueError, LookupError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: no valid XML, or cut off ({error})") from None


def read_yolo(
    path: str | os.PathLike, images: ImageIndex, log: ImportLog, *, classes: list[str]
) -> list[Picture]:
    """Read a folder of YOLO text files: ``class cx cy w h`` or ``class x1 y1 x2 y2 ...`` lines.

    Args:
        path, images, log: as for all readers.
        classes: class names in the order of their numbers (:func:`read_yolo_classes`).
    """
    pictures = []
    for file, where in annotation_files(path, ".txt"):
        if file.name in ("classes.txt", "obj.names", "train.txt", "val.txt", "test.txt"):
            continue
        found = images.by_stem(relative_stem(file, path), where, log)
        picture = images.picture(found, where, log) if found else None
        if picture is None:
            continue
        try:
            text = read_bytes(file).decode("utf-8-sig")
        except (InputError, UnicodeDecodeError) as error:
            bad_file(error, where, log)
            continue
        pictures.append(picture)
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip():
                continue
            label = f"{where}:{number}"
            values = [to_number(v) for v in line.split()]
            index = values[0]
            if not is_finite(index) or index != int(index) or not 0 <= index < len(classes):
                log.bad("box", label, f"class {line.split()[0][:40]} of {len(classes)} is unknown")
                continue
            if len(values) < 5 or not all(map(is_finite, values)):
                log.bad("box", label, f"{shorten(line.strip(), 60)}: expected class cx cy w h")
                continue
            if len(values) in (5, 6):  # a sixth value is a confidence
                cx, cy, w, h = values[1:5]
                corners = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
            elif len(values) % 2 == 1:
                corners = hull(list(zip(values[1::2], values[2::2], strict=True)))
                log.change("box", label, "a polygon, taken by its box")
            else:
                log.bad("box", label, f"{len(values)} values; expected 5, or 1 + 2 n of a polygon")
                continue
            if max(map(abs, corners)) > 2:
                log.bad("box", label, "values are not relative to the image (0 to 1)")
                continue
            size = (picture.width, picture.height) * 2
            corners = [c * s for c, s in zip(corners, size, strict=True)]
            add_box(picture, classes[int(index)], corners, label, log)
    return _unique(pictures, log)


def read_yolo_classes(path: str | os.PathLike) -> list[str]:
    """Read class names: ``classes.txt`` or ``obj.names`` (a name a line) or ``data.yaml``."""
    path = Path(path)
    try:
        text = read_bytes(path).decode("utf-8-sig")
        if path.suffix.lower() not in (".yaml", ".yml"):
            names = [line.strip() for line in text.splitlines() if line.strip()]
        else:
            content = yaml.safe_load(text)
            names = content.get("names") if isinstance(content, dict) else None
            if isinstance(names, dict):
                names = [names[k] for k in sorted(names)] if set(names) == set(
                    range(len(names))) else None  # fmt: skip
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError, TypeError) as error:
        raise InputError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise InputError(f"{path}: no class names; expected a name a line, or YAML with names:")
    return names


def read_labelme(path: str | os.PathLike, images: ImageIndex, log: ImportLog) -> list[Picture]:
    """Read a folder of labelme JSON files.

    Shapes are taken by their box; shapes of one label and one ``group_id`` are one object; flags
    of the image that are set are its tags.
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
            log.bad("file", where, 'has no "shapes" list, so it is no labelme file')
            continue
        quiet = ImportLog(keep_going=True)
        found = images.find(content.get("imagePath"), where, quiet)
        if found is None:
            found = images.by_stem(relative_stem(file, path), where, log)
        if found is None:
            continue
        size = (content.get("imageWidth"), content.get("imageHeight"))
        picture = images.picture(found, where, log, size)
        if picture is None:
            continue
        pictures.append(picture)
        flags = content.get("flags")
        if isinstance(flags, dict):
            picture.tags |= {name for name, on in flags.items() if on is True}
        groups: dict[Any, list] = {}
        for k, shape in enumerate(content["shapes"]):
            label = f"{where}: shapes[{k}]"
            corners = _shape_corners(shape, label, log)
            if corners is None:
                continue
            group = shape.get("group_id")
            name = shape.get("label")
            alone = group is None or not isinstance(group, int) or not isinstance(name, str)
            groups.setdefault(k if alone else (name, group), []).append((name, corners, label))
        for parts in groups.values():
            name, _, label = parts[0]
            corners = hull([p for _, c, _ in parts for p in (c[:2], c[2:])])
            if len(parts) > 1:
                log.change("box", label, "parts of one group_id, taken as one object")
            add_box(picture, name, corners, label, log)
    return _unique(pictures, log)


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
    if kind in ("polygon", "rectangle", "mask") and len(points) >= 2:
        return hull(points)
    log.drop("box", label, f"a {kind} has no area")
    return None


def _unique(pictures: list[Picture], log: ImportLog) -> list[Picture]:
    """Refuse a second annotation file of one image."""
    kept: dict[str, Picture] = {}
    for picture in pictures:
        if picture.file_name in kept:
            log.bad("file", picture.file_name, "two annotation files belong to this image")
        else:
            kept[picture.file_name] = picture
    return list(kept.values())
