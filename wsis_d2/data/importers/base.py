# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""From annotation tools' files to the own-data format: what all readers share.

A reader (``format_coco``, ``format_files``, ``format_tags``) turns one tool's files into
:class:`Picture` objects with class names; :func:`to_own_data` gives names their ids and writes
nothing but boxes and tags. Masks and polygons end here: only their bounding box goes on.
"""

import itertools
import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsis_d2.data.datasets.own.weak import MAX_SIDE, is_number, shorten
from wsis_d2.structures.classes import parse_categories
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.image_io import PICTURE_SUFFIXES as IMAGE_SUFFIXES
from wsis_d2.utils.image_io import explain_size, picture_size
from wsis_d2.utils.json_io import read_json

_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")  # what Label Studio puts before an uploaded name


@dataclass
class Picture:
    """One image and its annotation, classes by name.

    Attributes:
        file_name: relative to the image root, with forward slashes.
        width, height: pixels as they are shown, that is after EXIF rotation.
        boxes: (class name, x, y, width, height, is crowd) in pixels.
        tags: class names seen in the image.
        crop_tags: ((x, y, width, height), class names).
        image_id: the id that the source has for it, so that other files which name it still fit;
            None: it gets a number.
    """

    file_name: str
    width: int
    height: int
    boxes: list[tuple[str, float, float, float, float, bool]] = field(default_factory=list)
    tags: set[str] = field(default_factory=set)
    crop_tags: list[tuple[tuple[float, float, float, float], set[str]]] = field(
        default_factory=list
    )
    image_id: int | str | None = None


class ImportLog:
    """What was dropped or changed, and why.

    Args:
        keep_going: turn errors of single records and files into drops.
    """

    def __init__(self, keep_going: bool = False) -> None:
        self.keep_going = keep_going
        self.dropped: list[dict[str, str]] = []
        self.changed: list[dict[str, str]] = []
        self.notes: list[str] = []

    def drop(self, what: str, where: str, why: str) -> None:
        """Note that ``what`` ("box", "image", "tag", "file") of ``where`` was left out."""
        self.dropped.append({"what": what, "where": where, "why": why})

    def change(self, what: str, where: str, why: str) -> None:
        """Note that ``what`` of ``where`` was taken in another form."""
        self.changed.append({"what": what, "where": where, "why": why})

    def bad(self, what: str, where: str, why: str) -> None:
        """Raise InputError, or drop where going on was asked for."""
        if not self.keep_going:
            raise InputError(f"{where}: {why}; mend it, or drop such records with --keep-going")
        self.drop(what, where, why)

    def lines(self, examples: int = 3) -> list[str]:
        """The report as text: each reason once, with its number and some examples."""
        result = list(self.notes)
        for label, entries in (("dropped", self.dropped), ("changed", self.changed)):
            groups: dict[tuple[str, str], list[str]] = {}
            for entry in entries:
                groups.setdefault((entry["what"], entry["why"]), []).append(entry["where"])
            for (what, why), places in sorted(groups.items(), key=lambda g: -len(g[1])):
                shown = ", ".join(places[:examples]) + (", ..." if len(places) > examples else "")
                result.append(f"{label} {len(places)} x {what}: {why} ({shown})")
        return result


class ImageIndex:
    """The images of a folder, found by relative path, by name or by stem.

    Args:
        root: the image root; searched with its sub-folders.

    Raises:
        InputError: no such folder, or no image in it.
    """

    def __init__(self, root: str | os.PathLike) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise InputError(f"--images {root}: no such folder")
        self.paths: dict[str, str] = {}
        self._names: dict[str, list[str]] = {}
        self._stems: dict[str, list[str]] = {}
        for folder, folders, files in os.walk(self.root):
            folders.sort()
            for name in sorted(files):
                stem, suffix = os.path.splitext(name)
                if suffix.lower() not in IMAGE_SUFFIXES:
                    continue
                path = (Path(folder) / name).relative_to(self.root).as_posix()
                self.paths[path] = path
                self._names.setdefault(name, []).append(path)
                self._stems.setdefault(stem, []).append(path)
        if not self.paths:
            raise InputError(f"--images {root}: no image in it ({' '.join(IMAGE_SUFFIXES)})")

    def find(self, name: Any, where: str, log: ImportLog) -> str | None:
        """Return the image that a file means by ``name``, or None, noted in ``log``.

        A path is taken as it is where it leads to an image of the root, else its last part
        counts, where one image alone has it. Nothing outside the root is ever touched.
        """
        if not isinstance(name, str) or not name or "\0" in name:
            log.bad("image", where, f"the image's name is {shorten(name)}, expected text")
            return None
        plain = os.path.normpath(name.replace("\\", "/")).replace(os.sep, "/")
        if plain in self.paths:
            return plain
        last = plain.rsplit("/", 1)[-1]
        for candidate in (last, _UPLOAD_PREFIX.sub("", last)):
            found = self._names.get(candidate, [])
            if len(found) == 1:
                log.change("image name", f"{where}: {shorten(name)}", "found by its last part")
                return found[0]
            if len(found) > 1:
                log.bad("image", where, f"{shorten(name)} may be {found[0]} or {found[1]}")
                return None
        if plain.startswith(("/", "../")) or plain == "..":
            log.bad("image", where, f"{shorten(name)} leaves the image root and is no image of it")
        else:
            log.drop("image", f"{where}: {shorten(name)}", "no such file under --images")
        return None

    def by_stem(self, relative: str, where: str, log: ImportLog) -> str | None:
        """Return the image of an annotation file that has its name, whatever the suffix."""
        for suffix in IMAGE_SUFFIXES:
            for variant in (suffix, suffix.upper()):
                if relative + variant in self.paths:
                    return relative + variant
        found = self._stems.get(relative.rsplit("/", 1)[-1], [])
        if len(found) == 1:
            return found[0]
        if found:
            log.bad("image", where, f"may belong to {found[0]} or {found[1]}")
        else:
            log.drop("image", where, "no image of this name under --images")
        return None

    def picture(
        self, path: str, where: str, log: ImportLog, size: tuple[Any, Any] | None = None
    ) -> Picture | None:
        """Read an image whole and return an empty :class:`Picture`, or None, noted in ``log``.

        Args:
            path: relative to the root, as :meth:`find` returns it.
            where: who asks, for messages.
            log: where problems go.
            size: (width, height) as the annotation has it; another size is an error, since its
                boxes are then in other pixels.
        """
        try:
            width, height = picture_size(self.root / path)
        except InputError as error:
            name = str(self.root / path)
            log.bad("image", name, str(error).removeprefix(f"{name}: "))
            return None
        if not 1 <= width <= MAX_SIDE or not 1 <= height <= MAX_SIDE:
            log.bad("image", f"{self.root / path}", f"has {width} x {height} pixels, too many")
            return None
        if size is not None and any(v is not None and v != 0 for v in size):
            if not all(is_number(v) for v in size) or (width, height) != tuple(size):
                wanted = (shorten(size[0]), shorten(size[1]))
                if all(is_number(v) for v in size):
                    wanted = tuple(size)
                why = explain_size(self.root / path, (width, height), wanted)
                log.bad("image", where, f"the image {path} {why}")
                return None
        return Picture(path, width, height)


def add_box(
    picture: Picture,
    name: Any,
    xyxy: Iterable[Any],
    where: str,
    log: ImportLog,
    crowd: bool = False,
) -> None:
    """Add a box given by its corners; clip it to the image; drop what has no area there.

    NaN, infinity and what is no number are errors.
    """
    corners = list(xyxy)
    if not isinstance(name, str) or not name.strip():
        log.bad("box", where, f"its class is {shorten(name)}, expected a name")
        return
    if len(corners) != 4 or not all(is_number(v) and math.isfinite(v) for v in corners):
        log.bad("box", where, f"its corners are {shorten(corners)}, expected four finite numbers")
        return
    x0, y0, x1, y1 = map(float, corners)
    if x1 <= x0 or y1 <= y0:
        log.drop("box", where, "no area")
        return
    u0, v0 = max(x0, 0.0), max(y0, 0.0)
    u1, v1 = min(x1, float(picture.width)), min(y1, float(picture.height))
    if u1 <= u0 or v1 <= v0:
        log.drop("box", where, "wholly outside the image")
        return
    if max(u0 - x0, v0 - y0, x1 - u1, y1 - v1) > 1:
        log.change("box", where, "more than a pixel outside the image, clipped")
    digits = [round(v, 4) for v in (u0, v0, u1 - u0, v1 - v0)]
    picture.boxes.append((name.strip(), *digits, bool(crowd)))


def to_own_data(
    pictures: list[Picture],
    log: ImportLog,
    *,
    stuff: Iterable[str] = (),
    ignore: Iterable[str] = (),
    known: list[dict] | None = None,
    fixed: bool = False,
) -> dict:
    """Make an own-data file's content of what a reader found.

    A class that has a box is a thing; one that has tags alone is stuff. Boxes of classes named in
    ``stuff`` become tags of their image.

    Args:
        pictures: with unique file names.
        log: where drops and changes go.
        stuff: names that are stuff whatever the file says.
        ignore: names to leave out.
        known: categories (``id``, ``name``, optionally ``isthing`` and ``color``) that keep their
            ids, e.g. those of the training file when the validation file is imported.
        fixed: whether ``known`` is all there is; other names are then dropped.

    Raises:
        InputError: nothing is left, or a name in ``stuff`` does not occur.
    """
    stuff, ignore = set(stuff), set(ignore)
    known = list(known or [])
    boxed = {b[0] for p in pictures for b in p.boxes}
    tagged = {t for p in pictures for t in p.tags}
    tagged |= {t for p in pictures for _, tags in p.crop_tags for t in tags}
    for name in sorted(stuff - boxed - tagged - {c["name"] for c in known}):
        raise InputError(f"--stuff {name}: no such class; there are {_names(boxed | tagged)}")
    categories = _categories(known, boxed, tagged, stuff, ignore, fixed)
    ids = {c["name"]: c["id"] for c in categories}
    things = {c["name"] for c in categories if c["isthing"]}

    def keep(name: str, where: str, what: str) -> bool:
        if name in ids:
            return True
        why = f'class "{name}" is left out' if name in ignore else f'class "{name}" is not known'
        log.drop(what, where, why)
        return False

    images, annotations = [], []
    taken = {str(p.image_id) for p in pictures if p.image_id is not None}
    numbers = (n for n in itertools.count(1) if str(n) not in taken)
    for picture in sorted(pictures, key=lambda p: p.file_name):
        image_id = next(numbers) if picture.image_id is None else picture.image_id
        tags = {t for t in picture.tags if keep(t, picture.file_name, "tag")}
        for name, x, y, w, h, crowd in picture.boxes:
            if not keep(name, picture.file_name, "box"):
                continue
            if name not in things:
                tags.add(name)
                log.change("box", picture.file_name, f'"{name}" is stuff, so its box became a tag')
                continue
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image_id, "category_id": ids[name],
                 "bbox": [x, y, w, h], "iscrowd": int(crowd)}
            )  # fmt: skip
        entry = {"id": image_id, "file_name": picture.file_name, "height": picture.height,
                 "width": picture.width}  # fmt: skip
        crops = []
        for box, found in picture.crop_tags:
            kept = sorted(ids[t] for t in found if keep(t, picture.file_name, "tag"))
            crops.append({"box": list(box), "tags": kept})
        entry["image_tags"] = sorted({ids[t] for t in tags} | {t for c in crops for t in c["tags"]})
        if crops:
            entry["crop_tags"] = crops
        images.append(entry)
    if not images:
        reasons = "; ".join(log.lines()[:3])
        raise InputError(f"no image is left to import{': ' + reasons if reasons else ''}")
    return {"images": images, "categories": categories, "annotations": annotations}


def _categories(known, boxed, tagged, stuff, ignore, fixed) -> list[dict]:
    categories = []
    for category in known:
        name = category["name"]
        if name in ignore:
            continue
        isthing = category.get("isthing")
        if name in stuff:
            isthing = 0
        elif isthing is None:
            isthing = int(name in boxed or name not in tagged)
        kept = {k: category[k] for k in ("id", "name", "supercategory", "color") if k in category}
        categories.append({**kept, "isthing": int(isthing)})
    if not fixed:
        have = {c["name"] for c in categories}
        things = sorted(boxed - have - stuff - ignore)
        others = sorted((tagged | boxed) - have - set(things) - ignore)
        following = max((c["id"] for c in categories), default=0) + 1
        for number, name in enumerate(things + others, start=following):
            categories.append({"id": number, "name": name, "isthing": int(name in things)})
    return parse_categories(categories, "the imported classes").categories


def read_categories(path: str | os.PathLike) -> list[dict]:
    """Read the ``categories`` of an own-data or COCO file for ``known`` of :func:`to_own_data`."""
    content = read_json(path)
    categories = content.get("categories") if isinstance(content, dict) else content
    if not isinstance(categories, list) or not all(isinstance(c, dict) for c in categories):
        raise InputError(f'{path}: has no "categories" list')
    return check_known(categories, os.fspath(path))


def check_known(categories: list, source: str) -> list[dict]:
    """Check ids and names of categories whose ``isthing`` may be missing."""
    filled = [
        {**c, "isthing": 1 if c.get("isthing") is None else c["isthing"]}
        if isinstance(c, dict)
        else c
        for c in categories
    ]
    parse_categories(filled, source)
    return categories


def write_json(content: Any, path: str | os.PathLike) -> None:
    """Write a JSON file whole: under a temporary name, then renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(content, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _names(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") or "none"
