# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Which weights go where, and whether they fill what they should.

A network's parts are those of :class:`wsis_d2.modeling.meta_arch.WeakPanopticRCNN`, ``detector``,
``semantic`` and ``instance``; any other network is one part. A file fills

* the parts that it names (a checkpoint of this project),
* the detector (a detection network of Detectron2 or Detectron),
* or every backbone (an ImageNet network).

Evaluation, relabelling, demo, export and release need every array (:func:`load_trained`); training
may begin with new heads and says which (:func:`load_for_training`).
"""

import logging
from collections.abc import Iterable
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import nn

from wsis_d2.checkpoint.coverage import TRAINED, first_of, is_auxiliary, load_into
from wsis_d2.checkpoint.detector_size import warn_of_detector_size
from wsis_d2.checkpoint.names import Weights, match_ends, read_weights
from wsis_d2.modeling.backbone import TimmBackbone
from wsis_d2.modeling.backbone.folded import NormInConv
from wsis_d2.structures.stages import PARTS, stage_named
from wsis_d2.utils.errors import InputError

logger = logging.getLogger(__name__)

PART_KEYS = {
    "detector": "MODEL.WSIS.DETECTOR_WEIGHTS",
    "semantic": "MODEL.WSIS.SEMANTIC_WEIGHTS",
}
BACKBONE_KEY = "MODEL.SEMANTIC.BACKBONE_WEIGHTS"
# Every key that names a checkpoint of the network.
WEIGHT_KEYS = ("MODEL.WEIGHTS", *PART_KEYS.values(), BACKBONE_KEY, "ITERATIVE.FIRST_WEIGHTS")

# Where a detector of Detectron2 stands in the model, and its heads that have no place there.
_RCNN = "detector.rcnn."
_OTHER_HEADS = ("roi_heads.mask_head.", "roi_heads.keypoint_head.", "sem_seg_head.")
_PARTIAL = (
    "train it with the same keys, or set MODEL.WSIS.PARTIAL_WEIGHTS True to begin with these at "
    "random"
)


def _value(cfg: CfgNode, key: str) -> str:
    node = cfg
    for piece in key.split("."):
        node = node[piece]
    return node


def only_weights(cfg: CfgNode, weights: str | Path = "", **parts: str | Path) -> CfgNode:
    """Return the config with these weights and no others.

    Args:
        cfg: a config.
        weights: of the whole network, ``MODEL.WEIGHTS``.
        parts: weights of ``detector`` or ``semantic``.
    """
    frozen = cfg.is_frozen()
    cfg = cfg.clone()
    cfg.defrost()
    values = {"MODEL.WEIGHTS": weights, **{PART_KEYS[part]: path for part, path in parts.items()}}
    for key in WEIGHT_KEYS:
        node = cfg
        *parents, last = key.split(".")
        for parent in parents:
            node = node[parent]
        node[last] = str(values.get(key, ""))
    if frozen:
        cfg.freeze()
    return cfg


def weight_files(cfg: CfgNode) -> list[str]:
    """Return the files that a config's training begins with, in the order of ``WEIGHT_KEYS``."""
    parts = stage_named(cfg.MODEL.WSIS.STAGE).parts
    unused = {key for part, key in PART_KEYS.items() if part not in parts}
    return [_value(cfg, key) for key in WEIGHT_KEYS if key not in unused]


def outline(cfg: CfgNode) -> nn.Module:
    """Build the config's network without memory or numbers, to check files against."""
    with torch.device("meta"):
        return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)


def _present(model: nn.Module) -> tuple[str, ...]:
    """The parts that a WeakPanopticRCNN has in its stage; of another network, none."""
    if not all(hasattr(model, part) for part in PARTS):
        return ()
    return tuple(p for p in PARTS if getattr(model, p) is not None)


def _parts_in(arrays: Iterable[str]) -> set[str]:
    return {name.partition(".")[0] for name in arrays} & set(PARTS)


def _title(model: nn.Module, part: str = "") -> str:
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
    load_into(model, hint=hint, **_as_whole(model, read_weights(path, key, hint=hint)))


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
    arguments = _as_part(model, part, weights) if part else _as_whole(model, weights)
    module = getattr(model, part) if part else model
    load_into(module, hint=hint, load=False, **arguments)
    return list(module.state_dict())


