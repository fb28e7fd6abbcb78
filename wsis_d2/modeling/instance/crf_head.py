# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The instance subnetwork: a dense CRF over detections and stuff classes (paper 3.5)."""

import torch
from detectron2.config import CfgNode, configurable
from torch import nn

from wsis_d2.layers import CRFParameters, mean_field
from wsis_d2.modeling.instance.build import INSTANCE_HEAD_REGISTRY
from wsis_d2.modeling.instance.labels import InstanceLabels
from wsis_d2.modeling.instance.unaries import unary_scores


@INSTANCE_HEAD_REGISTRY.register()
class InstanceCRFHead(nn.Module):
    """Gives every pixel one of L labels by mean-field inference in a dense CRF.

    Learned: the weights w1, w2 >= 0 of the two unary terms and one weight for each Gaussian
    kernel. The compatibility is Potts and fixed. The number of labels differs from image to image.
    """

    @configurable
    def __init__(
        self,
        *,
        box_weight: float = 1.0,
        global_weight: float = 1.0,
        box_score: str = "raw",
        epsilon: float = 1e-8,
        crf: CRFParameters = CRFParameters(),  # noqa: B008
    ) -> None:
        """
        Args:
            box_weight, global_weight: w1 and w2 at the start.
            box_score: "raw" or "sigmoid", see :func:`~wsis_d2.modeling.instance.unaries.box_term`.
            epsilon: inside the unary's logarithm.
            crf: its parameters, the kernels' weights at the start; 0 iterations return the unary
                scores.
        """
        super().__init__()
        self.box_weight = nn.Parameter(torch.tensor(float(box_weight)))
        self.global_weight = nn.Parameter(torch.tensor(float(global_weight)))
        self.bilateral_weight = nn.Parameter(torch.tensor(float(crf.bilateral_weight)))
        self.gaussian_weight = nn.Parameter(torch.tensor(float(crf.gaussian_weight)))
        self.box_score = box_score
        self.epsilon = epsilon
        self.crf = crf

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        head = cfg.MODEL.INSTANCE_HEAD
        return {
            "box_score": head.BOX_SCORE,
            "crf": CRFParameters(**CRFParameters.config_values(head)),
        }

    @torch.no_grad()
    def project(self) -> None:
        """Set w1 and w2 back to 0 where a step has left them below; before each training batch."""
        self.box_weight.clamp_(min=0)
        self.global_weight.clamp_(min=0)

    def forward(
        self, probabilities: torch.Tensor, image: torch.Tensor, labels: InstanceLabels
    ) -> torch.Tensor:
        """Score every label at every pixel.

        Args:
            probabilities: (C, H, W), the semantic subnetwork's Q.
            image: (3, H, W), 0 to 255; no gradient flows to it.
            labels: L labels, L >= 1.

        Returns:
            (L, H, W) float32, the last mean-field update, not normalised; with gradients to the
            probabilities and the four weights.
        """
        scores = unary_scores(
            probabilities, labels, self.box_weight, self.global_weight,
            epsilon=self.epsilon, box_score=self.box_score,
        )  # fmt: skip
        if self.crf.iterations == 0:
            return scores
        parameters = self.crf.keywords(
            bilateral_weight=self.bilateral_weight, gaussian_weight=self.gaussian_weight
        )
        return mean_field(scores, image.detach().float(), normalization="after", **parameters)
