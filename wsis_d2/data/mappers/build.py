# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The registry of dataset mappers."""

from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry

from wsis_d2.utils.errors import InputError, check_choice

DATASET_MAPPER_REGISTRY = Registry("DATASET_MAPPER")
DATASET_MAPPER_REGISTRY.__doc__ = """
Mappers from a dataset dict to a sample: classes made with (cfg, is_train) and named by
INPUT.DATASET_MAPPER_NAME. One may have ``check(records)``, called once before training.
"""


def build_mapper(cfg: CfgNode, is_train: bool) -> Callable[[dict], dict]:
    """Build the mapper named by INPUT.DATASET_MAPPER_NAME.

    Raises:
        InputError: there is none of that name, or the INPUT section does not fit it.
    """
    name = cfg.INPUT.DATASET_MAPPER_NAME
    check_choice(
        "INPUT.DATASET_MAPPER_NAME", name, sorted(key for key, _ in DATASET_MAPPER_REGISTRY)
    )
    try:
        return DATASET_MAPPER_REGISTRY.get(name)(cfg, is_train)
    except (AssertionError, ValueError) as error:
        raise InputError(str(error) or f"the INPUT section does not fit {name}") from error
