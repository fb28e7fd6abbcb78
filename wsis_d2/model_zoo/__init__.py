# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Trained models by name, as :mod:`detectron2.model_zoo`: from the package, a folder or a URL."""

from wsis_d2.model_zoo.path_handler import register
from wsis_d2.model_zoo.zoo import (
    get,
    get_checkpoint_file,
    get_checkpoint_url,
    get_config,
    get_config_file,
    get_metadata,
    list_configs,
    list_released,
)

register()

__all__ = [
    "get",
    "get_checkpoint_file",
    "get_checkpoint_url",
    "get_config",
    "get_config_file",
    "get_metadata",
    "list_configs",
    "list_released",
]
