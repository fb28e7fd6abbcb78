# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The permutation-free instance loss (paper 3.5)."""

import torch
import torch.nn.functional as F

from wsis_d2.modeling.instance.labels import InstanceLabels
from wsis_d2.modeling.instance.matching import match_instances, to_matched_labels
from wsis_d2.structures.labels import INSTANCE_IGNORE


def instance_loss(
    scores: torch.Tensor,
    labels: InstanceLabels,
    inst_seg: torch.Tensor,
    inst_classes: torch.Tensor,
    box_weight: float = 1e-3,
) -> torch.Tensor:
    """Mean cross entropy of an image against its ground truth, matched to the prediction.

    Args:
        scores: (L, H, W), the instance head's output.
        labels: the L labels.
        inst_seg: (H, W) int64, index into ``inst_classes``, -1 ignore.
        inst_classes: (G,) int64, unified class ids.
        box_weight: see :func:`match_instances`.

    Returns:
        A scalar; 0 with a graph where no pixel has a matched instance.
    """
    if len(labels) == 0:
        return scores.sum() * 0.0
    prediction = scores.detach().argmax(dim=0)
    assignment = match_instances(inst_seg, inst_classes, prediction, labels, box_weight)
    target = to_matched_labels(inst_seg, assignment)
    total = F.cross_entropy(
        scores[None], target[None], reduction="sum", ignore_index=INSTANCE_IGNORE
    )
    return total / (target != INSTANCE_IGNORE).sum().clamp(min=1)
