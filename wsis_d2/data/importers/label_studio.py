# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Reader of Label Studio's export "JSON"."""

import math
import os
from typing import Any

import numpy as np

from wsis_d2.data.datasets.own.values import shorten
from wsis_d2.data.importers.cvat import ellipse_corners
from wsis_d2.data.importers.files import hull, is_finite
from wsis_d2.data.importers.foreign import what_it_is
from wsis_d2.data.importers.image_index import ImageIndex
from wsis_d2.data.importers.import_log import ImportLog
from wsis_d2.data.importers.picture import Picture, add_box
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.json_io import read_json

# Key of the labels in a region's value -> what the region is.
_LABEL_KEYS = {"rectanglelabels": "rectangle", "polygonlabels": "polygon",
               "ellipselabels": "ellipse", "brushlabels": "brush", "keypointlabels": "keypoint",
               "bitmasklabels": "bitmask", "vectorlabels": "vector"}  # fmt: skip


def read_label_studio(path: str | os.PathLike, images: ImageIndex, log: ImportLog) -> list[Picture]:
    """Read Label Studio's export "JSON".

    Of the annotations of one task one counts: the ground truth if one is marked so, else the last.
    Rectangles, polygons, ellipses and brush masks are taken by their upright box; choices of an
    image are its tags.
    """
    source = os.fspath(path)
    content = read_json(source)
    tasks = content if isinstance(content, list) else [content]
    what = what_it_is(tasks)
    if not what or "is Label Studio JSON;" not in what:
        what = what_it_is(content) or "it is no list of tasks"
        raise InputError(f"{source}: {what}; expected Label Studio's JSON export")
    pictures: dict[str, Picture] = {}
    for k, task in enumerate(tasks):
        where = f"{source}: task {shorten(task.get('id', k)) if isinstance(task, dict) else k}"
        result = _result(task, where, log)
        if result is None:
            continue
        found = _image(task, images, where, log)
        size = next(
            ((r["original_width"], r.get("original_height")) for r in result
             if r.get("original_width")), None,
        )  # fmt: skip
        picture = images.picture(found, where, log, size) if found else None
        if picture is None:
            for region in result:
                if region.get("type") != "relation":
                    log.drop("box", where, "its image was left out")
            continue
        if found in pictures:
            log.bad("image", where, f"the image {found} has two tasks")
            continue
        pictures[found] = picture
        _add_regions(picture, result, where, log)
    return list(pictures.values())


def _result(task: Any, where: str, log: ImportLog) -> list[dict] | None:
    """The regions of the one annotation of a task that counts."""
    annotations = task.get("annotations") if isinstance(task, dict) else None
    if not isinstance(annotations, list) or not isinstance(task.get("data"), dict):
        log.bad("image", where, 'has no "data" and "annotations"; expected Label Studio\'s JSON')
        return None
    usable = [
        a for a in annotations
        if isinstance(a, dict) and isinstance(a.get("result"), list) and not a.get("was_cancelled")
    ]  # fmt: skip
    if not usable:
        log.drop("image", where, "was skipped or is not annotated")
        return None
    chosen = next((a for a in usable if a.get("ground_truth") is True), usable[-1])
    for _ in usable[1:]:
        how = "the ground truth" if chosen.get("ground_truth") is True else "the last"
        log.drop("annotation", where, f"the task has several, {how} is taken")
    if not all(isinstance(region, dict) for region in chosen["result"]):
        log.bad("image", where, 'its "result" holds something else than regions')
        return None
    return chosen["result"]


def _image(task: dict, images: ImageIndex, where: str, log: ImportLog) -> str | None:
    """The image of a task: the one that texts of its data lead to."""
    texts = [v for v in task["data"].values() if isinstance(v, str) and v]
    texts += [v for v in [task.get("file_upload")] if isinstance(v, str) and v]
    ways: dict[str, list[dict[str, str]]] = {}
    for text in texts:
        quiet = ImportLog(keep_going=True)
        found = images.find(text, where, quiet, stems=False)
        if found:
            ways.setdefault(found, quiet.changed)
    if len(ways) > 1:  # nothing tells which of them a region was drawn on
        first, second = list(ways)[:2]
        log.bad("image", where, f"its data leads to {first} and to {second}, expected one image")
        return None
    for found, changed in ways.items():
        log.changed += changed
        return found
    if not texts:
        log.bad("image", where, "its data names no image")
        return None
    named = next((task["data"][k] for k in ("image", "img") if k in task["data"]), texts[0])
    return images.find(named, where, log, stems=False)


