# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The kinds of runs: a stage of the network, a model of tags, or another project's model."""

from detectron2.config import CfgNode

from wsis_d2.structures.stages import STAGES, stage_of

PANOPTIC = tuple(STAGES)
TAGS = ("TagClassifier", "TagSegmenter")
OWN = (*PANOPTIC, *TAGS)


def kind_of(cfg: CfgNode) -> str:
    """Return the stage of a WeakPanopticRCNN, else the meta-architecture."""
    return stage_of(cfg).name or cfg.MODEL.META_ARCHITECTURE
