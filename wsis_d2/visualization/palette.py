# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Colours of classes: a dataset's own, or a colour-blind-safe set told apart by patterns too."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from wsis_d2.structures.classes import default_color

IGNORE_COLOR = (120, 120, 120)
IGNORE_PATTERN = "cross"

# Okabe and Ito's eight colours, distinguishable in the common kinds of colour blindness.
SAFE_COLORS = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (213, 94, 0),
    (240, 228, 66),
    (60, 60, 60),
)
PATTERNS = ("solid", "slash", "dots", "backslash", "horizontal", "vertical")


@lru_cache(maxsize=64)
def pattern_mask(name: str, height: int, width: int, period: int = 10) -> np.ndarray:
    """Return where a pattern is inked.

    Args:
        name: one of :data:`PATTERNS` or ``"cross"`` (kept for ignored pixels).
        height, width: size of the mask.
        period: distance of two lines or dots in pixels.

    Returns:
        bool (height, width); kept for the next call, so not to be written to.

    Raises:
        KeyError: an unknown pattern.
    """
    y, x = np.ogrid[0:height, 0:width]
    line = max(2, period // 4)
    if name == "solid":
        return np.zeros((height, width), bool)
    if name == "slash":
        return (x + y) % period < line
    if name == "backslash":
        return (x - y) % period < line
    if name == "horizontal":
        return np.broadcast_to(y % period < line, (height, width))
    if name == "vertical":
        return np.broadcast_to(x % period < line, (height, width))
    if name == "dots":
        dot = max(2, period // 2)
        return ((x % period) < dot) & ((y % period) < dot)
    if name == "cross":
        return ((x + y) % period < line) | ((x - y) % period < line)
    raise KeyError(f"unknown pattern {name!r}, expected one of {(*PATTERNS, 'cross')}")


def safe_style(class_id: int) -> tuple[tuple[int, int, int], str]:
    """Return the colour-blind-safe (RGB, pattern name) of a class; the first 48 ids all differ."""
    color = class_id % len(SAFE_COLORS)
    pattern = (color + class_id // len(SAFE_COLORS)) % len(PATTERNS)
    return SAFE_COLORS[color], PATTERNS[pattern]


def class_list(categories: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return categories in the order of their unified ids with every field a drawing needs.

    Args:
        categories: category dicts with ``id``, ``name``, and optionally ``isthing`` (default 1)
            and ``color`` (RGB).

    Returns:
        One dict a class, sorted by ``id``: ``id`` (the file's), ``name``, ``isthing`` (bool) and
        ``color`` (RGB list). The position in the list is the unified class id.
    """
    ordered = sorted(categories, key=lambda category: category["id"])
    return [
        {
            "id": category["id"],
            "name": str(category.get("name", category["id"])),
            "isthing": bool(category.get("isthing", 1)),
            "color": [int(c) for c in (category.get("color") or default_color(index))],
        }
        for index, category in enumerate(ordered)
    ]


def metadata_classes(metadata: Any) -> list[dict[str, Any]]:
    """Return :func:`class_list` of a registered dataset's Detectron2 metadata."""
    if metadata.get("categories"):
        return class_list(metadata.categories)
    names = metadata.get("stuff_classes") or metadata.get("thing_classes") or []
    colors = (
        metadata.get("stuff_colors")
        or metadata.get("thing_colors")
        or [default_color(index) for index in range(len(names))]
    )
    things = set(metadata.get("thing_ids", []))
    return [
        {"id": index, "name": name, "isthing": index in things, "color": list(colors[index])}
        for index, name in enumerate(names)
    ]
