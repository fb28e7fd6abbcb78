# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""What a training begins with: which file of the config fills which part of the network.

A file fills

* the parts that it names (a checkpoint of this project),
* the detector (a detection network of Detectron2 or Detectron),
* or every backbone (an ImageNet network).

New heads may begin at random, which is said.
"""

import logging
from collections.abc import Iterable

from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from wsis_d2.checkpoint.backbones import backbones_of, is_backbone, load_backbone
from wsis_d2.checkpoint.coverage import first_of, is_auxiliary, load_into
from wsis_d2.checkpoint.detector_size import warn_of_detector_size
from wsis_d2.checkpoint.names import Weights, read_weights
from wsis_d2.checkpoint.parts import (
    RCNN,
    as_whole,
    load_part,
    parts_in,
    present_parts,
    title_of,
)
from wsis_d2.checkpoint.weight_keys import BACKBONE_KEY, PART_KEYS
from wsis_d2.config_checks.values import value_at
from wsis_d2.modeling.backbone.folded import NormInConv
from wsis_d2.utils.errors import InputError

logger = logging.getLogger(__name__)

_PARTIAL = (
    "train it with the same keys, or set MODEL.WSIS.PARTIAL_WEIGHTS True to begin with these at "
    "random"
)


def load_for_training(cfg: CfgNode, model: nn.Module) -> None:
    """Load what the config names to start from.

    ``MODEL.WEIGHTS`` fills the parts that it holds; ``MODEL.WSIS.DETECTOR_WEIGHTS`` and
    ``SEMANTIC_WEIGHTS`` those that it does not; ``MODEL.SEMANTIC.BACKBONE_WEIGHTS``, or an ImageNet
    network in ``MODEL.WEIGHTS``, the backbones that have no weights then. A part is filled whole,
    but for auxiliary classifiers. What is new is logged.

    Args:
        cfg: the config; with ``MODEL.WSIS.PARTIAL_WEIGHTS`` a file may fill less than its part,
            and a part that is not trained may be at random.
        model: its network.

    Raises:
        InputError: a file is missing, fits another network or nothing, or what is never trained
            has no weights.
    """
    warn_of_detector_size(cfg)
    start, path = _Start(cfg, model), cfg.MODEL.WEIGHTS
    weights = read_weights(path, "MODEL.WEIGHTS", cfg.INPUT.FORMAT) if path else None
    alone = weights is not None and is_backbone(model, weights)
    if weights is not None and not alone:
        start.whole(weights)
    for part, key in PART_KEYS.items():
        if value_at(cfg, key):
            start.part(part, key, value_at(cfg, key))
    if value_at(cfg, BACKBONE_KEY):
        start.backbone(value_at(cfg, BACKBONE_KEY))
    if alone:
        start.all_backbones(weights)
    start.finish()


class _Start:
    """What the files fill of a network that is to be trained, one after another."""

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        self.cfg, self.model = cfg, model
        self.partial = cfg.MODEL.WSIS.PARTIAL_WEIGHTS
        self.parts = present_parts(model)
        self.left = set(model.state_dict())
        self.filled: set[str] = set()  # names of parts and backbones

    def note(self, name: str, left: Iterable[str] = ()) -> None:
        """Note that a part or a backbone has been filled but for what is left."""
        prefix = f"{name}." if name else ""
        self.left = {n for n in self.left if not n.startswith(prefix)} | set(left)
        self.filled.add(name)

    def has(self, name: str) -> bool:
        """Whether the part or backbone is filled, or the part that it belongs to."""
        return any(name == f or name.startswith(f"{f}.") or not f for f in self.filled)

    def whole(self, weights: Weights) -> None:
        """MODEL.WEIGHTS of a network: the parts that it names, or the detector."""
        if not self.parts:
            arguments = as_whole(self.model, weights)
            self.note("", load_into(self.model, partial=self.partial, hint=_PARTIAL, **arguments))
            return
        held = parts_in(weights.arrays) or {"detector"}
        parts = [p for p in self.parts if p in held and getattr(self.model, p).state_dict()]
        if not parts:
            raise InputError(
                f"{weights.source}: holds {' and '.join(sorted(held))}, which the stage "
                f"'{self.model.stage}' does not have; its ResNet can be taken with {BACKBONE_KEY}, "
                f"a part for the instance stages with {' or '.join(PART_KEYS.values())}"
            )
        for part in parts:
            self.note(part, load_part(
                self.model, part, weights, partial=self.partial, hint=_PARTIAL
            ))  # fmt: skip

    def part(self, part: str, key: str, path: str) -> None:
        """MODEL.WSIS.DETECTOR_WEIGHTS and SEMANTIC_WEIGHTS."""
        if part not in self.parts:
            if part == "detector" and self.parts:
                logger.info("%s is not used while %s is trained", key, title_of(self.model))
                return
            raise InputError(
                f"{key} is {path!r}, and the network that is trained, {title_of(self.model)}, has "
                f"no {part}; leave it empty"
            )
        if self.has(part):
            logger.warning("%s is not used: MODEL.WEIGHTS holds the %s", key, part)
            return
        hint = f"train the {part} first, or name where its checkpoint lies"
        weights = read_weights(path, key, self.cfg.INPUT.FORMAT, hint)
        left = load_part(self.model, part, weights, partial=self.partial, hint=_PARTIAL)
        self.note(part, left)

    def backbone(self, path: str) -> None:
        """MODEL.SEMANTIC.BACKBONE_WEIGHTS."""
        name = "semantic.backbone"
        if "semantic" not in self.parts:
            raise InputError(
                f"{BACKBONE_KEY} is {path!r}, and the network that is trained, "
                f"{title_of(self.model)}, has no semantic subnetwork; leave it empty"
            )
        if self.has(name):
            logger.warning("%s is not used: the semantic subnetwork has weights", BACKBONE_KEY)
            return
        load_backbone(self.model, name, read_weights(path, BACKBONE_KEY, self.cfg.INPUT.FORMAT))
        self.note(name)

    def all_backbones(self, weights: Weights) -> None:
        """MODEL.WEIGHTS of ImageNet: into each backbone that has no weights yet."""
        names = [name for name in backbones_of(self.model) if not self.has(name)]
        if not names:
            raise InputError(
                f"{weights.source}: holds a backbone, and every backbone of {title_of(self.model)} "
                "already has its weights, or there is none; set MODEL.WEIGHTS ''"
            )
        for name in names:
            try:
                load_backbone(self.model, name, weights)
            except InputError as error:
                if len(names) == 1:
                    raise
                raise InputError(
                    f"{error}, or each network its own: {PART_KEYS['detector']} and {BACKBONE_KEY}"
                ) from None
            self.note(name)

    def finish(self) -> None:
        """Refuse what would stay at random for ever, and say what is new."""
        learned = {n: p for n, p in self.model.named_parameters() if not is_auxiliary(n)}
        frozen = [n for n, p in learned.items() if n in self.left and not p.requires_grad]
        if frozen and not self.partial:
            keys = [PART_KEYS[p] for p in PART_KEYS if any(n.startswith(f"{p}.") for n in frozen)]
            if len(self.parts) < 2:
                keys = ["MODEL.WEIGHTS"]
            raise InputError(
                f"{' and '.join(keys)}: {len(frozen)} arrays of {title_of(self.model)} that are "
                f"never trained would stay at random: {first_of(frozen)}; name their weights, or "
                "set MODEL.WSIS.PARTIAL_WEIGHTS True"
            )
        for name in backbones_of(self.model):
            module = self.model.get_submodule(name)
            frozen_norm = (FrozenBatchNorm2d, NormInConv)
            norms = any(isinstance(m, frozen_norm) for m in module.modules())
            if norms and any(f"{name}.{n}" in self.left for n, _ in module.named_parameters()):
                logger.warning(
                    "%s starts at random with batch norms that never learn (FrozenBN); name "
                    "weights for it, or choose NORM BN or GN",
                    name,
                )
        groups: dict[str, list[str]] = {}
        for name, _ in self.model.named_parameters():
            if name in self.left:
                depth = 3 if name.startswith(RCNN) else 2
                groups.setdefault(".".join(name.split(".")[:depth]), []).append(name)
        for group, names in groups.items():
            logger.info("new, without weights of a file: %s (%d arrays)", group, len(names))
