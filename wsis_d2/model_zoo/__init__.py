# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Trained models by name, as :mod:`detectron2.model_zoo`: from the package, a folder or a URL."""

import wsis_d2.model_zoo.path_handler  # noqa: F401  (registers wsis-d2://)
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
