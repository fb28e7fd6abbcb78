# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""What labels depend on: recipe, classes and annotation, as hashes that tell stale ones apart."""

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any

import numpy as np

from wsis_d2.utils.json_io import flatten

_VERSIONED = ("wsis_d2", "numpy", "opencv-python-headless", "higra", "numba", "torch")


def recipe_hash(recipe: Mapping, categories: Iterable[Mapping]) -> str:
    """Return the SHA-256 (hex) of what the labels depend on: the recipe and the classes."""
    classes = [[c["id"], c["name"], int(c.get("isthing", 1))] for c in categories]
    text = json.dumps({"recipe": recipe, "classes": classes}, sort_keys=True, default=plain_value)
    return hashlib.sha256(text.encode()).hexdigest()


def annotation_digest(record: Mapping) -> str:
    """Return a short hash of a weak record's annotation: size, boxes, classes, tags, marks.

    Where the image lies on disk does not count, so a moved dataset keeps its labels.
    """
    boxes = [
        [float(v) for v in a["bbox"]]
        + [int(a.get("bbox_mode", 0)), int(a["category_id"]), int(a.get("iscrowd", 0))]
        for a in record.get("annotations", [])
    ]
    crops = [
        [[float(v) for v in c["box"]], sorted(int(t) for t in c["tags"])]
        for c in record.get("crop_tags") or []
    ]
    parts = [
        int(record["height"]),
        int(record["width"]),
        boxes,
        sorted(int(t) for t in record.get("image_tags") or []),
        crops,
    ]
    marks = [
        [place, key, annotation[key]]
        for place, annotation in enumerate(record.get("annotations", ()))
        for key in ("points", "scribbles")
        if annotation.get(key)
    ]
    classes = [[key, record[key]] for key in ("points", "scribbles", "unboxed") if record.get(key)]
    if marks or classes:  # labels made before there were any stay valid
        parts.append([marks, classes])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def as_json(recipe: Mapping, categories: list[dict]) -> tuple[dict, list[dict]]:
    """Return both as they will come back from a file; the categories by ascending id."""
    plain = json.loads(json.dumps(recipe, default=plain_value))
    categories = json.loads(json.dumps(categories, default=plain_value))
    return plain, sorted(categories, key=lambda c: c["id"])


def recipe_differences(held: dict, recipe: dict, categories: list[dict]) -> list[str]:
    """Name the keys in which a stored recipe and a wanted one differ."""
    before, after = flatten(held["recipe"]), flatten(recipe)
    keys = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
    listed = [f"{k}: {before.get(k)!r} there, {after.get(k)!r} asked for" for k in keys]
    if recipe_hash({}, held["categories"]) != recipe_hash({}, categories):
        listed.append("the classes")
    return listed


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that labels are made with."""
    versions = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def plain_value(value: Any) -> Any:
    """Turn NumPy numbers, tuples, sets and paths into JSON values."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"no JSON value: {value!r}")
