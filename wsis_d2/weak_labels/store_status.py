# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The status file of each image in a label store: written last, it says that labels are there."""

import hashlib
import os
import urllib.parse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wsis_d2.structures.pictures import picture_stem
from wsis_d2.utils.errors import InputError, os_reason
from wsis_d2.utils.json_io import read_json
from wsis_d2.weak_labels.recipe import annotation_digest
from wsis_d2.weak_labels.store_manifest import COMMAND

_END = 4096  # bytes

_FAILED = {"image_id": int | str, "status": str, "file_name": str, "message": str}

_DONE = {"image_id": int | str, "status": str, "file_name": str, "height": int, "width": int,
         "annotation": str, "segments": list, "counters": dict}  # fmt: skip


def image_key(image_id: int | str) -> str:
    """Return an image id as a file name without suffix: 12 digits for integers, as in COCO."""
    if isinstance(image_id, (int, np.integer)):
        return f"{int(image_id):012d}"
    return urllib.parse.quote(str(image_id), safe=" ")


def id_names(image_id: int | str) -> set[str]:
    """Return what an image id is called in files; the ids of two images must share none of it."""
    return {str(image_id), image_key(image_id)}


def is_image_id(value: Any) -> bool:
    """Whether a value of a file can be an image's id: :func:`image_key` names a file with it."""
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        return False
    try:
        return len(image_key(value)) <= 240
    except (UnicodeEncodeError, ValueError):  # half a character; more digits than Python writes
        return False


def done_status(
    record: Mapping, segments: list[dict], counters: Mapping[str, float] | None
) -> dict:
    """Return the status of an image whose labels are there."""
    return {
        "image_id": record["image_id"],
        "status": "done",
        "file_name": os.path.basename(str(record["file_name"])),
        "height": int(record["height"]),
        "width": int(record["width"]),
        "annotation": annotation_digest(record),
        "picture": picture_digest(record["file_name"]),
        "segments": segments,
        "counters": dict(counters or {}),
        **({"made_of": record["made_of"]} if record.get("made_of") else {}),
    }


def failed_status(record: Mapping, message: str) -> dict:
    """Return the status of an image whose labels could not be made."""
    return {
        "image_id": record["image_id"],
        "status": "failed",
        "file_name": os.path.basename(str(record.get("file_name", ""))),
        "message": message,
    }


def read_status(path: Path, num_classes: int) -> dict:
    """Return an image's status file.

    Raises:
        InputError: it is damaged.
    """
    entry = read_json(path)
    done = isinstance(entry, dict) and entry.get("status") == "done"
    fields = _DONE if done else _FAILED
    sound = isinstance(entry, dict) and all(
        isinstance(entry.get(field), kind) for field, kind in fields.items()
    )
    if sound and done:
        numbers = entry["counters"].values()
        sound = all(_is_segment(segment, num_classes) for segment in entry["segments"]) and all(
            isinstance(number, int | float) for number in numbers
        )
    if not sound:
        raise InputError(
            f"{path}: is damaged; delete it and run the command that made the store again: "
            f"{COMMAND}"
        )
    return entry


def _is_segment(segment: object, num_classes: int) -> bool:
    numbers = ("id", "category_id", "area")
    return (
        isinstance(segment, dict)
        and all(type(segment.get(key)) is int for key in numbers)
        and 0 <= segment["category_id"] < num_classes
        and isinstance(segment.get("bbox"), list)
    )


def picture_digest(path: str | os.PathLike) -> str | None:
    """Return a short hash of a picture file's size, beginning and end; None where it is not there.

    That is enough to tell photographs apart, and no more to read of each before a training.

    Raises:
        InputError: it is there and cannot be read.
    """
    try:
        with open(path, "rb") as file:
            parts = [file.read(_END)]
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _END))
            parts.append(file.read())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {os_reason(error)}") from None
    return hashlib.sha256(b"%d " % size + b"".join(parts)).hexdigest()[:16]


def label_files(store: Path, image_id: int | str) -> list[Path]:
    """Return the files of an image's labels."""
    key = image_key(image_id)
    names = (f"panoptic/{key}.png", f"semantic/{key}.png", f"status/{key}.json")
    return [store / name for name in names]


def files_digest(paths: Iterable[str | os.PathLike]) -> str:
    """Return a hash of what :func:`picture_digest` tells of files, for a record's ``made_of``."""
    return hashlib.sha256(repr([picture_digest(path) for path in paths]).encode()).hexdigest()[:16]


def same_files(entry: Mapping, record: Mapping) -> bool:
    """Whether labels are of the files that a record says they are made of, if both know."""
    wanted = record.get("made_of")
    return wanted is None or entry.get("made_of", wanted) == wanted


def same_picture(entry: Mapping, record: Mapping) -> bool:
    """Whether labels are of a record's picture: moved and converted ones keep their name.

    A file of the same name and suffix must have the same content too, as far as
    :func:`picture_digest` and labels that know it tell.
    """
    own, other = entry["file_name"], os.path.basename(str(record["file_name"]))
    if own == other and entry.get("picture"):
        try:
            return picture_digest(record["file_name"]) in (None, entry["picture"])
        except InputError:  # whoever needs its pixels tells
            return True
    return picture_stem(own) == picture_stem(other)
