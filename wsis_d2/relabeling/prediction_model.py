# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The model that predicts labels: its config, its weights and what it predicts."""

import os
from collections.abc import Mapping, Sequence

import torch
from detectron2.config import CfgNode
from torch import nn

from wsis_d2.checkpoint.parts import load_trained
from wsis_d2.modeling.build import build_model
from wsis_d2.modeling.meta_arch import WeakPanopticRCNN
from wsis_d2.modeling.semantic.inference import in_groups
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
        cfg.TEST.AUG.ENABLED = False  # a prediction at the image's own size
    cfg.freeze()
    return cfg


def load_predictor(cfg: CfgNode, weights: str | os.PathLike) -> nn.Module:
    """Build the predicting model of :func:`prediction_config` and load a trained checkpoint."""
    model = build_model(cfg)
    load_trained(model, os.fspath(weights), key="the round's checkpoint")
    return model.eval()


def predict_semantics(model: nn.Module, samples: Sequence[Mapping]) -> list[torch.Tensor]:
    """Return a model's class probabilities of each sample, (C, H, W) float32.

    Args:
        model: in evaluation mode; gives ``sem_seg`` (C, H, W) probabilities in the sample's size.
        samples: of each photograph ``image`` (3, h, w) and what else the model reads.

    Raises:
        InputError: the model gives no ``sem_seg``.
    """

    def size(sample: Mapping) -> tuple[int, ...]:
        return tuple(sample["image"].shape[-2:])

    if isinstance(model, WeakPanopticRCNN):
        outputs = model(samples)  # which groups its images, and bounds the groups, itself
    else:  # Detectron2's own pad a batch to its largest image, which would reach the others
        outputs = in_groups(samples, size, model, len(samples))
    if any("sem_seg" not in output for output in outputs):
        raise InputError(
            "MODEL.WSIS.STAGE: this model gives no sem_seg; labels come from a semantic or an "
            "instance stage"
        )
    return [output["sem_seg"].float() for output in outputs]
