# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Every config key of wsis_d2, one comment each."""

from detectron2.config import CfgNode as CN


def add_wsis_config(cfg: CN) -> None:
    """Add every key of wsis_d2 to ``cfg``, in place.

    Args:
        cfg: a clone of Detectron2's default config (``get_cfg()``).
    """
    add_data_config(cfg)
    add_weak_labels_config(cfg)
    add_model_config(cfg)
    add_tag_config(cfg)
    add_eval_config(cfg)
    add_engine_config(cfg)


def add_data_config(cfg: CN) -> None:
    """Datasets and mappers."""
    # Own data to register before use: a list of register_weak_panoptic's keyword arguments.
    cfg.DATASETS.OWN = []
    # Label stores of the built-in weak datasets: [[dataset name, store folder], ...].
    cfg.DATASETS.LABEL_STORES = []
    # Which mapper makes training samples, a name in DATASET_MAPPER_REGISTRY.
    cfg.INPUT.DATASET_MAPPER_NAME = "panoptic"


def add_weak_labels_config(cfg: CN) -> None:
    """Annotation to pseudo ground truth."""
    cfg.WEAK_LABELS = CN()


def add_model_config(cfg: CN) -> None:
    """WeakPanopticRCNN and its parts."""


def add_tag_config(cfg: CN) -> None:
    """Tag classifier and class activation maps."""


def add_eval_config(cfg: CN) -> None:
    """Metrics and ranking."""


def add_engine_config(cfg: CN) -> None:
    """Training and iterative training."""
