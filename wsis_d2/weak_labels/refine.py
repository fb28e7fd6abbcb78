# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Predicted class probabilities to labels, refined by a dense CRF first (paper 3.4)."""

import dataclasses

import numpy as np
import torch
from yacs.config import CfgNode

from wsis_d2.layers import CRFParameters, dense_crf_refine
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.image_io import image_tensor
from wsis_d2.weak_labels.appearance import check_weight, weigh_by_appearance

# A probability of 0 that can still be divided.
_TINY = 1e-30


@dataclasses.dataclass(frozen=True)
class RefineOptions(CRFParameters):
    """The dense CRF before cleaning; the defaults of its parameters are DeepLab's.

    Attributes:
        enabled: off, the labels are the most probable classes as predicted.
        backend: see :func:`wsis_d2.layers.dense_crf_refine`.
        within_annotation: before the CRF, leave out the classes that tags and boxes rule out, so
            that a pixel takes the most probable class that it can have. Cleaning alone, as in the
            paper, deletes such a pixel's label after it has spread to its neighbours.
        class_balance, reliability_power: see
            :func:`wsis_d2.weak_labels.label_prior.class_factors`.
        appearance_weight: power of what each class looks like in the image itself, before the CRF;
            see :func:`wsis_d2.weak_labels.appearance.weigh_by_appearance`; 0: off.
    """

    iterations: int = 10
    enabled: bool = True
    backend: str = "auto"
    within_annotation: bool = False
    class_balance: float = 0.0
    appearance_weight: float = 0.0
    reliability_power: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weight(self.appearance_weight, "REFINE.APPEARANCE_WEIGHT")
        if self.class_balance < 0:
            raise InputError(
                f"REFINE.CLASS_BALANCE is {self.class_balance}, expected 0 (off) or more"
            )
        if self.reliability_power < 0:
            raise InputError(
                f"REFINE.RELIABILITY_POWER is {self.reliability_power}, expected 0 (off) or more"
            )

    @property
    def uses_prior(self) -> bool:
        """Whether earlier labels weigh the probabilities."""
        return self.class_balance > 0 or self.reliability_power > 0

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "RefineOptions":
        """Read the ``REFINE`` section."""
        own = cfg.REFINE
        return cls(
            enabled=own.ENABLED,
            **cls.config_values(own),
            within_annotation=own.WITHIN_ANNOTATION,
            class_balance=own.CLASS_BALANCE,
            appearance_weight=own.APPEARANCE_WEIGHT,
            reliability_power=own.RELIABILITY_POWER,
        )


def labels_from_probabilities(
    probabilities: torch.Tensor,
    image: np.ndarray,
    options: RefineOptions,
    possible: np.ndarray | None = None,
    factors: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return each pixel's label and the label's probability, after refinement if that is on.

    Args:
        probabilities: (C, H, W) float, at most 255 classes.
        image: (H, W, 3) uint8, the photograph; the order of its channels matters to
            ``appearance_weight`` alone.
        options: see :class:`RefineOptions`.
        possible: (C, H, W) bool, the classes that a pixel can have; the probability of the others
            goes to these. A pixel that can have none keeps its probabilities. None: all.
        factors: (C,) float32 above 0 that the probabilities are multiplied by, for sums of 1
            again; None: as they are.

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
    if possible is not None and possible.shape != tuple(probabilities.shape):
        raise ValueError(
            f"possible: shape {possible.shape}, probabilities have {tuple(probabilities.shape)}"
        )
    if factors is not None:
        if factors.shape != probabilities.shape[:1]:
            raise ValueError(f"factors: shape {factors.shape}, {len(probabilities)} classes")
        by_class = torch.from_numpy(factors).to(probabilities.device)[:, None, None]
        weighed = probabilities.float() * by_class
        probabilities = weighed / weighed.sum(dim=0, keepdim=True).clamp_min(_TINY)
    if possible is not None:
        mask = torch.from_numpy(possible).to(probabilities.device)
        mask = mask | ~mask.any(dim=0)
        probabilities = _restrict(probabilities, mask)
    if options.appearance_weight:
        weighed = weigh_by_appearance(
            probabilities.float().cpu().numpy(), image, options.appearance_weight
        )
        probabilities = torch.from_numpy(weighed).to(probabilities.device)
    if options.enabled:
        pixels = image_tensor(image)
        probabilities = dense_crf_refine(
            probabilities.float(),
            pixels.to(probabilities.device),
            options,
            backend=options.backend,
        )
        if possible is not None:  # strong neighbours lift what had no probability
            probabilities = _restrict(probabilities, mask)
    scores, labels = probabilities.float().max(dim=0)
    return labels.cpu().numpy().astype(np.uint8), scores.clamp(0, 1).cpu().numpy()


def _restrict(probabilities: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Set what the mask leaves out to 0 and bring the sums to 1; equal shares where all is 0."""
    left = probabilities.float().clamp_min(_TINY) * mask
    return left / left.sum(dim=0, keepdim=True)
