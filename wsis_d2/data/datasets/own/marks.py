# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Points and scribbles of the own-data format, checked on loading.

Addition, not in the paper. ::

    {"images": [{..., "points": [{"category_id": 11, "xy": [x, y]}],              # of classes
                 "scribbles": [{"category_id": 11, "xy": [[x, y], [x, y], ...]}]}],
     "annotations": [{..., "bbox": [x, y, w, h],                                  # of one object
                      "points": [[x, y], [x, y, 0]],              # 0: this is not the object
                      "scribbles": [[[x, y], [x, y], ...]]}]}
"""

import math
from collections.abc import Mapping
from typing import Any

from wsis_d2.data.datasets.own.values import is_number, shorten
from wsis_d2.structures.classes import ClassTable
from wsis_d2.utils.errors import InputError

#: Scribbles longer than this share of the image's pixels are a mask, which weak annotation is not.
MAX_SHARE = 0.25
_TOLERANCE = 1.0  # pixels that a mark may lie outside the image


def image_marks(
    entry: Mapping, width: int, height: int, where: str, classes: ClassTable
) -> dict[str, list[dict]]:
    """Return ``points`` and ``scribbles`` of an image entry, those it has, with contiguous ids."""
    result: dict[str, list[dict]] = {}
    for key, read in (("points", _point), ("scribbles", _line)):
        marks = []
        for k, mark in enumerate(_list(entry.get(key), where, key)):
            label = f"{key}[{k}]"
            category = mark.get("category_id") if isinstance(mark, dict) else None
            if type(category) is not int or category not in classes.contiguous:
                raise InputError(
                    f"{where}: {label} is {shorten(mark)}; expected a category_id among "
                    f"{classes.id_text()}, and xy"
                )
            xy = read(mark.get("xy"), width, height, where, f"{label}.xy")
            marks.append({"category_id": classes.contiguous[category], "xy": xy})
        if marks:
            result[key] = marks
    _check_length([m["xy"] for m in result.get("scribbles", ())], width, height, where)
    return result


def object_marks(annotation: Mapping, width: int, height: int, where: str) -> dict[str, list]:
    """Return ``points`` ([x, y, inside]) and ``scribbles`` of an object, those it has."""
    result: dict[str, list] = {}
    points = []
    for k, point in enumerate(_list(annotation.get("points"), where, "points")):
        label, inside = f"points[{k}]", 1
        if isinstance(point, list) and len(point) == 3:
            *point, inside = point
        if inside not in (0, 1):
            raise InputError(f"{where}: {label} ends in {shorten(inside)}; expected 0 or 1")
        points.append([*_point(point, width, height, where, label), int(inside)])
    scribbles = [
        _line(line, width, height, where, f"scribbles[{k}]")
        for k, line in enumerate(_list(annotation.get("scribbles"), where, "scribbles"))
    ]
    _check_length(scribbles, width, height, where)
    if points:
        result["points"] = points
    if scribbles:
        result["scribbles"] = scribbles
    return result


def inside_marks(marks: Mapping) -> bool:
    """Return whether any mark tells where an object is."""
    return bool(marks.get("scribbles") or any(p[2] for p in marks.get("points", ())))


def _list(value: Any, where: str, label: str) -> list:
    if value is None:
        return []
    if not isinstance(value, list):
        raise InputError(f"{where}: {label} is {shorten(value)}; expected a list")
    return value


def _point(point: Any, width: int, height: int, where: str, label: str) -> list[float]:
    if (
        not isinstance(point, list)
        or len(point) != 2
        or not all(is_number(v) and math.isfinite(v) for v in point)
    ):
        raise InputError(f"{where}: {label} is {shorten(point)}; expected [x, y] in pixels")
    x, y = map(float, point)
    if not (-_TOLERANCE <= x <= width + _TOLERANCE and -_TOLERANCE <= y <= height + _TOLERANCE):
        raise InputError(
            f"{where}: {label} is {shorten(point)}, more than a pixel outside its image of "
            f"{width} x {height}; expected [x, y] in pixels of that image"
        )
    return [min(max(x, 0.0), float(width)), min(max(y, 0.0), float(height))]


def _line(line: Any, width: int, height: int, where: str, label: str) -> list[list[float]]:
    if not isinstance(line, list) or not line:
        raise InputError(f"{where}: {label} is {shorten(line)}; expected [[x, y], [x, y], ...]")
    return [_point(point, width, height, where, f"{label}[{k}]") for k, point in enumerate(line)]


def _check_length(lines: list, width: int, height: int, where: str) -> None:
    """Refuse scribbles that cover an area: no mask may come in as one."""
    pixels = sum(
        1 + sum(max(abs(u - x), abs(v - y)) for (x, y), (u, v) in zip(line, line[1:], strict=False))
        for line in lines
    )
    if pixels > MAX_SHARE * width * height:
        raise InputError(
            f"{where}: its scribbles are {pixels:.0f} pixels long in an image of {width} x "
            f"{height}, which makes a mask; weak annotation holds none: expected single strokes"
        )
