# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The model that predicts labels: its config and its weights."""

import os

from detectron2.config import CfgNode
from torch import nn

from wsis_d2.checkpoint.parts import load_trained
from wsis_d2.modeling.build import build_model
from wsis_d2.structures.stages import stage_of
from wsis_d2.utils.errors import InputError


def prediction_config(cfg: CfgNode) -> CfgNode:
    """Return the config of the model that predicts: the semantic subnetwork alone where it can."""
    cfg = cfg.clone()
    cfg.defrost()
    stage = stage_of(cfg)
    if stage.parts:
        if "semantic" not in stage.parts:
            raise InputError(
                f"MODEL.WSIS.STAGE is {stage.name!r}, which predicts no semantics; iterate with "
                "'semantic', 'instance_piecewise' or 'end_to_end'"
            )
        cfg.MODEL.WSIS.STAGE = "semantic"
        cfg.TEST.AUG.ENABLED = False  # REFINE.SCALES and FLIP say what labels are averaged over
    cfg.freeze()
    return cfg


def load_predictor(cfg: CfgNode, weights: str | os.PathLike) -> nn.Module:
    """Build the predicting model of :func:`prediction_config` and load a trained checkpoint."""
    model = build_model(cfg)
    load_trained(model, os.fspath(weights), key="the round's checkpoint")
    return model.eval()
