# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Small helpers of the format readers: files, numbers, boxes of points."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wsis_d2.data.datasets.own.weak import is_number
from wsis_d2.data.importers.base import ImportLog
from wsis_d2.utils.errors import InputError

MAX_FILE_BYTES = 64 << 20  # of one XML, text or labelme file: with an image inside, not more


def annotation_files(path: str | os.PathLike, suffix: str) -> Iterator[tuple[Path, str]]:
    """Yield the annotation files of a folder, or the one file, with their names for messages."""
    path = Path(path)
    if path.is_file():
        files = [path]
    elif path.is_dir():
        files = sorted(f for f in path.rglob(f"*{suffix}") if f.is_file())
    else:
        raise InputError(f"--annotations {path}: no such file or folder")
    if not files:
        raise InputError(f"--annotations {path}: no {suffix} file in it")
    for file in files:
        yield file, str(file)


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
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


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
