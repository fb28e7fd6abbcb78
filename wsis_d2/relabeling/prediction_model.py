# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The model that predicts labels: its config and its weights."""

import os

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from wsis_d2.checkpoint.checkpointer import load_part
from wsis_d2.utils.errors import InputError


def prediction_config(cfg: CfgNode) -> CfgNode:
    """Return the config of the model that predicts: the semantic subnetwork alone where it can."""
    cfg = cfg.clone()
    cfg.defrost()
    if cfg.MODEL.META_ARCHITECTURE == "WeakPanopticRCNN":
        if cfg.MODEL.WSIS.STAGE == "detector":
            raise InputError(
                "MODEL.WSIS.STAGE is 'detector', which predicts no semantics; iterate with "
                "'semantic', 'instance_piecewise' or 'end_to_end'"
            )
        cfg.MODEL.WSIS.STAGE = "semantic"
    cfg.freeze()
    return cfg


def load_predictor(cfg: CfgNode, weights: str | os.PathLike) -> nn.Module:
    """Build the predicting model of :func:`prediction_config` and load a trained checkpoint."""
    from wsis_d2.engine.trainer import load_weights

    if cfg.MODEL.META_ARCHITECTURE == "WeakPanopticRCNN":
        model = build_model(cfg)
        load_part(model, "semantic", os.fspath(weights), "the round's checkpoint")
    else:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.WEIGHTS = os.fspath(weights)
        model = build_model(cfg)
        load_weights(cfg, model)
    return model.eval()