def _add_regions(picture: Picture, result: list[dict], where: str, log: ImportLog) -> None:
    # <Rectangle> with <Labels> gives two entries of one id: the shape, and the shape with labels.
    labelled = {str(r.get("id")) for r in result if _label(r)[1] is not None}
    for k, region in enumerate(result):
        label = f"{where}: result {k}"
        value, kind = region.get("value"), region.get("type")
        if not isinstance(value, dict):
            if kind != "relation":
                log.bad("box", label, "has no value")
            continue
        if "choices" in value or "taxonomy" in value:
            _add_choices(picture, value, label, log)
            continue
        shape, names = _label(region)
        if names is None:
            if str(region.get("id")) in labelled:
                continue
            log.drop("box", label, f"a {shorten(kind)} has no label")
            continue
        if region.get("image_rotation") not in (None, 0):
            log.bad("box", label, "was drawn on an image that was turned in Label Studio")
            continue
        corners = _corners(shape, value, picture)
        if isinstance(corners, str):
            log.drop("box", label, corners)
            continue
        if corners is None:
            log.bad("box", label, f"its {shape} has missing or impossible numbers")
            continue
        if shape != "rectangle" or value.get("rotation"):
            log.change("box", label, f"a {'turned ' * (shape == 'rectangle')}{shape}, by its box")
        if len(names) > 1:
            log.change(
                "box", label, f"has the labels {', '.join(map(str, names))}; the first is taken"
            )
        add_box(picture, names[0], corners, label, log)


def _label(region: dict) -> tuple[str, list | None]:
    """What shape a region is, and its labels; None where it has none."""
    value = region.get("value")
    value = value if isinstance(value, dict) else {}
    for key, shape in _LABEL_KEYS.items():
        if isinstance(value.get(key), list) and value[key]:
            return shape, value[key]
    if isinstance(value.get("labels"), list) and value["labels"]:
        for shape, key in (("rectangle", "width"), ("polygon", "points"), ("ellipse", "radiusX"),
                           ("brush", "rle")):  # fmt: skip
            if key in value:
                return shape, value["labels"]
    return "", None


def _add_choices(picture: Picture, value: dict, where: str, log: ImportLog) -> None:
    if "x" in value or "points" in value:
        log.drop("tag", where, "is the choice of a region, no tag of the image")
        return
    choices = value.get("choices", value.get("taxonomy"))
    for choice in choices if isinstance(choices, list) else [choices]:
        name = choice[-1] if isinstance(choice, list) and choice else choice
        if isinstance(name, str) and name.strip():
            picture.tags.add(name)
        else:
            log.bad("tag", where, f"choice {shorten(choice)}, expected a name")


def _corners(shape: str, value: dict, picture: Picture) -> list[float] | str | None:
    """The upright box in pixels; None: impossible numbers; text: why the shape has no box.

    Values are percent of the image; a rectangle is turned about its first corner.
    """
    sx, sy = picture.width / 100, picture.height / 100
    if shape in ("rectangle", "ellipse"):
        keys = ("x", "y", "width", "height") if shape == "rectangle" else (
            "x", "y", "radiusX", "radiusY")  # fmt: skip
        numbers = [value.get(key) for key in keys] + [value.get("rotation") or 0]
        if not all(map(is_finite, numbers)):
            return None
        x, y, w, h = numbers[0] * sx, numbers[1] * sy, numbers[2] * sx, numbers[3] * sy
        if shape == "ellipse":
            return ellipse_corners(x, y, w, h, numbers[4])
        c, s = math.cos(math.radians(numbers[4])), math.sin(math.radians(numbers[4]))
        sides = ((0, 0), (w, 0), (w, h), (0, h))
        return hull([(x + c * u - s * v, y + s * u + c * v) for u, v in sides])
    if shape == "polygon":
        points = value.get("points")
        if not isinstance(points, list) or not points:
            return None
        if not all(isinstance(p, list) and len(p) == 2 and all(map(is_finite, p)) for p in points):
            return None
        return hull([(u * sx, v * sy) for u, v in points])
    if shape == "brush":
        mask = _decode_brush(value.get("rle"), picture)
        if mask is None:
            return None
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            return "an empty brush mask"
        return [float(columns[0]), float(rows[0]), columns[-1] + 1.0, rows[-1] + 1.0]
    return f"a {shape} has no box that is read"


def _decode_brush(rle: Any, picture: Picture) -> np.ndarray | None:
    """Decode a brush mask of the image's size to (H, W) bool; None where it is anything else.

    The bits: 32 of the number of values (RGBA of all pixels), 5 of the word size less one, four
    times 4 of the sizes of run lengths less one; then runs: 1 bit whether one value is repeated,
    2 bits which size the run's length less one has, the length, the value or the values.
    """
    size = picture.width * picture.height * 4
    if not isinstance(rle, list) or not all(type(v) is int and 0 <= v <= 255 for v in rle):
        return None
    bits, at = "".join(f"{v:08b}" for v in rle), 0

    def read(count: int) -> int:
        nonlocal at
        at += count
        if at > len(bits):
            raise ValueError("cut off")
        return int(bits[at - count : at], 2)

    try:
        if read(32) != size:
            return None
        word = read(5) + 1
        lengths = [read(4) + 1 for _ in range(4)]
        out, start = np.zeros(size, bool), 0
        while start < size:
            repeated = read(1)
            stop = start + read(lengths[read(2)]) + 1
            if stop > size:
                return None
            if repeated:
                out[start:stop] = read(word) > 0
            else:
                out[start:stop] = [read(word) > 0 for _ in range(stop - start)]
            start = stop
    except ValueError:
        return None
    return out.reshape(picture.height, picture.width, 4)[..., 3]
