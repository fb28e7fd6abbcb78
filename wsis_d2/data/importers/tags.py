# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Reader of image tags and crop tags from CSV files."""

import ast
import csv
import io
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from wsis_d2.data.datasets.own.values import shorten
from wsis_d2.data.importers.files import read_bytes, to_number
from wsis_d2.data.importers.image_index import ImageIndex
from wsis_d2.data.importers.import_log import ImportLog
from wsis_d2.data.importers.names import fold, to_flag
from wsis_d2.data.importers.picture import Picture, add_crop
from wsis_d2.utils.errors import InputError

_IMAGE_COLUMNS = ("image", "file_name", "filename")
_TAG_COLUMNS = ("tags", "tag", "choices", "choice")


def read_tags_csv(
    path: str | os.PathLike,
    pictures: list[Picture],
    images: ImageIndex,
    log: ImportLog,
    known: Iterable[str] = (),
) -> list[Picture]:
    """Add tags from a CSV file; images that had no annotation become pictures.

    The header names the columns, which ``,``, ``;`` or tabs separate. ``image`` (or ``file_name``,
    ``filename``) is the image; ``tags`` (or ``tag``, ``choices``, ``choice``) holds names separated
    by ``;``, ``|``, ``,`` or line ends, or a list as JSON or Python writes it; an image may have
    many rows. With ``x, y, width, height`` a row tags that crop. Without a tags column every other
    column is a class and holds 0 or 1.

    Args:
        path, images, log: as for all readers.
        pictures: what another reader found.
        known: class names that may hold a separator themselves.
    """
    path = Path(path)
    try:
        text = read_bytes(path).decode("utf-8-sig")
        # Spreadsheets write ";" where "," is the decimal sign.
        first = re.split("[\r\n]", text, maxsplit=1)[0].lower()
        marks = [m for m in ",;\t" if any(c.strip(' "') in _IMAGE_COLUMNS for c in first.split(m))]
        rows = list(
            csv.reader(
                io.StringIO(text), strict=True, delimiter=(marks or [","])[0], skipinitialspace=True
            )
        )
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no UTF-8 text ({error}); save it as CSV UTF-8") from None
    except csv.Error as error:
        raise InputError(f"{path}: no readable CSV ({error})") from None
    header = [h.strip() for h in rows[0]] if rows else []
    while header and not any("".join(row[len(header) - 1 :]).strip() for row in rows):
        header.pop()  # columns that spreadsheets add: no row has anything there
        rows = [row[: len(header)] for row in rows]
    lower = [h.lower() for h in header]
    if "region_shape_attributes" in lower:
        raise InputError(
            f"{path}: is VIA (VGG Image Annotator) CSV, boxes and no tags; choose "
            '"Export Annotations (COCO format)" in its menu and read that'
        )
    twice = [h for h in header if lower.count(h.lower()) > 1]
    if twice:
        raise InputError(f"{path}: two columns are named {shorten(twice[0])}; join or rename them")
    image_column = next((lower.index(n) for n in _IMAGE_COLUMNS if n in lower), None)
    if image_column is None:
        raise InputError(f'{path}: header is {shorten(header)}; expected a column "image"')
    named = [n for n in _TAG_COLUMNS if n in lower]
    if len(named) > 1:
        raise InputError(
            f"{path}: columns {named[0]} and {named[1]} hold tags; join or rename them"
        )
    tag_column = lower.index(named[0]) if named else None
    if tag_column is None and not all(header):
        raise InputError(f"{path}: column {header.index('') + 1} has no name; each names a class")
    crop_columns = [lower.index(n) for n in ("x", "y", "width", "height") if n in lower]
    corners = [n for n in ("xmin", "ymin", "xmax", "ymax", "x1", "y1", "x2", "y2") if n in lower]
    if corners or len(crop_columns) not in (0, 4) or (crop_columns and tag_column is None):
        found = f", and no {', '.join(corners)}" if corners else ""
        raise InputError(f"{path}: crops need the columns x, y, width, height and tags{found}")
    unread = set(range(len(header))) - {image_column, tag_column, *crop_columns}
    if tag_column is not None and unread:
        names = ", ".join(header[k] or f"column {k + 1}" for k in sorted(unread))
        log.notes.append(f"{path}: not read: {names}")
    by_name = {p.file_name: p for p in pictures}
    whole = {fold(name) for name in known} | {fold(b[0]) for p in pictures for b in p.boxes}
    for number, row in enumerate(rows[1:], start=2):
        where = f"{path}:{number}"
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(header):
            log.bad("tag", where, f"{len(row)} cells; the header has {len(header)}")
            continue
        found = images.find(row[image_column].strip(), where, log)
        if found is None:
            continue
        picture = images.known_picture(found, by_name, where, log)
        if picture is None:
            continue
        if tag_column is not None:
            tags = split_names(row[tag_column], whole)
            if tags is None:
                log.bad("tag", where, f"{shorten(row[tag_column])} is no list of names")
                continue
            digits = next((t for t in sorted(tags) if to_number(t) is not None), "nan")
            if digits.lower() != "nan" and fold(digits) not in whole:
                why = f"tag {digits} is a number, no class; --stuff {digits} makes it one"
                log.bad("tag", where, why)
                continue
        else:
            tags = _one_hot(row, header, image_column, where, log)
        if not crop_columns:
            picture.tags |= tags
            continue
        add_crop(picture, [to_number(row[c]) for c in crop_columns], tags, where, log)
    return list(by_name.values())


def split_names(cell: str, whole: set[str]) -> set[str] | None:
    """The names in a cell; None where it is a broken list or holds something else than names.

    Args:
        cell: the text.
        whole: folded names that may hold a separator themselves.
    """
    cell = cell.strip()
    if cell.startswith(("[", "{", "(")):
        try:
            content: Any = json.loads(cell)
        except (ValueError, RecursionError):
            try:
                # NumPy writes arrays of texts without commas, and Python joins such texts.
                content = ast.literal_eval(re.sub(r"(?<=['\"])\s+(?=['\"])", ", ", cell))
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                return None
        if isinstance(content, dict):  # Label Studio, several choices
            content = content.get("choices")
        content = [content] if isinstance(content, str) else content
        content = sorted(content, key=str) if isinstance(content, tuple | set) else content
        if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
            return None
        return {name.strip() for name in content if name.strip()}
    if fold(cell) in whole:
        return {cell}
    names = set()
    for part in re.split(r"[;|\n]", cell):
        names |= {part} if fold(part) in whole else set(part.split(","))
    return {name.strip() for name in names if name.strip()}


def _one_hot(
    row: Sequence[str], header: Sequence[str], image_column: int, where: str, log: ImportLog
) -> set[str]:
    tags = set()
    for column, cell in enumerate(row):
        if column == image_column:
            continue
        value = True if cell.strip().lower() == "x" else to_flag(cell)
        if value:
            tags.add(header[column])
        elif value is None:
            log.bad("tag", where, f'"{cell[:40]}" in column {header[column]}; expected 0 or 1')
    return tags
