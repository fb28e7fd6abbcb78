# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""What the format readers share beside images: files, XML, numbers, boxes of points."""

import math
import os
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.parsers import expat

from wsis_d2.data.datasets.own.values import is_number
from wsis_d2.data.importers.import_log import ImportLog
from wsis_d2.data.importers.picture import Picture
from wsis_d2.utils.errors import InputError, os_reason
from wsis_d2.utils.files import OF_ROOT

MAX_FILE_BYTES = 64 << 20  # of one XML, text or labelme file: with an image inside, not more


def annotation_files(path: str | os.PathLike, suffix: str) -> Iterator[tuple[Path, str]]:
    """Yield the annotation files of a folder, or the one file, with their names for messages."""
    path = Path(path)
    if path.is_file():
        files = [path]
    elif path.is_dir():
        below = [Path(path, name) for name in names_below(path)]
        files = sorted(f for f in below if f.suffix.lower() == suffix and _readable(f))
    else:
        raise InputError(f"--annotations {path}: no such file or folder")
    if not files:
        others = Counter(f.suffix.lower() for f in below if f.suffix)
        have = ", ".join(f"{n} {s}" for s, n in others.most_common(3))
        raise InputError(
            f"--annotations {path}: no {suffix} file in it" + (f", but {have}" if have else "")
        )
    for file in files:
        yield file, str(file)


def names_below(root: str | os.PathLike) -> list[str]:
    """Return the files of a folder and of those below, each folder's sorted, relative to it.

    Links to folders are followed; of folders that several lead to, one counts. What macOS adds to
    files in archives is left out.

    Raises:
        OSError: a folder cannot be read: its files would be missed in silence.
    """
    root, found = Path(root), []
    seen = [root.resolve()]
    for folder, folders, files in os.walk(root, onerror=_refuse, followlinks=True):
        for name in sorted(folders):
            path = Path(folder) / name
            target = path.resolve()
            listed = target in seen  # by a link to it
            if path.is_symlink():
                listed = any(map(target.is_relative_to, seen)) or target in seen[0].parents
                seen += [] if listed else [target]
            if listed:
                folders.remove(name)
        folders.sort()
        # ._NAME is what macOS adds to NAME in archives: no picture and no annotation.
        names = sorted(name for name in files if not name.startswith("._"))
        found += [(Path(folder) / name).relative_to(root).as_posix() for name in names]
    return found


def _readable(path: Path) -> bool:
    return path.is_file() or path.is_symlink()  # one that leads nowhere is told when it is read


def _refuse(error: OSError) -> None:
    if os.path.basename(str(error.filename)) != OF_ROOT:
        raise error


def relative_stem(file: Path, root: str | os.PathLike) -> str:
    root = Path(root)
    relative = file.relative_to(root) if root.is_dir() else Path(file.name)
    return relative.with_suffix("").as_posix()


def check_size(path: Path) -> None:
    if path.is_file() and path.stat().st_size > MAX_FILE_BYTES:
        raise InputError(f"{path}: has {path.stat().st_size} bytes, more than {MAX_FILE_BYTES}")


def read_bytes(path: Path) -> bytes:
    check_size(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {os_reason(error)}") from None


def bad_file(error: Exception, where: str, log: ImportLog) -> None:
    log.bad("file", where, str(error).removeprefix(f"{where}: "))


def to_number(text: str | None) -> float | None:
    """A number from text; None where it is none (NaN stays NaN, which is refused later)."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def is_finite(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)


def hull(points: list) -> list[float]:
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    return [min(xs), min(ys), max(xs), max(ys)]


def upright(x0: float, y0: float, x1: float, y1: float, angle: float) -> list[float]:
    """The corners around a box that is turned by ``angle`` degrees about its centre."""
    c, s = abs(math.cos(math.radians(angle))), abs(math.sin(math.radians(angle)))
    w, h = x1 - x0, y1 - y0
    if w <= 0 or h <= 0:
        return [x0, y0, x1, y1]  # no box, which no angle makes one
    half_w, half_h = (w * c + h * s) / 2, (w * s + h * c) / 2
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    return [x - half_w, y - half_h, x + half_w, y + half_h]


def box_order(boxes: Iterable[tuple], what: str) -> str:
    """Refuse boxes whose numbers look like corners where the format has sides.

    They do if every one fits its image as corners, and a tenth of them leaves the image, or
    contradicts its own polygon, as the format has them.

    Args:
        boxes: (corners if the numbers are corners, corners as the format has them, picture, the
            polygon's corners or None), in pixels.
        what: the numbers, for the message.

    Returns:
        "xywh".
    """
    wrong = total = 0
    for corners, sides, picture, outline in boxes:
        ends = (0, 0, picture.width, picture.height)
        x0, y0, x1, y1 = corners
        if x1 <= x0 or y1 <= y0 or _beyond(corners, ends) > 1:
            return "xywh"
        total += 1
        off = outline and _apart(sides, outline) > 2 and _apart(corners, outline) <= 2
        wrong += bool(off or _beyond(sides, ends) > 1)
    if wrong and wrong * 10 >= total:
        raise InputError(
            f"{what}: {wrong} of {total} boxes leave their image or polygon as position and size, "
            "and all fit as x0, y0, x1, y1; say which they are with --bbox xyxy or --bbox xywh"
        )
    return "xywh"


def _beyond(box: Sequence[float], ends: Sequence[float]) -> float:
    """By how many pixels a box leaves another."""
    return max(ends[0] - box[0], ends[1] - box[1], box[2] - ends[2], box[3] - ends[3])


def _apart(a: Sequence[float], b: Sequence[float]) -> float:
    return max(abs(u - v) for u, v in zip(a, b, strict=True))


def parse_xml(path: Path) -> ElementTree.Element:
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


def unique(pictures: list[tuple[Picture, str]], log: ImportLog) -> list[Picture]:
    """Refuse a second annotation of one image; each comes with where it is written."""
    kept: dict[str, tuple[Picture, str]] = {}
    for picture, where in pictures:
        first = kept.setdefault(picture.file_name, (picture, where))
        if first[0] is not picture:
            why = f"is of the image {picture.file_name}, and so is {first[1]}; keep one of them"
            log.bad("file", where, why)
    return [picture for picture, _ in kept.values()]
