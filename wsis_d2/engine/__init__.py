# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Training: set-up, solver and trainer."""

from wsis_d2.engine.launch import launch
from wsis_d2.engine.setup import complete_config, load_cfg, setup, write_metadata, write_run_files
from wsis_d2.engine.solver import build_lr_scheduler, build_optimizer
from wsis_d2.engine.trainer import WSISTrainer

__all__ = [
    "WSISTrainer",
    "build_lr_scheduler",
    "build_optimizer",
    "complete_config",
    "launch",
    "load_cfg",
    "setup",
    "write_metadata",
    "write_run_files",
]
