# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Registry of instance heads."""

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import nn

INSTANCE_HEAD_REGISTRY = Registry("INSTANCE_HEAD")
INSTANCE_HEAD_REGISTRY.__doc__ = """
Instance heads: modules called with (probabilities (C, H, W), image (3, H, W), InstanceLabels) that
return label scores (L, H, W), with a method ``project()`` that is called before each training
batch. Made from a config by their name, MODEL.INSTANCE_HEAD.NAME.
"""


def build_instance_head(cfg: CfgNode) -> nn.Module:
    """Build the head named by MODEL.INSTANCE_HEAD.NAME."""
    return INSTANCE_HEAD_REGISTRY.get(cfg.MODEL.INSTANCE_HEAD.NAME)(cfg)
