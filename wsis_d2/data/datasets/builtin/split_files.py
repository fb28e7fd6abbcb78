# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The files of one prepared split: what they hold, and whether they are as they were written."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsis_d2.utils.errors import InputError
from wsis_d2.utils.json_io import read_json
from wsis_d2.utils.progress import progress


def weak_content(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return images, boxes and tags of a weak file, from the journal's lines."""
    annotations: list[dict] = []
    for line in lines:
        for box in line["annotations"]:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": line["id"],
                    "category_id": box["category_id"],
                    "bbox": box["bbox"],
                    "area": box["bbox"][2] * box["bbox"][3],
                    "iscrowd": box["iscrowd"],
                }
            )
    return {"images": [line["image"] for line in lines], "annotations": annotations}


def panoptic_content(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return images and segments of a COCO panoptic file, from the journal's lines."""
    keys = ("id", "file_name", "height", "width")
    return {
        "images": [{key: line["image"][key] for key in keys} for line in lines],
        "annotations": [
            {
                "image_id": line["id"],
                "file_name": line["png"][0],
                "segments_info": line["segments"],
            }
            for line in lines
        ],
    }


def check_split(output: str | Path, split: str, command: str) -> dict[str, Any]:
    """Compare the derived files of a split with their checksums; return the manifest.

    Raises:
        InputError: a file is missing or differs; the message names it and the command that makes
            it again.
    """
    output = Path(output)
    hint = f"; make it again: {command}"
    try:
        manifest = read_json(output / f"manifest_{split}.json", missing=f"missing{hint}")
        sums = (output / f"checksums_{split}.txt").read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{error.filename}: missing{hint}") from None
    digest = manifest.get("checksums_sha256") if isinstance(manifest, dict) else None
    if hashlib.sha256(sums).hexdigest() != digest:
        raise InputError(
            f"{output / f'checksums_{split}.txt'}: not the list that was written{hint}"
        )
    for line in progress(sums.decode().splitlines(), desc=f"check {split}", unit="file"):
        digest, name = line.split("  ", 1)
        path = output / name
        if not path.exists():
            raise InputError(f"{path}: missing{hint} --force")
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise InputError(f"{path}: its SHA-256 is not that of the checksums{hint} --force")
    return manifest
