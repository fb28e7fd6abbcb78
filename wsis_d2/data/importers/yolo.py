# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Reader of YOLO text: boxes, polygons and poses, a line each; and of the class names."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from wsis_d2.data.datasets.own.values import shorten
from wsis_d2.data.importers.files import (
    annotation_files,
    bad_file,
    box_order,
    hull,
    is_finite,
    read_bytes,
    relative_stem,
    to_number,
    unique,
)
from wsis_d2.data.importers.image_index import ImageIndex
from wsis_d2.data.importers.import_log import ImportLog
from wsis_d2.data.importers.picture import Picture, add_box
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.yaml_io import parse_yaml

_FOLDERS = ("path", "train", "val", "test")  # of data.yaml; notebooks add others at its end
_NO_LABELS = ("classes.txt", "obj.names", "train.txt", "val.txt", "test.txt")


def read_yolo(
    path: str | os.PathLike,
    images: ImageIndex,
    log: ImportLog,
    *,
    classes: Mapping[int, str],
    key_points: tuple[int, int] | None = None,
    lines: str = "auto",
    bbox: str = "auto",
) -> list[Picture]:
    """Read a folder of YOLO text files.

    A line is ``class cx cy w h``, with a confidence behind it or not; ``class x1 y1 x2 y2 ...`` of
    a polygon; or ``class cx cy w h`` and key points, of which the box is taken.

    Args:
        path, images, log: as for all readers.
        classes: the names of class numbers (:func:`read_yolo_classes`).
        key_points: ``kpt_shape`` of ``data.yaml``: number of key points and of values of each.
        lines: what long lines are: "polygon", "pose", or "auto": poses where ``key_points`` is
            given or every third value is a visibility, and an error where both are possible.
        bbox: "xywh" (centre and sides), "xyxy", or "auto": the first, and an error where boxes
            leave their images so but all of them fit as corners.
    """
    pictures, records = [], []
    for file, where in annotation_files(path, ".txt"):
        if file.name in _NO_LABELS and not _holds_boxes(file):
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
        pictures.append((picture, where))
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip():
                continue
            label = f"{where}:{number}"
            values = [to_number(v) for v in line.split()]
            if not is_finite(values[0]) or values[0] not in classes:
                log.bad("box", label, f"class {line.split()[0][:40]} is none of {len(classes)}")
            elif len(values) < 5 or not all(map(is_finite, values)):
                log.bad("box", label, f"{shorten(line.strip(), 60)}: expected class cx cy w h")
            else:
                records.append((picture, classes[int(values[0])], values[1:], label))
    if lines == "auto":
        lines = _kind_of_lines([r[2] for r in records], key_points, os.fspath(path), log)
    if bbox == "auto":
        pairs = []
        for picture, _, values, _ in records:
            if len(values) <= 5 or lines == "pose":
                size = (picture.width, picture.height) * 2
                scaled = [
                    [v * s for v, s in zip(corners, size, strict=True)]
                    for corners in (values[:4], _corners(values))
                ]
                pairs.append((*scaled, picture, None))
        bbox = box_order(pairs, f"{path}")
    for picture, name, values, label in records:
        size = (picture.width, picture.height) * 2
        corners = values[:4] if bbox == "xyxy" else _corners(values)
        if len(values) > 5:
            if lines == "pose":
                if key_points and len(values) != 4 + key_points[0] * key_points[1]:
                    expected = 5 + key_points[0] * key_points[1]
                    log.bad(
                        "box", label, f"{len(values) + 1} values; expected {expected} of a pose"
                    )
                    continue
                log.change("box", label, "a pose, taken by its box")
            elif len(values) % 2 == 0:
                corners = hull(list(zip(values[::2], values[1::2], strict=True)))
                log.change("box", label, "a polygon, taken by its box")
            else:
                why = f"{len(values) + 1} values; expected 5, or 1 + 2 n of a polygon"
                log.bad("box", label, why)
                continue
        if max(map(abs, corners)) > 2:
            log.bad("box", label, "values are not relative to the image (0 to 1)")
            continue
        corners = [c * s for c, s in zip(corners, size, strict=True)]
        add_box(picture, name, corners, label, log, relative=True)
    return unique(pictures, log)


def _holds_boxes(file: Path) -> bool:
    """Whether a file that is named like a list is that of a picture: train.txt of train.jpg."""
    lines = read_bytes(file).decode("utf-8-sig", "replace").split("\n")
    values = next((line.split() for line in lines if line.strip()), [])
    return len(values) >= 5 and all(to_number(value) is not None for value in values)


def _corners(values: list[float]) -> list[float]:
    cx, cy, w, h = values[:4]
    return [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]


