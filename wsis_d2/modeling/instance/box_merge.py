# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The baseline without a CRF: each pixel to the best-scored detection of its class covering it.

Addition, not in the paper.
"""

import torch
from detectron2.config import CfgNode, configurable
from torch import nn

from wsis_d2.modeling.instance.build import INSTANCE_HEAD_REGISTRY
from wsis_d2.modeling.instance.labels import InstanceLabels, box_masks


@INSTANCE_HEAD_REGISTRY.register()
class BoxMergeHead(nn.Module):
    """Semantic argmax, then the best-scored detection of that class whose box covers the pixel.

    A pixel whose most probable class is a thing without a covering detection takes the most
    probable class that has a label there. Nothing is learned.
    """

    @configurable
    def __init__(self) -> None:
        super().__init__()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {}

    def project(self) -> None:
        """Nothing to keep in bounds."""

    def forward(
        self, probabilities: torch.Tensor, image: torch.Tensor, labels: InstanceLabels
    ) -> torch.Tensor:
        """Score every label at every pixel.

        Args:
            probabilities: (C, H, W).
            image: not used.
            labels: L labels.

        Returns:
            (L, H, W): the class probability where the label is the best-scored one of its class
            that covers the pixel, -1 elsewhere. The greatest label is the baseline's answer.
        """
        covered = box_masks(labels.boxes, probabilities.shape[-2:])
        # Rank detections within their class; equal scores go to the earlier one.
        order = torch.argsort(labels.scores, descending=True, stable=True)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device)
        best = torch.full_like(probabilities, len(labels), dtype=torch.int64)
        classes = labels.classes.tolist()
        # From the worst to the best, which has rank 0.
        for place, index in reversed(list(enumerate(order.tolist()))):
            best[classes[index]].masked_fill_(covered[index], place)
        wins = best[labels.classes] == rank[:, None, None]
        return torch.where(wins, probabilities[labels.classes].float(), -1.0)
