# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Trained weights into a network or one of its parts, all of them.

A network's parts are those of :class:`wsis_d2.modeling.meta_arch.WeakPanopticRCNN`, ``detector``,
``semantic`` and ``instance``; any other network is one part. Evaluation, relabelling, demo, export
and release need every array (:func:`load_trained`); training may begin with less
(:func:`wsis_d2.checkpoint.start.load_for_training`).
"""

import logging
from collections.abc import Iterable

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from wsis_d2.checkpoint.coverage import TRAINED, load_into
from wsis_d2.checkpoint.detector_size import warn_of_detector_size
from wsis_d2.checkpoint.names import Weights, match_ends, read_weights
from wsis_d2.checkpoint.weight_keys import PART_KEYS
from wsis_d2.config_checks.values import value_at
from wsis_d2.structures.stages import PARTS
from wsis_d2.utils.errors import InputError

logger = logging.getLogger(__name__)


# Where a detector of Detectron2 stands in the model, and its heads that have no place there.
RCNN = "detector.rcnn."
_OTHER_HEADS = ("roi_heads.mask_head.", "roi_heads.keypoint_head.", "sem_seg_head.")


def outline(cfg: CfgNode) -> nn.Module:
    """Build the config's network without memory or numbers, to check files against."""
    with torch.device("meta"):
        return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)


def present_parts(model: nn.Module) -> tuple[str, ...]:
    """The parts that a WeakPanopticRCNN has in its stage; of another network, none."""
    if not all(hasattr(model, part) for part in PARTS):
        return ()
    return tuple(p for p in PARTS if getattr(model, p) is not None)


def parts_in(arrays: Iterable[str]) -> set[str]:
    """The parts that names of arrays begin with."""
    return {name.partition(".")[0] for name in arrays} & set(PARTS)


def title_of(model: nn.Module, part: str = "") -> str:
    """What messages call a network or its part."""
    if part:
        return {"semantic": "the semantic subnetwork", "instance": "the instance head"}.get(
            part, f"the {part}"
        )
    stage = getattr(model, "stage", None)
    return f"the model (stage {stage})" if stage else f"the {type(model).__name__}"


def load_trained(model: nn.Module, path: str, *, key: str, hint: str = TRAINED) -> None:
    """Load a trained network, all of it.

    Args:
        model: the network, of any stage; a file may hold whole parts that the stage has not.
        path: file, URL or ``wsis-d2://ID``.
        key: the config key or option that named it, for messages.
        hint: ends messages: what to do.

    Raises:
        InputError: an array is missing, of another shape, or of another network.
    """
    load_into(model, hint=hint, **as_whole(model, read_weights(path, key, hint=hint)))


def check_trained(
    cfg: CfgNode, path: str, *, key: str, part: str = "", hint: str = TRAINED
) -> list[str]:
    """Check that a file holds the whole network of a config, or one part, before it is needed.

    Args:
        cfg: the config; its network is built without memory.
        path, key, hint: as for :func:`load_trained`.
        part: one of ``PARTS``, or "".

    Returns:
        The names of the network's or the part's arrays.

    Raises:
        InputError: as :func:`load_trained`.
    """
    model = outline(cfg)
    weights = read_weights(path, key, hint=hint)
    arguments = _as_part(model, part, weights) if part else as_whole(model, weights)
    module = getattr(model, part) if part else model
    load_into(module, hint=hint, load=False, **arguments)
    return list(module.state_dict())


def as_whole(model: nn.Module, weights: Weights) -> dict:
    """Arguments of :func:`load_into` for a whole network."""
    arrays, parts = weights.arrays, present_parts(model)
    if weights.loose:
        arrays = match_ends(arrays, model.state_dict())
    elif parts == ("detector",) and not parts_in(arrays):
        arrays = {RCNN + n: v for n, v in arrays.items()}
    foreign = [f"{part}." for part in PARTS if part not in parts] if parts else []
    if "instance" in parts and not model.instance.state_dict():
        foreign.append("instance.")
    foreign += [RCNN + head for head in _OTHER_HEADS]
    return {
        "arrays": arrays,
        "source": weights.source,
        "what": title_of(model),
        "allow_foreign": foreign,
        "folded": weights.folded,
    }


def _as_part(model: nn.Module, part: str, weights: Weights) -> dict:
    """Arguments of :func:`load_into` for one part."""
    inside = "rcnn." if part == "detector" else ""
    arrays = {
        n.removeprefix(f"{part}."): v for n, v in weights.arrays.items() if n.startswith(f"{part}.")
    }
    if not arrays:
        arrays = weights.arrays
        if weights.loose:
            arrays = match_ends(arrays, getattr(model, part).state_dict())
        elif not parts_in(arrays):
            arrays = {inside + n: v for n, v in arrays.items()}
    return {
        "arrays": arrays,
        "source": weights.source,
        "what": title_of(model, part),
        "allow_foreign": [inside + head for head in _OTHER_HEADS],
        "folded": weights.folded,
    }


def load_for_evaluation(cfg: CfgNode, model: nn.Module) -> None:
    """Load MODEL.WEIGHTS, or the parts' weights where that is empty; all arrays must be there.

    The instance head of joined parts has the weights that the config gives it.

    Raises:
        InputError: no weights are named, or they do not fill the network.
    """
    if cfg.MODEL.WEIGHTS:
        load_trained(model, cfg.MODEL.WEIGHTS, key="MODEL.WEIGHTS")
        return
    parts = [p for p in present_parts(model) if p in PART_KEYS and getattr(model, p).state_dict()]
    named = {part: value_at(cfg, PART_KEYS[part]) for part in parts}
    unnamed = [PART_KEYS[part] for part, path in named.items() if not path]
    if not parts or unnamed:
        also = f", {' and '.join(unnamed)} too" if len(unnamed) < len(parts) else ""
        raise InputError(
            f"MODEL.WEIGHTS is empty{also}: an evaluation needs a trained network; {TRAINED}: "
            "MODEL.WEIGHTS OUTPUT_DIR/model_final.pth"
        )
    warn_of_detector_size(cfg)
    for part, path in named.items():
        load_part(model, part, read_weights(path, PART_KEYS[part]))
    if "instance" in present_parts(model) and model.instance.state_dict():
        logger.warning("MODEL.WEIGHTS is empty: the CRF has the weights of MODEL.INSTANCE_HEAD")


def load_part(
    model: nn.Module,
    part: str,
    weights: Weights,
    *,
    partial: bool = False,
    hint: str = TRAINED,
) -> list[str]:
    """Fill one part from a checkpoint that holds it, or from a plain Detectron2 model.

    Args:
        model: holds the part as an attribute.
        part: one of ``PARTS``.
        weights: arrays named ``PART.…`` are taken; of a file without parts, all of them.
        partial, hint: see :func:`load_into`.

    Returns:
        The model's names that were left as they were.

    Raises:
        InputError: as :func:`load_into`.
    """
    left = load_into(
        getattr(model, part), partial=partial, hint=hint, **_as_part(model, part, weights)
    )
    return [f"{part}.{name}" for name in left]
