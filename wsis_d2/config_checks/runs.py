# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Checks of a training or an evaluation and its device, before anything is written."""

import logging
import os

import torch
from detectron2.config import CfgNode

from wsis_d2.config_checks.values import TRAINING_VALUES, VALUES, check_values
from wsis_d2.structures.stages import stage_of
from wsis_d2.utils.errors import InputError

_MAPPERS = {"TagClassifier": "TagMapper", "TagSegmenter": "TagRegionMapper"}


def check_trainable(cfg: CfgNode) -> None:
    """Refuse what training cannot do, before anything is written or computed.

    Raises:
        InputError: naming the first key that cannot be.
    """
    check_values(cfg, (*VALUES, *TRAINING_VALUES))
    mapper, name = cfg.INPUT.DATASET_MAPPER_NAME, cfg.MODEL.META_ARCHITECTURE
    wanted = _MAPPERS.get(name, "PanopticMapper")
    if mapper in (*_MAPPERS.values(), "PanopticMapper") and mapper != wanted:
        raise InputError(
            f"INPUT.DATASET_MAPPER_NAME is {mapper!r}, whose samples are not a {name}'s; expected "
            f"{wanted!r}"
        )
    if cfg.TEST.EXPECTED_RESULTS and len(cfg.DATASETS.TEST) != 1:
        raise InputError(
            f"TEST.EXPECTED_RESULTS: DATASETS.TEST is {list(cfg.DATASETS.TEST)}, expected the one "
            "set that the results are of"
        )
    check_true_parts(cfg)
    _check_boxes(cfg)


def _check_boxes(cfg: CfgNode) -> None:
    """Refuse a training, or the evaluation after it, that files have no boxes for."""
    options = cfg.MODEL.WSIS
    files = dict(options.DETECTOR_BOXES)
    if not files or not stage_of(cfg).joint:
        return
    trained = cfg.DATASETS.TRAIN if options.TRAIN_BOXES == "detector" else ()
    for name in (*trained, *cfg.DATASETS.TEST):
        if not os.path.isfile(files.get(name, "")):
            told = f"{files[name]}: no such file" if name in files else "no file"
            raise InputError(
                f"MODEL.WSIS.DETECTOR_BOXES: {told} for data set {name!r}; expected a COCO result "
                "file for each set of DATASETS.TRAIN and DATASETS.TEST"
            )


def check_true_parts(cfg: CfgNode) -> None:
    """Refuse an evaluation with true parts that would pass for the model's own.

    Raises:
        InputError: TEST.TRUE_PARTS is not empty, and the run has no name of its own.
    """
    if cfg.TEST.TRUE_PARTS and cfg.RUN_VARIANT == "main":
        raise InputError(
            f"TEST.TRUE_PARTS is {list(cfg.TEST.TRUE_PARTS)}: such a run is not the model's own "
            "result; give it a name, e.g. RUN_VARIANT true_boxes"
        )


def choose_device(cfg: CfgNode) -> None:
    """Let MODEL.DEVICE "cuda" be "cpu" where no GPU is visible, in place.

    Raises:
        InputError: as :func:`check_device`.
    """
    if cfg.MODEL.DEVICE == "cuda" and not torch.cuda.is_available():
        logging.getLogger(__name__).warning("MODEL.DEVICE is cuda, no GPU is visible: using cpu")
        cfg.MODEL.DEVICE = "cpu"
    check_device(cfg)


def check_device(cfg: CfgNode) -> None:
    """Refuse a MODEL.DEVICE that is not here.

    Raises:
        InputError: no device's name, or a GPU that is not visible.
    """
    name = cfg.MODEL.DEVICE
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"MODEL.DEVICE is {name!r}, expected 'cpu', 'cuda' or 'cuda:N'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise InputError(
            f"MODEL.DEVICE is {name!r}, and {count or 'no'} GPU{'s are' if count > 1 else ' is'} "
            f"visible; expected {repr('cuda') + ' or ' if count else ''}'cpu'"
        )
