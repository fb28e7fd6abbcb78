# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Reader of scribbles that are drawn into PNG files, as public scribble sets have them.

Addition, not in the paper.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from wsis_d2.data.datasets.own.marks import MAX_SHARE
from wsis_d2.data.importers.files import annotation_files, bad_file, relative_stem
from wsis_d2.data.importers.image_index import ImageIndex
from wsis_d2.data.importers.import_log import ImportLog
from wsis_d2.data.importers.picture import Mark, Picture
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.image_io import opened_png, stored_bits, turn_of

#: The value of what was not drawn on.
UNMARKED = 255


def read_scribbles(
    path: str | os.PathLike,
    pictures: list[Picture],
    images: ImageIndex,
    log: ImportLog,
    names: Mapping[int, str],
    *,
    objects: bool = False,
) -> list[Picture]:
    """Add scribbles from a folder of PNG files; images that had no annotation become pictures.

    A file has its image's name and size and one channel (grey or palette), whose value is the
    class; 255 is unmarked, and so is 0 where no class has that number.

    Args:
        path, images, log: as for all readers.
        pictures: what another reader found.
        names: value -> class name.
        objects: each connected stroke is an object of its own; else strokes tell the class alone.
    """
    by_name = {p.file_name: p for p in pictures}
    drawn: dict[str, str] = {}
    for file, where in annotation_files(path, ".png"):
        found = images.by_stem(relative_stem(file, path), where, log)
        if found is None:
            continue
        values = _values(file, where, log)
        if values is None:
            continue
        if drawn.setdefault(found, where) != where:
            log.bad("file", where, f"is of the image {found}, and so is {drawn[found]}; join them")
            continue
        picture = images.known_picture(found, by_name, where, log)
        if picture is None:
            continue
        if values.shape != (picture.height, picture.width):
            size = f"{values.shape[1]} x {values.shape[0]}"
            log.bad("file", where, f"has {size} pixels, its image {picture.width} x "
                    f"{picture.height}")  # fmt: skip
            continue
        if picture.turned and not picture.boxes and picture.width != picture.height:
            picture.turned = turn_of(images.root / found) < 5  # the size tells of the others
        unmarked = {UNMARKED} if 0 in names else {UNMARKED, 0}
        present = [v for v in np.unique(values).tolist() if v not in unmarked]
        unknown = [v for v in present if v not in names]
        if unknown:
            log.bad("file", where, f"has the value {unknown[0]}, which no class has as its number")
            continue
        marked = ~np.isin(values, list(unmarked))
        if marked.mean() > MAX_SHARE:
            share = f"{100 * marked.mean():.0f} %"
            log.bad(
                "file", where, f"marks {share} of its image, which makes a mask; expected strokes"
            )
            continue
        for value in present:
            strokes = cv2.connectedComponents((values == value).astype(np.uint8))[1]
            for number in range(1, int(strokes.max()) + 1):
                owner = f"{where} {value} {number}" if objects else -1
                for line in _runs(strokes == number):
                    picture.marks.append(Mark(names[value], line, owner))
    return list(by_name.values())


def _values(file: Path, where: str, log: ImportLog) -> np.ndarray | None:
    try:
        with opened_png(file) as image:
            mode, values = image.mode, np.array(image)
            bits = stored_bits(file, image)
    except InputError as error:
        bad_file(error, where, log)
        return None
    if mode not in ("L", "P", "1") or values.ndim != 2:
        log.bad("file", where, f"has {mode} pixels, expected one channel of class numbers")
        return None
    if mode == "L" and bits < 8:  # Pillow stretches them: 1 of 4 bits is 17 of 8
        log.bad("file", where, f"is grey of {bits} bits, expected 8 bits or a palette")
        return None
    return values.astype(np.uint8)


def _runs(mask: np.ndarray) -> list[list[list[float]]]:
    """Return the pixels of a mask as lines: its runs along rows, or columns if these are fewer."""
    best: list[list[list[float]]] | None = None
    for turned in (False, True):
        grid = np.pad(mask.T if turned else mask, ((0, 0), (1, 1))).astype(np.int8)
        steps = np.diff(grid, axis=1)
        rows, starts = np.nonzero(steps == 1)
        ends = np.nonzero(steps == -1)[1] - 1
        lines = []
        for row, start, end in zip(rows.tolist(), starts.tolist(), ends.tolist(), strict=True):
            pair = [[start + 0.5, row + 0.5], [end + 0.5, row + 0.5]]
            pair = [[y, x] for x, y in pair] if turned else pair
            lines.append(pair if start < end else pair[:1])
        if best is None or len(lines) < len(best):
            best = lines
    return best or []
