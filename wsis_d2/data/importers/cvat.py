# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Reader of "CVAT for images 1.1" XML."""

import math
import os
import xml.etree.ElementTree as ElementTree

from wsis_d2.data.datasets.own.values import shorten
from wsis_d2.data.importers.files import (
    annotation_files,
    bad_file,
    hull,
    is_finite,
    parse_xml,
    to_number,
    unique,
    upright,
)
from wsis_d2.data.importers.foreign import what_xml_it_is
from wsis_d2.data.importers.image_index import ImageIndex
from wsis_d2.data.importers.import_log import ImportLog
from wsis_d2.data.importers.own_data import file_categories
from wsis_d2.data.importers.picture import Picture, add_box
from wsis_d2.utils.errors import InputError

_NO_AREA = ("points", "polyline", "skeleton")
_SIDES = ("tl", "bl", "tr", "br")  # of a cuboid's two faces


def read_cvat(
    path: str | os.PathLike, images: ImageIndex, log: ImportLog
) -> tuple[list[Picture], list[dict]]:
    """Read the XML file, or a folder of such files, of CVAT's export "CVAT for images 1.1".

    Polygons, masks, ellipses, cuboids and turned boxes are taken by their upright box; tags of an
    image are its tags. Points, lines and skeletons have no area and are dropped.

    Returns:
        The pictures, and the classes of the task in its order, ids from 1.
    """
    pictures, labels = [], []
    for file, where in annotation_files(path, ".xml"):
        try:
            root = parse_xml(file)
        except InputError as error:
            bad_file(error, where, log)
            continue
        if root.tag != "annotations" or root.find("track") is not None:
            what = what_xml_it_is(root) or f"its root is <{root.tag[:40]}>"
            log.bad("file", where, f"{what}; expected the <annotations> of CVAT for images")
            continue
        labels += [
            {"name": label.findtext("name"), "color": label.findtext("color")}
            for label in root.iterfind("meta/*/labels/label")
            if not label.findtext("parent")
        ]
        for k, item in enumerate(root.iterfind("image")):
            label = f"{where}: image {k}"
            found = images.find(item.get("name"), label, log)
            size = to_number(item.get("width")), to_number(item.get("height"))
            picture = images.picture(found, label, log, size) if found else None
            if picture is None:
                for shape in item:
                    log.drop(
                        "tag" if shape.tag == "tag" else "box", label, "its image was left out"
                    )
                continue
            pictures.append((picture, label))
            for number, shape in enumerate(item):
                _add(picture, shape, f"{label}: {shape.tag} {number}", log)
    names = list(dict.fromkeys(label["name"] for label in labels if label["name"]))
    colors = {label["name"]: label["color"] for label in labels}
    categories = [
        {"id": k, "name": name, "color": colors[name]} for k, name in enumerate(names, start=1)
    ]
    if categories:
        categories, _ = file_categories(categories, os.fspath(path), log)
    return unique(pictures, log), categories


def _add(picture: Picture, shape: ElementTree.Element, where: str, log: ImportLog) -> None:
    name = shape.get("label")
    if shape.tag == "tag":
        if name and name.strip():
            picture.tags.add(name)
        else:
            log.bad("tag", where, f"its label is {shorten(name)}, expected a name")
    elif shape.tag in _NO_AREA:
        log.drop("box", where, f"{shape.tag} has no area")
    else:
        corners = _corners(shape)
        if corners is None:
            log.bad("box", where, "its coordinates are missing or no finite numbers")
            return
        if shape.tag != "box" or to_number(shape.get("rotation", "0")):
            kind = "turned box" if shape.tag == "box" else shape.tag
            log.change("box", where, f"a {kind}, taken by its upright box")
        add_box(picture, name, corners, where, log)


def _numbers(shape: ElementTree.Element, *keys: str) -> list[float] | None:
    values = [to_number(shape.get(key)) for key in keys]
    return values if all(map(is_finite, values)) else None


def _corners(shape: ElementTree.Element) -> list[float] | None:
    """The upright box of a shape in pixels; None where it is no shape."""
    if shape.tag == "box":
        ends = _numbers(shape, "xtl", "ytl", "xbr", "ybr")
        angle = to_number(shape.get("rotation", "0"))
        if ends is None or not is_finite(angle):
            return None
        if angle % 180 == 0:
            return ends
        x0, y0, x1, y1 = ends
        return upright(x0, y0, x1, y1, angle)
    if shape.tag == "mask":
        place = _numbers(shape, "left", "top", "width", "height")
        return place and [place[0], place[1], place[0] + place[2], place[1] + place[3]]
    if shape.tag == "ellipse":
        place = _numbers(shape, "cx", "cy", "rx", "ry")
        angle = to_number(shape.get("rotation", "0"))
        if place is None or not is_finite(angle):
            return None
        cx, cy, rx, ry = place
        return ellipse_corners(cx, cy, rx, ry, angle)
    if shape.tag == "cuboid":
        corners = [(f"x{side}{k}", f"y{side}{k}") for side in _SIDES for k in (1, 2)]
        outline = [_numbers(shape, *keys) for keys in corners]
        return hull(outline) if all(outline) else None
    pairs = [p.split(",") for p in shape.get("points", "").split(";")]
    points = [[to_number(v) for v in pair] for pair in pairs]
    if all(len(point) == 2 and all(map(is_finite, point)) for point in points):
        return hull(points)
    return None


def ellipse_corners(cx: float, cy: float, rx: float, ry: float, angle: float) -> list[float]:
    """The corners around an ellipse turned by ``angle`` degrees about its centre."""
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    half_w, half_h = math.hypot(rx * c, ry * s), math.hypot(rx * s, ry * c)
    return [cx - half_w, cy - half_h, cx + half_w, cy + half_h]
