# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Predicted class probabilities to labels, refined by a dense CRF first (paper 3.4)."""

import dataclasses

import numpy as np
import torch

from wsis_d2.layers import dense_crf_refine


@dataclasses.dataclass(frozen=True)
class RefineOptions:
    """The dense CRF before cleaning; the defaults are DeepLab's.

    Attributes:
        enabled: off, the labels are the most probable classes as predicted.
        bilateral_weight, bilateral_xy, bilateral_rgb: weight of the appearance kernel and its
            deviations in pixels and colour steps.
        gaussian_weight, gaussian_xy: the same of the smoothness kernel.
        iterations: mean-field iterations.
        backend: see :func:`wsis_d2.layers.dense_crf_refine`.
    """

    enabled: bool = True
    bilateral_weight: float = 4.0
    bilateral_xy: float = 49.0
    bilateral_rgb: float = 5.0
    gaussian_weight: float = 3.0
    gaussian_xy: float = 3.0
    iterations: int = 10
    backend: str = "auto"

    @classmethod
    def from_config(cls, cfg) -> "RefineOptions":
        """Read the ``REFINE`` section."""
        own = cfg.REFINE
        return cls(
            enabled=own.ENABLED,
            bilateral_weight=own.BILATERAL_WEIGHT,
            bilateral_xy=own.BILATERAL_XY,
            bilateral_rgb=own.BILATERAL_RGB,
            gaussian_weight=own.GAUSSIAN_WEIGHT,
            gaussian_xy=own.GAUSSIAN_XY,
            iterations=own.ITERATIONS,
            backend=own.BACKEND,
        )


def labels_from_probabilities(
    probabilities: torch.Tensor, image: np.ndarray, options: RefineOptions
) -> tuple[np.ndarray, np.ndarray]:
    """Return each pixel's label and the label's probability, after refinement if that is on.

    Args:
        probabilities: (C, H, W) float, at most 255 classes.
        image: (H, W, 3) uint8, the photograph; the order of its channels does not matter.
        options: see :class:`RefineOptions`.

    Returns:
        (H, W) uint8 labels and (H, W) float32 probabilities in [0, 1].

    Raises:
        ValueError: shapes that do not fit.
    """
    if probabilities.dim() != 3 or probabilities.shape[0] > 255:
        raise ValueError(
            f"probabilities: shape {tuple(probabilities.shape)}, expected (at most 255, H, W)"
        )
    if image.shape != (*probabilities.shape[1:], 3):
        raise ValueError(
            f"image: shape {image.shape}, probabilities have {tuple(probabilities.shape[1:])}"
        )
    if options.enabled:
        arguments = dataclasses.asdict(options)
        del arguments["enabled"]
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        probabilities = dense_crf_refine(
            probabilities.float(), pixels.to(probabilities.device), **arguments
        )
    scores, labels = probabilities.float().max(dim=0)
    return labels.cpu().numpy().astype(np.uint8), scores.clamp(0, 1).cpu().numpy()
