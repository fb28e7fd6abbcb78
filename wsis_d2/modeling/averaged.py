# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""A semantic prediction averaged over sizes and the mirror image of a photograph.

Addition, not in the paper, which evaluates at a single scale (4.3).
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from wsis_d2.modeling.meta_arch import WeakPanopticRCNN
from wsis_d2.modeling.semantic.inference import in_groups
from wsis_d2.utils.errors import InputError


def averaged_semantics(
    model: nn.Module,
    samples: Sequence[Mapping],
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> list[torch.Tensor]:
    """Return the means of a model's class probabilities over sizes and mirror images.

    Larger images give a network of stride 8 finer outlines, which is what labels made of its
    prediction need.

    Args:
        model: in evaluation mode; gives ``sem_seg`` (C, H, W) probabilities in the sample's size.
        samples: of each photograph ``image`` (3, h, w) and what else the model reads.
        scales: factors of h and w, above 0.
        flip: also average over the mirror image.

    Returns:
        (C, H, W) float32 each.

    Raises:
        InputError: the model gives no ``sem_seg``.
    """
    totals: list[torch.Tensor] = []
    for scale in scales:
        views = [_scaled(sample["image"], scale) for sample in samples]
        if flip:
            views += [view.flip(-1).contiguous() for view in views]
        inputs = [
            {**sample, "image": view}
            for sample, view in zip([*samples] * (2 if flip else 1), views, strict=True)
        ]
        found = _predicted(model, inputs)
        if flip:
            plain, mirrored = found[: len(samples)], found[len(samples) :]
            found = [a + b.flip(-1) for a, b in zip(plain, mirrored, strict=True)]
        totals = [a + b for a, b in zip(totals, found, strict=True)] if totals else found
    return [total / (len(scales) * (2 if flip else 1)) for total in totals]


def _scaled(image: torch.Tensor, scale: float) -> torch.Tensor:
    if scale == 1:
        return image
    size = [max(1, round(side * scale)) for side in image.shape[-2:]]
    return F.interpolate(
        image[None].float(), size=size, mode="bilinear", align_corners=False, antialias=scale < 1
    )[0]


def _predicted(model: nn.Module, inputs: list[dict]) -> list[torch.Tensor]:
    """Return the model's ``sem_seg`` of each input."""

    def size(sample: Mapping) -> tuple[int, ...]:
        return tuple(sample["image"].shape[-2:])

    if isinstance(model, WeakPanopticRCNN):
        outputs = model(inputs)  # which groups its images, and bounds the groups, itself
    else:  # Detectron2's own pad a batch to its largest image, which would reach the others
        outputs = in_groups(inputs, size, model, len(inputs))
    if any("sem_seg" not in output for output in outputs):
        raise InputError(
            "MODEL.WSIS.STAGE: this model gives no sem_seg; labels come from a semantic or an "
            "instance stage"
        )
    return [output["sem_seg"].float() for output in outputs]