def _kind_of_lines(
    records: list[list[float]], key_points: tuple[int, int] | None, path: str, log: ImportLog
) -> str:
    """Whether lines longer than a box are polygons or poses; values stand without the class."""
    if key_points:
        return "pose"
    long = [values for values in records if len(values) > 5]
    if all(_is_parallelogram(values) for values in long):
        return "polygon"
    lengths = {len(values) for values in long}
    length = lengths.pop() if len(lengths) == 1 else 0
    shown = f"{path}: all {len(long)} long lines have {length + 1} values"
    seen = [v for values in long for v in values[6::3]]
    if length and (length - 4) % 3 == 0 and all(v in (0, 1, 2) for v in seen):
        if all(_points_in_box(values, 3) for values in long):
            log.notes.append(f"{shown}: a box and {(length - 4) // 3} key points, of x, y and seen")
            return "pose"
    tracked = all(0 <= v[-2] <= 1 <= v[-1] and v[-1] % 1 == 0 for v in long)
    # A few polygons, not of three points, may all end on the lower edge.
    if tracked and (len(long) > 3 or any(v[-1] > 1 or len(v) == 6 for v in long)):
        raise InputError(
            f"{path}: all {len(long)} long lines end in a whole number, so confidence and track "
            "may stand behind boxes or polygons; remove these two, or say --lines polygon"
        )
    if length and length % 2 == 0 and all(_points_in_box(values, 2) for values in long):
        raise InputError(
            f"{shown}, which may be polygons or boxes with key points; name the data.yaml that has "
            "kpt_shape with --classes, or say --lines pose or --lines polygon"
        )
    return "polygon"


def _is_parallelogram(values: list[float]) -> bool:
    """Whether a line is a turned box, as YOLO's oriented boxes are; those are all of one length."""
    if len(values) != 8:
        return False
    return all(
        abs(values[k] + values[k + 4] - values[k + 2] - values[k + 6]) < 0.005 for k in (0, 1)
    )


def _points_in_box(values: list[float], each: int) -> bool:
    """Whether a line is possible as a box and its key points; points at 0, 0 are absent ones."""
    x0, y0, x1, y1 = _corners(values)
    if min(x0, y0) < -0.01 or max(x1, y1) > 1.01 or x1 <= x0 or y1 <= y0:
        return False
    points = list(zip(values[4::each], values[5::each], strict=False))
    return all(
        (x, y) == (0, 0) or (x0 - 0.01 <= x <= x1 + 0.01 and y0 - 0.01 <= y <= y1 + 0.01)
        for x, y in points
    )


def find_yolo_classes(annotations: str | os.PathLike) -> list[Path]:
    """Find the files of class names where YOLO's tools put them, all of the nearest folder.

    Raises:
        InputError: there is none.
    """
    folder = Path(annotations)
    for place in (folder, *list(folder.resolve().parents)[:2]):
        names = ("data.yaml", "dataset.yaml", "classes.txt", "obj.names")
        found = [place / name for name in names if (place / name).is_file()]
        if found:
            return found
    raise InputError(
        f"--annotations {annotations}: no classes.txt, obj.names or data.yaml there or above; "
        "name it with --classes"
    )


def read_yolo_classes(
    paths: list[str | os.PathLike],
) -> tuple[dict[int, str], tuple[int, int] | None]:
    """Read class names: ``classes.txt`` or ``obj.names`` (a name a line) or ``data.yaml``.

    Args:
        paths: one file, or several that have to agree.

    Returns:
        Class number -> name, and ``kpt_shape`` of a pose dataset's ``data.yaml``.

    Raises:
        InputError: a file has no names, or two differ.
    """
    first, key_points = _yolo_names(Path(paths[0]))
    for path in paths[1:]:
        names, shape = _yolo_names(Path(path))
        if names != first:
            raise InputError(
                f"{path}: has other classes than {paths[0]}; name the right one with --classes"
            )
        key_points = key_points or shape
    return first, key_points


def _yolo_names(path: Path) -> tuple[dict[int, str], tuple[int, int] | None]:
    shape = count = None
    try:
        text = read_bytes(path).decode("utf-8-sig")
        if path.suffix.lower() in (".yaml", ".yml"):
            # All scalars as text: "yes" and "no" are names here.
            content = parse_yaml(text, path, yaml.BaseLoader, _FOLDERS)
            content = content if isinstance(content, dict) else {}
            names, shape = content.get("names"), content.get("kpt_shape")
            count = content.get("nc")
        else:
            names = [line.strip() for line in text.rstrip().splitlines()]
            if "" in names:
                raise InputError(
                    f"{path}: line {names.index('') + 1} is empty, and a name's line is its class "
                    "number; name the class there or remove the line"
                )
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if isinstance(names, dict) and all(str(k).isascii() and str(k).isdigit() for k in names):
        names = {int(k): v for k, v in names.items()}
        if count is not None and str(count) != str(len(names)):
            raise InputError(
                f"{path}: nc is {shorten(count)}, and there are {len(names)} names; correct it"
            )
        if names and all(isinstance(n, str) and n.strip() for n in names.values()):
            return names, _key_points(shape, path)
    raise InputError(
        f"{path}: no class names; expected a name a line, or YAML with names: [cow, dog] or "
        "names: {0: cow, 1: dog}"
    )


def _key_points(shape: Any, path: Path) -> tuple[int, int] | None:
    if shape is None:
        return None
    if isinstance(shape, list) and len(shape) == 2 and all(str(v).isdigit() for v in shape):
        number, each = map(int, shape)
        if number >= 1 and each in (2, 3):
            return number, each
    raise InputError(f"{path}: kpt_shape is {shorten(shape)}; expected [number of points, 2 or 3]")
