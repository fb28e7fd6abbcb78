# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The registry of dataset mappers."""

from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry

DATASET_MAPPER_REGISTRY = Registry("DATASET_MAPPER")
DATASET_MAPPER_REGISTRY.__doc__ = """
Mappers from a dataset dict to a sample: classes made with (cfg, is_train) and named by
INPUT.DATASET_MAPPER_NAME. One may have ``check(records)``, called once before training.
"""


def build_mapper(cfg: CfgNode, is_train: bool) -> Callable[[dict], dict]:
    """Build the mapper named by INPUT.DATASET_MAPPER_NAME."""
    return DATASET_MAPPER_REGISTRY.get(cfg.INPUT.DATASET_MAPPER_NAME)(cfg, is_train)
