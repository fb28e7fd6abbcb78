# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""A semantic prediction averaged over sizes and the mirror image of a photograph.

Addition, not in the paper, which evaluates at a single scale (4.3).
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from wsis_d2.utils.errors import InputError


def averaged_semantics(
    model: nn.Module, sample: Mapping, scales: Sequence[float] = (1.0,), flip: bool = False
) -> torch.Tensor:
    """Return the mean of a model's class probabilities over sizes and mirror images.

    Larger images give a network of stride 8 finer outlines, which is what labels made of its
    prediction need.

    Args:
        model: in evaluation mode; gives ``sem_seg`` (C, H, W) probabilities in the sample's size.
        sample: ``image`` (3, h, w) and what else the model reads.
        scales: factors of h and w, above 0.
        flip: also average over the mirror image.

    Returns:
        (C, H, W) float32.

    Raises:
        InputError: the model gives no ``sem_seg``.
    """
    image = sample["image"]
    total: torch.Tensor | None = None
    for scale in scales:
        resized = image
        if scale != 1:
            size = [max(1, round(side * scale)) for side in image.shape[-2:]]
            resized = F.interpolate(
                image[None].float(), size=size, mode="bilinear", align_corners=False,
                antialias=scale < 1,
            )[0]  # fmt: skip
        views = [resized, resized.flip(-1).contiguous()] if flip else [resized]
        # Both at once: they have one size.
        outputs = model([{**sample, "image": view} for view in views])
        for output, mirrored in zip(outputs, (False, True), strict=False):
            if "sem_seg" not in output:
                raise InputError(
                    "MODEL.WSIS.STAGE: this model gives no sem_seg; labels come from a semantic or "
                    "an instance stage"
                )
            found = output["sem_seg"].float()
            found = found.flip(-1) if mirrored else found
            total = found if total is None else total + found
    return total / (len(scales) * (2 if flip else 1))
