# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Checks of what the CRF operators are given."""

import math
from collections.abc import Sequence

import torch

from wsis_d2.utils.errors import InputError

NORMALIZATIONS = ("after", "symmetric")
SPATIAL = ("auto", "exact")
BACKENDS = ("auto", "native", "exact")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_image(image: torch.Tensor, height: int | None = None, width: int | None = None) -> None:
    """Raise InputError unless ``image`` is (3, H, W), uint8 or floating, and not empty."""
    if not isinstance(image, torch.Tensor):
        raise InputError(f"image: expected a tensor (3, H, W), found {type(image).__name__}.")
    if image.dim() != 3 or image.shape[0] != 3:
        raise InputError(f"image: expected shape (3, H, W), found {tuple(image.shape)}.")
    if image.shape[1] == 0 or image.shape[2] == 0:
        raise InputError(f"image: it is empty, shape {tuple(image.shape)}.")
    if height is not None and (image.shape[1], image.shape[2]) != (height, width):
        raise InputError(
            f"image: its size {tuple(image.shape[1:])} is not that of scores, {(height, width)}."
        )
    if image.dtype != torch.uint8 and image.dtype not in FLOATS:
        raise InputError(f"image: expected uint8 or a floating dtype, found {image.dtype}.")
    if image.requires_grad:
        raise InputError(
            "image: it requires grad, but the CRF gives the image no gradient; pass image.detach()."
        )


def check_scores(scores: torch.Tensor, name: str = "scores") -> None:
    """Raise InputError unless ``scores`` is (L, H, W), floating, with L, H, W >= 1."""
    if not isinstance(scores, torch.Tensor):
        raise InputError(f"{name}: expected a tensor (L, H, W), found {type(scores).__name__}.")
    if scores.dim() != 3:
        raise InputError(f"{name}: expected shape (L, H, W), found {tuple(scores.shape)}.")
    if scores.shape[0] == 0:
        raise InputError(f"{name}: there are no labels, shape {tuple(scores.shape)}; L >= 1.")
    if scores.shape[1] == 0 or scores.shape[2] == 0:
        raise InputError(f"{name}: it is empty, shape {tuple(scores.shape)}.")
    if scores.dtype not in FLOATS:
        raise InputError(f"{name}: expected a floating dtype, found {scores.dtype}.")


def check_positive(name: str, value: float) -> float:
    """Return ``value`` as a float; raise InputError unless it is a finite positive number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{name}: expected a positive number, found {value!r}.") from None
    if not 0 < number < math.inf:
        raise InputError(f"{name}: expected a finite number above 0, found {number}.")
    return number


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raise InputError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise InputError(f"{name}: found {value!r}, allowed are {', '.join(map(repr, allowed))}.")
