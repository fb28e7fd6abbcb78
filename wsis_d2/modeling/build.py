# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Building a config's model; a config that describes none is told in one line."""

from detectron2.config import CfgNode
from detectron2.modeling import build_model as build_detectron2_model
from torch import nn

from wsis_d2.config_checks.runs import check_device
from wsis_d2.utils.errors import InputError


def build_model(cfg: CfgNode) -> nn.Module:
    """Build MODEL.META_ARCHITECTURE on MODEL.DEVICE, as Detectron2's ``build_model``.

    Raises:
        InputError: a device that is not here, a name that is not registered, features that are not
            there, or another value that the model's parts refuse.
    """
    check_device(cfg)
    try:
        return build_detectron2_model(cfg)
    except InputError:
        raise
    except (AssertionError, IndexError, KeyError, ValueError) as error:
        text = " ".join(str(error.args[0] if error.args else error).split())
        if not isinstance(error, ValueError):  # bare words: a name, a shape
            text = f"the MODEL section describes no network ({type(error).__name__}: {text})"
        raise InputError(text) from error
