# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Reader of image tags and crop tags from CSV files."""

import csv
import io
import os
from pathlib import Path

from wsis_d2.data.datasets.own.weak import shorten
from wsis_d2.data.importers.base import ImageIndex, ImportLog, Picture
from wsis_d2.data.importers.files import is_finite, read_bytes, to_number
from wsis_d2.utils.errors import InputError


def read_tags_csv(
    path: str | os.PathLike, pictures: list[Picture], images: ImageIndex, log: ImportLog
) -> list[Picture]:
    """Add tags from a CSV file; images that had no annotation become pictures.

    The header names the columns. ``image`` (or ``file_name``) is the image; ``tags`` (or ``tag``)
    holds names separated by ``;`` or ``|``; an image may have many rows. With ``x, y, width,
    height`` a row tags that crop. Without a tags column every other column is a class and holds
    0 or 1.
    """
    path = Path(path)
    try:
        text = read_bytes(path).decode("utf-8-sig")
        rows = list(csv.reader(io.StringIO(text), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: no readable CSV ({error})") from None
    header = [h.strip() for h in rows[0]] if rows else []
    lower = [h.lower() for h in header]
    image_column = next((lower.index(n) for n in ("image", "file_name") if n in lower), None)
    if image_column is None:
        raise InputError(f'{path}: header is {shorten(header)}; expected a column "image"')
    tag_column = next((lower.index(n) for n in ("tags", "tag") if n in lower), None)
    crop_columns = [lower.index(n) for n in ("x", "y", "width", "height") if n in lower]
    if len(crop_columns) not in (0, 4) or (crop_columns and tag_column is None):
        raise InputError(f"{path}: crops need the columns x, y, width, height and tags")
    by_name = {p.file_name: p for p in pictures}
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
        if found not in by_name:
            picture = images.picture(found, where, log)
            if picture is None:
                continue
            by_name[found] = picture
        picture = by_name[found]
        if tag_column is not None:
            tags = {t.strip() for t in row[tag_column].replace("|", ";").split(";") if t.strip()}
        else:
            tags = _one_hot(row, header, image_column, where, log)
        if not crop_columns:
            picture.tags |= tags
            continue
        x, y, w, h = crop = [to_number(row[c]) for c in crop_columns]
        if not all(map(is_finite, crop)) or w <= 0 or h <= 0:
            log.bad("tag", where, f"crop {shorten(crop)}: expected x, y, width, height")
        elif min(x, y) < -1 or x + w > picture.width + 1 or y + h > picture.height + 1:
            log.bad("tag", where, f"crop {shorten(crop)} leaves its image {found}")
        else:
            picture.crop_tags.append(((x, y, w, h), tags))
    return list(by_name.values())


def _one_hot(row, header, image_column, where, log) -> set[str]:
    tags = set()
    for column, cell in enumerate(row):
        if column == image_column:
            continue
        value = cell.strip().lower()
        if value in ("1", "true", "yes", "x"):
            tags.add(header[column])
        elif value not in ("", "0", "false", "no"):
            log.bad("tag", where, f'"{cell[:40]}" in column {header[column]}; expected 0 or 1')
    return tags
