# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Backbones: residual networks of any depth, width and dilation, and all of timm."""

from wsis_d2.modeling.backbone.resnet import (
    DilatedBasicBlock,
    build_pspnet_resnet_backbone,
    build_resnet_any_backbone,
    build_resnet_any_fpn_backbone,
    build_semantic_backbone,
)
from wsis_d2.modeling.backbone.timm import (
    TimmBackbone,
    build_timm_backbone,
    build_timm_fpn_backbone,
)

__all__ = [
    "DilatedBasicBlock",
    "TimmBackbone",
    "build_pspnet_resnet_backbone",
    "build_resnet_any_backbone",
    "build_resnet_any_fpn_backbone",
    "build_semantic_backbone",
    "build_timm_backbone",
    "build_timm_fpn_backbone",
]
