# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The instance subnetwork: a dense CRF over detections and stuff classes (paper 3.5)."""

import torch
from detectron2.config import CfgNode, configurable
from torch import nn

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
        bilateral_weight: float = 4.0,
        bilateral_xy: float = 49.0,
        bilateral_rgb: float = 5.0,
        gaussian_weight: float = 3.0,
        gaussian_xy: float = 3.0,
        iterations: int = 3,
    ) -> None:
        """
        Args:
            box_weight, global_weight: w1 and w2 at the start.
            box_score: "raw" or "sigmoid", see :func:`~wsis_d2.modeling.instance.unaries.box_term`.
            epsilon: inside the unary's logarithm.
            bilateral_weight, gaussian_weight: of the kernels, at the start.
            bilateral_xy, gaussian_xy: deviations in pixels.
            bilateral_rgb: deviation in colour steps of 0 to 255.
            iterations: of the mean field; 0 returns the unary scores.
        """
        super().__init__()
        self.box_weight = nn.Parameter(torch.tensor(float(box_weight)))
        self.global_weight = nn.Parameter(torch.tensor(float(global_weight)))
        self.bilateral_weight = nn.Parameter(torch.tensor(float(bilateral_weight)))
        self.gaussian_weight = nn.Parameter(torch.tensor(float(gaussian_weight)))
        self.box_score = box_score
        self.epsilon = epsilon
        self.bilateral_xy = bilateral_xy
        self.bilateral_rgb = bilateral_rgb
        self.gaussian_xy = gaussian_xy
        self.iterations = iterations

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        head = cfg.MODEL.INSTANCE_HEAD
        return {
            "box_score": head.BOX_SCORE,
            "bilateral_weight": head.BILATERAL_WEIGHT,
            "bilateral_xy": head.BILATERAL_XY,
            "bilateral_rgb": head.BILATERAL_RGB,
            "gaussian_weight": head.GAUSSIAN_WEIGHT,
            "gaussian_xy": head.GAUSSIAN_XY,
            "iterations": head.ITERATIONS,
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
        if self.iterations == 0:
            return scores
        from wsis_d2.layers import mean_field

        return mean_field(
            scores, image.detach().float(),
            bilateral_weight=self.bilateral_weight, bilateral_xy=self.bilateral_xy,
            bilateral_rgb=self.bilateral_rgb, gaussian_weight=self.gaussian_weight,
            gaussian_xy=self.gaussian_xy, iterations=self.iterations, normalization="after",
        )  # fmt: skip
