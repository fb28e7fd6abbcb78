# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Box term, global term and their sum (paper eq. 2 to 4)."""

import torch

from wsis_d2.modeling.instance.labels import InstanceLabels, box_masks


def box_term(
    probabilities: torch.Tensor, labels: InstanceLabels, box_score: str = "raw"
) -> torch.Tensor:
    """Score times class probability inside a label's box, 0 outside (paper eq. 3).

    Args:
        probabilities: (C, H, W), the Q of the paper.
        labels: L labels.
        box_score: "raw" scales by the score s, "sigmoid" by sigmoid(2s - 1).

    Returns:
        (L, H, W).

    Raises:
        ValueError: an unknown ``box_score``.
    """
    if box_score == "raw":
        scores = labels.scores
    elif box_score == "sigmoid":
        scores = torch.sigmoid(2 * labels.scores - 1)
    else:
        raise ValueError(
            f"MODEL.INSTANCE_HEAD.BOX_SCORE is {box_score!r}, expected 'raw' or 'sigmoid'"
        )
    inside = box_masks(labels.boxes, probabilities.shape[-2:])
    return probabilities[labels.classes] * (scores[:, None, None] * inside)


def global_term(probabilities: torch.Tensor, labels: InstanceLabels) -> torch.Tensor:
    """Class probability everywhere (paper eq. 4); (C, H, W) to (L, H, W)."""
    return probabilities[labels.classes]


def unary_scores(
    probabilities: torch.Tensor,
    labels: InstanceLabels,
    box_weight: torch.Tensor | float,
    global_weight: torch.Tensor | float,
    *,
    epsilon: float = 1e-8,
    box_score: str = "raw",
) -> torch.Tensor:
    """Return ln(w1 box + w2 global + epsilon), the negative unary energy (paper eq. 2).

    Args:
        probabilities: (C, H, W).
        labels: L labels.
        box_weight, global_weight: w1 and w2, not negative.
        epsilon: keeps the logarithm finite.
        box_score: see :func:`box_term`.

    Returns:
        (L, H, W) float32, with gradients to the probabilities and both weights.
    """
    probabilities = probabilities.float()
    mixed = box_weight * box_term(probabilities, labels, box_score)
    mixed = mixed + global_weight * global_term(probabilities, labels)
    return torch.log(mixed + epsilon)
