# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""A trained tag classifier or tag segmenter: its config and its weights."""

import os
from pathlib import Path

import torch
from detectron2.config import CfgNode

from wsis_d2.checkpoint.parts import load_trained
from wsis_d2.checkpoint.weight_keys import only_weights
from wsis_d2.config import merge_file, read_config
from wsis_d2.modeling.build import build_model
from wsis_d2.modeling.meta_arch import TagClassifier, TagSegmenter
from wsis_d2.utils.errors import InputError

CLASSIFIERS = ("TagClassifier", "TagSegmenter")

TRAIN_COMMAND = "tools/train_net.py --config-file CLASSIFIER.yaml"


def classifier_config(cfg: CfgNode, weights: str | os.PathLike | None, num_classes: int) -> CfgNode:
    """Return the config that a classifier was trained with.

    Args:
        cfg: the command's config. If its meta-architecture is one of ``CLASSIFIERS``, it is used;
            otherwise the ``config.yaml`` that training wrote beside the weights, with the
            command's ``CAM`` section where that is not the default.
        weights: the classifier's checkpoint.
        num_classes: number of classes of the dataset.

    Raises:
        InputError: no weights, or no config that describes them.
    """
    if not weights:
        raise InputError(f"--classifier W.pth is missing; train one with: {TRAIN_COMMAND}")
    if not os.path.isfile(weights):
        raise InputError(f"--classifier {weights}: no such file; train one with: {TRAIN_COMMAND}")
    cfg = cfg.clone()
    cfg.defrost()
    if cfg.MODEL.META_ARCHITECTURE not in CLASSIFIERS:
        beside = Path(weights).parent / "config.yaml"
        if not beside.is_file():
            raise InputError(
                f"--classifier {weights}: no config.yaml beside it; name the config it was "
                "trained with: --config-file CLASSIFIER.yaml"
            )
        wanted = cfg.CAM.clone()
        merge_file(cfg, str(beside))
        if wanted != read_config().CAM:
            cfg.CAM = wanted
        if cfg.MODEL.META_ARCHITECTURE not in CLASSIFIERS:
            raise InputError(
                f"{beside}: MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE!r}, expected "
                f"one of {CLASSIFIERS}"
            )
    cfg = only_weights(cfg)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = num_classes
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


def load_classifier(
    cfg: CfgNode, weights: str | os.PathLike, thing_ids: frozenset[int]
) -> TagClassifier | TagSegmenter:
    """Build the classifier and load its weights, all of them.

    Raises:
        InputError: the checkpoint does not fit.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WSIS.THING_IDS = sorted(thing_ids)
    model = build_model(cfg)
    load_trained(
        model,
        os.fspath(weights),
        key="--classifier",
        hint=f"train one for the config and the dataset's classes with: {TRAIN_COMMAND}",
    )
    return model.eval()
