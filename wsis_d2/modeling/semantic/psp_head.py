# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The pyramid scene parsing head and its auxiliary classifier."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.layers.batch_norm import NaiveSyncBatchNorm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from detectron2.utils import comm
from fvcore.nn.weight_init import c2_msra_fill
from torch import nn

from wsis_d2.modeling.semantic.head import SemanticHead
from wsis_d2.utils.errors import InputError


class PyramidPooling(nn.Module):
    """Pool a feature map to several grids, reduce, upsample and append to the map.

    Args:
        in_channels: channels of the feature map.
        bins: grid sizes.
        out_channels: channels each grid is reduced to.
        norm: a norm's name or a callable.
    """

    def __init__(self, in_channels: int, bins: Sequence[int], out_channels: int, norm: str) -> None:
        super().__init__()
        self.bins = list(bins)
        self.convs = nn.ModuleList(
            Conv2d(
                in_channels, out_channels, 1, bias=False,
                norm=get_norm(norm, out_channels), activation=F.relu,
            )
            for _ in bins
        )  # fmt: skip
        for conv in self.convs:
            c2_msra_fill(conv)
        self.out_channels = in_channels + out_channels * len(self.bins)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in_channels, h, w) to (N, in_channels + bins * out_channels, h, w)."""
        if self.training and len(x) == 1 and 1 in self.bins and _learns(self.convs[0].norm):
            raise InputError(
                "MODEL.SEM_SEG_HEAD.NORM: batch norm over a single value; train with at least two "
                "images a process (SOLVER.IMS_PER_BATCH), or use GN or FrozenBN"
            )
        parts = [x]
        for size, conv in zip(self.bins, self.convs, strict=True):
            pooled = conv(F.adaptive_avg_pool2d(x, size))
            parts.append(
                F.interpolate(pooled, size=x.shape[-2:], mode="bilinear", align_corners=True)
            )
        return torch.cat(parts, dim=1)


@SEM_SEG_HEADS_REGISTRY.register()
class PSPHead(SemanticHead):
    """Pyramid pooling, a 3x3 convolution and a classifier (PSPNet, after paper 4.1).

    Trained with the loss of :class:`SemanticHead`, and the same of an auxiliary classifier on an
    earlier stage.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        in_feature: str,
        num_classes: int,
        ignore_value: int,
        ppm_dim: int,
        conv_dim: int,
        norm: str,
        bins: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
        aux_feature: str = "res4",
        aux_dim: int = 256,
        aux_loss_weight: float = 0.4,
        loss_weight: float = 1.0,
    ) -> None:
        """
        Args:
            input_shape: shapes of the backbone's features.
            in_feature: the feature that is pooled.
            num_classes: number of classes C.
            ignore_value: label of pixels without a class.
            ppm_dim: channels of each grid of the pyramid pooling.
            conv_dim: channels before the classifier.
            norm: norm of every new layer.
            bins: sizes of the grids.
            dropout: share of channels dropped before the classifier.
            aux_feature, aux_dim, aux_loss_weight: the auxiliary classifier's feature, channels (0:
                there is none) and weight.
            loss_weight: weight of the main loss.
        """
        super().__init__()
        self.in_feature = in_feature
        self.num_classes = num_classes
        self.ignore_value = ignore_value
        self.loss_weight = loss_weight
        self.aux_feature = aux_feature
        self.aux_loss_weight = aux_loss_weight
        self.aux_dim = aux_dim
        self.stride = input_shape[in_feature].stride
        self.ppm = PyramidPooling(input_shape[in_feature].channels, bins, ppm_dim, norm)
        self.conv = _conv3(self.ppm.out_channels, conv_dim, norm)
        self.dropout = nn.Dropout2d(dropout)
        self.predictor = _classifier(conv_dim, num_classes)
        if aux_dim > 0:
            if aux_feature not in input_shape:
                raise InputError(
                    f"MODEL.SEM_SEG_HEAD.AUX_DIM is {aux_dim}, and the auxiliary classifier reads "
                    f"{aux_feature}; the backbone gives {', '.join(input_shape)}; set 0 for none"
                )
            self.aux_conv = _conv3(input_shape[aux_feature].channels, aux_dim, norm)
            self.aux_predictor = _classifier(aux_dim, num_classes)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": input_shape,
            "in_feature": head.IN_FEATURES[0],
            "num_classes": head.NUM_CLASSES,
            "ignore_value": head.IGNORE_VALUE,
            "ppm_dim": head.PPM_DIM,
            "conv_dim": head.CONVS_DIM,
            "norm": head.NORM,
            "aux_dim": head.AUX_DIM,
            "loss_weight": head.LOSS_WEIGHT,
        }

    def forward(
        self, features: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Classify each cell of the feature map.

        Args:
            features: the backbone's features.

        Returns:
            (N, C, h, w) logits, and those of the auxiliary classifier while training (else None).
        """
        x = self.conv(self.ppm(features[self.in_feature]))
        logits = self.predictor(self.dropout(x))
        if not self.training or self.aux_dim == 0:
            return logits, None
        return logits, self.aux_predictor(self.dropout(self.aux_conv(features[self.aux_feature])))


def _learns(norm: nn.Module | None) -> bool:
    """Whether a norm takes statistics of this process's batch alone."""
    if isinstance(norm, nn.SyncBatchNorm | NaiveSyncBatchNorm) and comm.get_world_size() > 1:
        return False
    return isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.training


def _conv3(inputs: int, outputs: int, norm: str) -> Conv2d:
    conv = Conv2d(
        inputs, outputs, 3, padding=1, bias=False, norm=get_norm(norm, outputs), activation=F.relu
    )
    c2_msra_fill(conv)
    return conv


def _classifier(inputs: int, classes: int) -> Conv2d:
    conv = Conv2d(inputs, classes, 1)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.bias)
    return conv
