# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Mask R-CNN's mask head, for masks of which some pixels are unknown.

Addition, not in the paper.
"""

import torch
from detectron2.modeling.roi_heads.mask_head import (
    ROI_MASK_HEAD_REGISTRY,
    MaskRCNNConvUpsampleHead,
    mask_rcnn_inference,
)
from detectron2.structures import Instances
from torch.nn import functional


@ROI_MASK_HEAD_REGISTRY.register()
class IgnoringMaskHead(MaskRCNNConvUpsampleHead):
    """``MaskRCNNConvUpsampleHead`` whose loss leaves out the pixels in ``gt_ignore``.

    ``MODEL.ROI_MASK_HEAD.NAME "IgnoringMaskHead"``; weights are those of the stock head. Without
    ``gt_ignore`` it is the stock head, but for the training accuracies that it does not log.
    """

    def forward(
        self, x: torch.Tensor, instances: list[Instances]
    ) -> dict[str, torch.Tensor] | list[Instances]:
        """See Detectron2's ``BaseMaskRCNNHead.forward``."""
        x = self.layers(x)
        if self.training:
            return {"loss_mask": mask_loss(x, instances) * self.loss_weight}
        mask_rcnn_inference(x, instances)
        return instances


def mask_loss(logits: torch.Tensor, instances: list[Instances]) -> torch.Tensor:
    """Return the binary cross entropy over the known pixels, a mean over all of them.

    Args:
        logits: (B, C, M, M), or (B, 1, M, M) class-agnostic, of all proposals of the batch.
        instances: per image, with ``proposal_boxes``, ``gt_classes``, ``gt_masks`` and, bit masks
            too, ``gt_ignore`` (without it all pixels are known).
    """
    side = logits.shape[-1]
    masks, known, classes = [], [], []
    for one in instances:
        if not len(one):
            continue
        boxes = one.proposal_boxes.tensor
        masks.append(one.gt_masks.crop_and_resize(boxes, side).to(logits.device))
        if one.has("gt_ignore"):
            known.append(~one.gt_ignore.crop_and_resize(boxes, side).to(logits.device))
        else:
            known.append(torch.ones_like(masks[-1], dtype=torch.bool))
        classes.append(one.gt_classes)
    if not masks:
        return logits.sum() * 0
    if logits.shape[1] == 1:
        chosen = logits[:, 0]
    else:
        chosen = logits[torch.arange(len(logits), device=logits.device), torch.cat(classes)]
    target, counted = torch.cat(masks).to(chosen.dtype), torch.cat(known)
    losses = functional.binary_cross_entropy_with_logits(chosen, target, reduction="none")
    return (losses * counted).sum() / counted.sum().clamp(min=1)
