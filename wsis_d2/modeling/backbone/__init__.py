# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Residual networks of any depth, width and dilation."""

from wsis_d2.modeling.backbone.resnet import (
    DilatedBasicBlock,
    build_dilated_resnet_backbone,
    build_resnet_any_backbone,
    build_resnet_any_fpn_backbone,
    build_semantic_backbone,
)

__all__ = [
    "DilatedBasicBlock",
    "build_dilated_resnet_backbone",
    "build_resnet_any_backbone",
    "build_resnet_any_fpn_backbone",
    "build_semantic_backbone",
]
