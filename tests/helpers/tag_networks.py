# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Networks of tags, small enough for a test."""

from detectron2.config import CfgNode, get_cfg

from wsis_d2.config import add_wsis_config


def plain_config(*opts: object) -> CfgNode:
    """The defaults, with overrides."""
    cfg = get_cfg()
    add_wsis_config(cfg)
    cfg.merge_from_list(list(opts))
    return cfg


def tag_classifier_config(num_classes: int, *opts: object) -> CfgNode:
    """A tag classifier on the second stage of a narrow ResNet-18."""
    cfg = plain_config()
    cfg.MODEL.META_ARCHITECTURE = "TagClassifier"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_any_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3"]
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = num_classes
    cfg.merge_from_list(list(opts))
    return cfg
