# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The dense CRF's six parameters, and checks of its arguments."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from wsis_d2.utils.errors import InputError

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_positive(name: str, value: float) -> float:
    """Return ``value`` as a float; raise InputError unless it is a finite positive number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{name}: expected a positive number, found {value!r}.") from None
    if not 0 < number < math.inf:
        raise InputError(f"{name}: expected a finite number above 0, found {number}.")
    return number


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


def _check_weight(name: str, value: float | torch.Tensor) -> None:
    if isinstance(value, torch.Tensor):
        if value.numel() != 1 or not value.dtype.is_floating_point:
            raise InputError(
                f"{name}: expected one floating number, found shape {tuple(value.shape)}, "
                f"dtype {value.dtype}."
            )
    elif not isinstance(value, (int, float)) or not -math.inf < value < math.inf:
        raise InputError(f"{name}: expected a finite number or a tensor, found {value!r}.")


@dataclass(frozen=True)
class CRFParameters:
    """A bilateral and a spatial Gaussian kernel, Potts compatibility, and how often to iterate.

    Attributes:
        bilateral_weight, gaussian_weight: of the kernels' messages; a number or a tensor of one
            element.
        bilateral_xy, gaussian_xy: standard deviations in pixels, above 0.
        bilateral_rgb: standard deviation in colour levels of 0 to 255, above 0.
        iterations: of the mean field; 0 returns the scores.

    Raises:
        InputError: a value out of its range.
    """

    bilateral_weight: float | torch.Tensor = 4.0
    bilateral_xy: float = 49.0
    bilateral_rgb: float = 5.0
    gaussian_weight: float | torch.Tensor = 3.0
    gaussian_xy: float = 3.0
    iterations: int = 3

    def __post_init__(self) -> None:
        for name in ("bilateral_xy", "bilateral_rgb", "gaussian_xy"):
            object.__setattr__(self, name, check_positive(name, getattr(self, name)))
        for name in ("bilateral_weight", "gaussian_weight"):
            _check_weight(name, getattr(self, name))
        if (
            isinstance(self.iterations, bool)
            or not isinstance(self.iterations, int)
            or self.iterations < 0
        ):
            raise InputError(
                f"iterations: expected an integer of at least 0, found {self.iterations!r}."
            )

    @staticmethod
    def config_values(section: Any) -> dict[str, Any]:
        """The six keywords from a config section that has them as BILATERAL_WEIGHT and so on."""
        return {name: getattr(section, name.upper()) for name in PARAMETER_NAMES}

    def keywords(self, **changes: Any) -> dict[str, Any]:
        """The six values by name, as :func:`wsis_d2.layers.mean_field` takes them."""
        return {name: getattr(self, name) for name in PARAMETER_NAMES} | changes


PARAMETER_NAMES = tuple(CRFParameters.__dataclass_fields__)
