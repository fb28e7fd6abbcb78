# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Compose a model from separately trained parts."""

import logging

import torch
from torch import nn

from wsis_d2.checkpoint.reader import SafeCheckpointer, model_state
from wsis_d2.utils.errors import InputError


def load_backbone(module: nn.Module, path: str, key: str) -> None:
    """Start a ResNet from the ResNet of another network's checkpoint.

    Args:
        module: the ResNet.
        path: file or URL; parameters are taken from the first of the prefixes
            ``...bottom_up.`` (a feature pyramid's) and others that has all of them.
        key: the config key that named it, for messages.

    Raises:
        InputError: no ResNet of the same shape is in the file.
    """
    state = _read(path, key)
    wanted = module.state_dict()
    prefixes = {name[: name.index("stem.")] for name in state if "stem." in name}
    for prefix in sorted(prefixes, key=lambda p: (not p.endswith("bottom_up."), p)):
        own = {k: state[prefix + k] for k in wanted if prefix + k in state}
        if len(own) == len(wanted) and all(own[k].shape == wanted[k].shape for k in wanted):
            module.load_state_dict(own)
            logging.getLogger(__name__).info("backbone: started from %s of %s", prefix, path)
            return
    raise InputError(
        f"{key}: {path}: holds no ResNet of the depth, width and norm of MODEL.SEMANTIC.RESNETS"
    )


def load_part(model: nn.Module, part: str, path: str, key: str) -> None:
    """Load one part of a model from a checkpoint of the part's own stage.

    Args:
        model: holds the part as an attribute, e.g. ``detector``.
        part: the attribute; the checkpoint's parameters of that prefix are taken, or all of them
            if none has it (a plain Detectron2 model).
        path: file or URL of the checkpoint.
        key: the config key that named it, for messages.

    Raises:
        InputError: the file is missing, lacks a parameter or holds one of another shape.
    """
    module = getattr(model, part)
    state = _read(path, key)
    prefix = f"{part}."
    own = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
    if not own:
        inner = "rcnn." if part == "detector" else ""
        own = {inner + k: v for k, v in state.items()}
    wanted = module.state_dict()
    missing = sorted(k for k in wanted if k not in own)
    shapes = sorted(k for k in wanted if k in own and own[k].shape != wanted[k].shape)
    if missing or shapes:
        first = (missing or shapes)[0]
        problem = (
            f"lacks {len(missing)} parameters of the {part}, first {first}"
            if missing
            else f"{first} has shape {tuple(own[first].shape)}, the model's is "
            f"{tuple(wanted[first].shape)}"
        )
        raise InputError(
            f"{key}: {path}: {problem}; train that part with the same backbone and head keys"
        )
    module.load_state_dict({k: own[k] for k in wanted})
    logging.getLogger(__name__).info("%s: loaded %d arrays from %s", part, len(wanted), path)


def _read(path: str, key: str) -> dict[str, torch.Tensor]:
    try:
        # The checkpointer reads every format and address Detectron2 knows.
        return model_state(SafeCheckpointer(nn.Module())._load_file(path), path)
    except InputError as error:
        raise InputError(f"{key}: {error}") from None
