# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Mixed precision: networks in 16 bits; CRF, matching and losses in float32.

Addition, not in the paper.
"""

import contextlib
from contextlib import AbstractContextManager

import torch
from detectron2.config import CfgNode

from wsis_d2.utils.errors import InputError

_TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    """Return the type of SOLVER.AMP, None where it is off.

    Raises:
        InputError: an unknown type.
    """
    amp = cfg.SOLVER.AMP
    if amp.DTYPE not in _TYPES:
        raise InputError(f"SOLVER.AMP.DTYPE is {amp.DTYPE!r}, expected one of {', '.join(_TYPES)}")
    return _TYPES[amp.DTYPE] if amp.ENABLED else None


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager:
    """Run what is inside in 16 bits where that is safe; None: as it is."""
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype)
