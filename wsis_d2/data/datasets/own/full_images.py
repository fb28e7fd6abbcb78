# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Which images of a mixed set train from truth: a list of names, or a share."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from wsis_d2.data.datasets.own.weak import resolve_image_path
from wsis_d2.utils.errors import InputError, os_reason


def mark_full(
    records: Sequence[dict], full_images: str | float, images: str, where: str
) -> list[dict]:
    """Return the records with ``"supervision": "full"`` on those that are named.

    Addition, not in the paper, whose weak and full images are sets of their own.

    Args:
        records: of a mixed set, in the file's order.
        full_images: a text file with one ``file_name`` of the annotation a line; or a share of the
            images, 0 to 1: those whose ids have the smallest digests, so that a smaller share's
            images are among a larger one's and a longer file changes the choice of few.
        images: the folder that the file's names are relative to.
        where: the dataset, for messages.

    Raises:
        InputError: no such file, one without a name, a name that is no image of the set, a share
            outside 0 to 1.
    """
    if isinstance(full_images, str):
        chosen = _listed(records, Path(full_images), images, where)
    elif type(full_images) in (int, float) and 0 <= full_images <= 1:  # no yes or no
        ranked = sorted((str(record["image_id"]) for record in records), key=_digest)
        chosen = set(ranked[: round(full_images * len(ranked))])
    else:
        raise InputError(
            f"{where}: full_images is {full_images!r}; expected a text file of image names, or a "
            "share of 0 to 1"
        )
    return [
        {**record, "supervision": "full"} if str(record["image_id"]) in chosen else record
        for record in records
    ]


def _digest(image_id: str) -> str:
    return hashlib.sha256(image_id.encode()).hexdigest()


def _listed(records: Sequence[dict], path: Path, images: str, where: str) -> set[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"{where}: full_images: {path}: {os_reason(error)}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: full_images: {path}: {error}") from None
    ids = {record["file_name"]: str(record["image_id"]) for record in records}
    chosen = set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        file_name = resolve_image_path(line.strip(), images, f"{path}: line {number}")
        if file_name not in ids:
            raise InputError(
                f"{path}: line {number}: {line.strip()!r} is no image of {where}; expected a "
                "file_name of its annotation"
            )
        chosen.add(ids[file_name])
    if not chosen:
        raise InputError(f"{where}: full_images: {path} names no image; expected one a line")
    return chosen
