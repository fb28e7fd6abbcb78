# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""What every reader of annotation makes: pictures with boxes, tags and marks, classes by name.

A reader (``coco``, ``cvat``, ``label_studio``, ``per_image``, ``scribbles``, ``tags``, ``yolo``)
turns one tool's files into :class:`Picture` objects; :func:`.own_data.to_own_data` gives names
their ids and writes nothing but boxes, tags, points and scribbles. Masks and polygons end here:
only their bounding box goes on.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from wsis_d2.data.datasets.own.values import is_number, shorten
from wsis_d2.data.importers.import_log import ImportLog


@dataclass(frozen=True)
class Mark:
    """A point or a scribble.

    Attributes:
        name: the class, as it is written.
        xy: [x, y] of a point, or a list of them, in pixels.
        owner: the place of its box in ``Picture.boxes``; or any text, the same for all marks of
            one object without a box; None: what it lies in tells; -1: it tells the class alone.
        inside: False: a point that is not on the object.
    """

    name: str
    xy: list
    owner: int | str | None = None
    inside: bool = True

    @property
    def is_point(self) -> bool:
        """Whether it is one point."""
        return not isinstance(self.xy[0], list)


@dataclass
class Picture:
    """One image and its annotation, classes by name.

    Attributes:
        file_name: relative to the image root, with forward slashes.
        width, height: pixels as they are shown, that is after EXIF rotation.
        boxes: (class name, x, y, width, height, is crowd) in pixels; class names as they are
            written, here and below.
        tags: class names seen in the image.
        crop_tags: ((x, y, width, height), class names).
        marks: points and scribbles.
        image_id: the id that the source has for it, so that other files which name it still fit;
            None: it gets a number.
        box_ids: the same of boxes, by their places, of those that have one.
        full: the source says that the image trains from truth.
        turned: EXIF turns it, and no stated size tells that the annotation is of the turned one.
    """

    file_name: str
    width: int
    height: int
    boxes: list[tuple[str, float, float, float, float, bool]] = field(default_factory=list)
    tags: set[str] = field(default_factory=set)
    crop_tags: list[tuple[tuple[float, float, float, float], set[str]]] = field(
        default_factory=list
    )
    marks: list[Mark] = field(default_factory=list)
    image_id: int | str | None = None
    box_ids: dict[int, int | str] = field(default_factory=dict)
    full: bool = False
    turned: bool = False


def add_box(
    picture: Picture,
    name: Any,
    xyxy: Iterable[Any],
    where: str,
    log: ImportLog,
    crowd: bool = False,
    relative: bool = False,
) -> int | None:
    """Add a box given by its corners; clip it to the image; drop what has no area there.

    Returns its place in ``picture.boxes``, None where it was dropped.

    NaN, infinity and what is no number are errors, and so are corners of 0 to 1: values relative
    to the image, unless they were (``relative``) and are pixels by now.
    """
    corners = list(xyxy)
    if not isinstance(name, str) or not name.strip():
        log.bad("box", where, f"its class is {shorten(name)}, expected a name")
        return None
    if len(corners) != 4 or not all(is_number(v) and math.isfinite(v) for v in corners):
        log.bad("box", where, f"its corners are {shorten(corners)}, expected four finite numbers")
        return None
    x0, y0, x1, y1 = map(float, corners)
    if not relative and min(x0, y0) >= 0 and 0 < max(x1, y1) <= 1:
        shown = shorten([round(v, 4) for v in (x0, y0, x1, y1)])
        log.bad("box", where, f"its corners {shown} are relative to the image, expected pixels")
        return None
    if round(x1 - x0, 4) <= 0 or round(y1 - y0, 4) <= 0:
        log.drop("box", where, "no area")
        return None
    u0, v0 = max(x0, 0.0), max(y0, 0.0)
    u1, v1 = min(x1, float(picture.width)), min(y1, float(picture.height))
    x, y, w, h = (round(v, 4) for v in (u0, v0, u1 - u0, v1 - v0))
    if w <= 0 or h <= 0:
        log.drop("box", where, "wholly outside the image")
        return None
    if max(u0 - x0, v0 - y0, x1 - u1, y1 - v1) > 1:
        log.change("box", where, "more than a pixel outside the image, clipped")
    picture.boxes.append((name, x, y, w, h, bool(crowd)))
    return len(picture.boxes) - 1


def add_crop(picture: Picture, xywh: list, tags: set[str], where: str, log: ImportLog) -> None:
    """Add the tags of a part of the image; one that leaves the image, or is none, is an error."""
    if len(xywh) != 4 or not all(is_number(v) and math.isfinite(v) for v in xywh):
        log.bad("tag", where, f"crop {shorten(xywh)}: expected x, y, width, height")
        return
    x, y, w, h = xywh
    inside = min(x + w, picture.width) > max(x, 0) and min(y + h, picture.height) > max(y, 0)
    if w > 0 and h > 0 and max(x + w, y + h) <= 1:
        log.bad("tag", where, f"crop {shorten(xywh)} is relative to the image; expected pixels")
    elif min(x, y) < -1 or x + w > picture.width + 1 or y + h > picture.height + 1:
        log.bad("tag", where, f"crop {shorten(xywh)} leaves its image {picture.file_name}")
    elif not inside:
        log.bad("tag", where, f"crop {shorten(xywh)} has no area; expected x, y, width, height")
    else:
        picture.crop_tags.append(((x, y, w, h), tags))


def add_mark(
    picture: Picture,
    name: Any,
    points: list,
    where: str,
    log: ImportLog,
    owner: int | str | None = None,
    inside: bool = True,
) -> None:
    """Add a point (one [x, y]) or a scribble; drop one that reaches out of the image."""
    if not isinstance(name, str) or not name.strip():
        log.bad("mark", where, f"its class is {shorten(name)}, expected a name")
        return
    finite = all(
        isinstance(p, list) and len(p) == 2 and all(is_number(v) and math.isfinite(v) for v in p)
        for p in points
    )
    if not points or not finite:
        log.bad("mark", where, f"points are {shorten(points)}, expected [x, y] of finite numbers")
        return
    if any(not 0 <= x <= picture.width or not 0 <= y <= picture.height for x, y in points):
        log.drop("mark", where, "reaches out of the image")
        return
    line = [[round(float(x), 4), round(float(y), 4)] for x, y in points]
    picture.marks.append(Mark(name, line if len(line) > 1 else line[0], owner, inside))