def _as_whole(model: nn.Module, weights: Weights) -> dict:
    """Arguments of :func:`load_into` for a whole network."""
    arrays, parts = weights.arrays, _present(model)
    if weights.loose:
        arrays = match_ends(arrays, model.state_dict())
    elif parts == ("detector",) and not _parts_in(arrays):
        arrays = {_RCNN + n: v for n, v in arrays.items()}
    foreign = [f"{part}." for part in PARTS if part not in parts] if parts else []
    if "instance" in parts and not model.instance.state_dict():
        foreign.append("instance.")
    foreign += [_RCNN + head for head in _OTHER_HEADS]
    return {
        "arrays": arrays,
        "source": weights.source,
        "what": _title(model),
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
        elif not _parts_in(arrays):
            arrays = {inside + n: v for n, v in arrays.items()}
    return {
        "arrays": arrays,
        "source": weights.source,
        "what": _title(model, part),
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
    parts = [p for p in _present(model) if p in PART_KEYS and getattr(model, p).state_dict()]
    named = {part: _value(cfg, PART_KEYS[part]) for part in parts}
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
    if "instance" in _present(model) and model.instance.state_dict():
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


def load_backbone(model: nn.Module, name: str, weights: Weights) -> None:
    """Fill a backbone from an ImageNet network, or from another network's backbone.

    Args:
        model: the network.
        name: of the backbone in it, e.g. ``semantic.backbone``.
        weights: of the places in it that end like the backbone's first array, the fullest counts.

    Raises:
        InputError: the file's network has another depth, width or norm, or learned from other
            strides or colours than the model has.
    """
    module = model.get_submodule(name)
    wanted = module.state_dict()
    first = next(iter(wanted))
    prefixes = [n.removesuffix(first) for n in weights.arrays if f".{n}".endswith(f".{first}")]
    best = max(prefixes, key=lambda p: sum(p + n in weights.arrays for n in wanted), default="")
    arrays = {n.removeprefix(best): v for n, v in weights.arrays.items() if n.startswith(best)}
    elsewhere: list[str] = []
    if isinstance(module, TimmBackbone):
        if not prefixes:  # not a checkpoint of a network that has this backbone
            arrays, elsewhere = module.own_names(weights.published)
    else:
        _check_input(model, name, weights)
    load_into(
        module, arrays, source=weights.source, what=name, folded=weights.folded,
        allow_foreign=elsewhere,
        hint="name weights of the same depth, width and norm",
    )  # fmt: skip


def _check_input(model: nn.Module, name: str, weights: Weights) -> None:
    """Refuse torchvision's weights in a network that strides or scales colours in another way."""
    if not weights.torchvision:
        return
    section = "MODEL.SEMANTIC." if name.startswith("semantic.") else "MODEL."
    blocks = [m for m in model.get_submodule(name).modules() if isinstance(m, BottleneckBlock)]
    if any(block.conv1.stride != (1, 1) for block in blocks):
        raise InputError(
            f"{weights.source}: torchvision's ResNet strides in its 3x3 convolutions; set "
            f"{section}RESNETS.STRIDE_IN_1X1 False"
        )
    owners = [name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1)] + [""]
    for owner in owners:
        deviation = getattr(model.get_submodule(owner), "pixel_std", None)
        if deviation is None:
            continue
        if float(deviation.max()) < 10:
            raise InputError(
                f"{weights.source}: torchvision's networks learned from standardised colours; set "
                f"{section}PIXEL_STD [57.4, 57.1, 58.4]"
            )
        return


def backbones_of(model: nn.Module) -> list[str]:
    """Return the names of a network's backbones; of a feature pyramid, that of its ResNet."""
    found = [n for n, m in model.named_modules() if isinstance(m, Backbone) and m.state_dict()]
    return [n for n in found if not any(other.startswith(f"{n}.") for other in found)]


def is_backbone(model: nn.Module, weights: Weights) -> bool:
    """Whether a file holds a backbone alone: an ImageNet ResNet, or what timm's backbones take."""
    modules = [model.get_submodule(name) for name in backbones_of(model)]
    return weights.backbone or any(
        isinstance(m, TimmBackbone) and m.recognizes(weights.published) for m in modules
    )


class _Start:
    """What the files fill of a network that is to be trained, one after another."""

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        self.cfg, self.model = cfg, model
        self.partial = cfg.MODEL.WSIS.PARTIAL_WEIGHTS
        self.parts = _present(model)
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
            arguments = _as_whole(self.model, weights)
            self.note("", load_into(self.model, partial=self.partial, hint=_PARTIAL, **arguments))
            return
        held = _parts_in(weights.arrays) or {"detector"}
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
                logger.info("%s is not used while %s is trained", key, _title(self.model))
                return
            raise InputError(
                f"{key} is {path!r}, and the network that is trained, {_title(self.model)}, has no "
                f"{part}; leave it empty"
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
                f"{_title(self.model)}, has no semantic subnetwork; leave it empty"
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
                f"{weights.source}: holds a backbone, and every backbone of {_title(self.model)} "
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
                f"{' and '.join(keys)}: {len(frozen)} arrays of {_title(self.model)} that are "
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
                depth = 3 if name.startswith(_RCNN) else 2
                groups.setdefault(".".join(name.split(".")[:depth]), []).append(name)
        for group, names in groups.items():
            logger.info("new, without weights of a file: %s (%d arrays)", group, len(names))


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
        if _value(cfg, key):
            start.part(part, key, _value(cfg, key))
    if _value(cfg, BACKBONE_KEY):
        start.backbone(_value(cfg, BACKBONE_KEY))
    if alone:
        start.all_backbones(weights)
    start.finish()
