# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Settings that would do nothing.

A file may be shared by the runs of a pipeline, so keys of another part of it may stand in any
config: a semantic recipe may tell of the detector. What no run of this kind, nor another part,
ever reads is refused as soon as it differs from its default.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

from detectron2.config import CfgNode

from wsis_d2.config_checks.kinds import OWN, PANOPTIC, TAGS, kind_of
from wsis_d2.config_checks.values import value_at
from wsis_d2.structures.stages import stage_of
from wsis_d2.utils.errors import InputError

_OWN_BACKBONES = (
    "build_resnet_any_backbone",
    "build_resnet_any_fpn_backbone",
    "build_pspnet_resnet_backbone",
)


class Unused(NamedTuple):
    """Keys that a kind of run does not read.

    Attributes:
        prefix: the key, or the node above it.
        why: what is so instead, or the key to use.
        kinds: results of :func:`kind_of`; empty: all, also models of other projects.
        where: whether it is so in this config.
        harmless: values beside the default that ask for what is done anyway.
    """

    prefix: str
    why: str
    kinds: tuple[str, ...] = ()
    where: Callable[[CfgNode], bool] = lambda cfg: True
    harmless: tuple[Any, ...] = ()


_NO_PROPOSALS = "the detector makes its own proposals"
_NO_MASKS = "a detector here learns from boxes alone; its things get masks in the joint stages"
_TAG_SIZE = "crops are read in their own size (INPUT.SCALE_RANGE)"
_OWN_RESNET = "the backbone has no deformable convolutions; Detectron2's build_resnet_* have"


def _stock_heads(cfg: CfgNode) -> bool:
    return cfg.MODEL.ROI_HEADS.NAME in ("Res5ROIHeads", "StandardROIHeads")


def _has_own_backbone(node: Callable, cfg: CfgNode) -> bool:
    return node(cfg).BACKBONE.NAME in _OWN_BACKBONES


def _has_other_backbone(node: Callable, builders: str, cfg: CfgNode) -> bool:
    return builders not in node(cfg).BACKBONE.NAME


_BACKBONE_NODES = (
    ("MODEL.", lambda cfg: cfg.MODEL),
    ("MODEL.SEMANTIC.", lambda cfg: cfg.MODEL.SEMANTIC),
)
UNUSED = (
    Unused("SOLVER.AMP", "a tag segmenter is in full precision", ("TagSegmenter",)),
    Unused(
        "SOLVER.AMP.DTYPE",
        "SOLVER.AMP.ENABLED is False",
        where=lambda cfg: not cfg.SOLVER.AMP.ENABLED,
    ),
    Unused(
        "TEST.AUG",
        "it averages the semantic subnetwork's predictions alone",
        where=lambda cfg: "semantic" not in stage_of(cfg).parts,
    ),
    *(
        Unused(
            f"TEST.AUG.{name}",
            "TEST.AUG.ENABLED is False",
            where=lambda cfg: not cfg.TEST.AUG.ENABLED,
        )
        for name in ("MIN_SIZES", "MAX_SIZE", "FLIP")
    ),
    Unused("TEST.PRECISE_BN", "batch norms keep their running averages; FrozenBN and GN have none"),
    Unused("TEST.KEYPOINT_OKS_SIGMAS", "there are no keypoints"),
    Unused("DATALOADER.SAMPLER_TRAIN", "DATALOADER.FULL_FRACTION weighs weak and full images"),
    Unused("DATALOADER.REPEAT_THRESHOLD", "every image is drawn equally often in its kind"),
    Unused("DATASETS.PROPOSAL_FILES_TRAIN", _NO_PROPOSALS),
    Unused("DATASETS.PROPOSAL_FILES_TEST", _NO_PROPOSALS),
    Unused("DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN", _NO_PROPOSALS),
    Unused("DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST", _NO_PROPOSALS),
    Unused("MODEL.LOAD_PROPOSALS", _NO_PROPOSALS),
    Unused("MODEL.KEYPOINT_ON", "there are no keypoints"),
    Unused("INPUT.MASK_FORMAT", "labels are maps, never polygons"),
    Unused("GLOBAL", "no code reads it"),
    Unused("SOLVER.MOMENTUM", "AdamW has none", where=lambda cfg: cfg.SOLVER.OPTIMIZER == "AdamW"),
    Unused("SOLVER.NESTEROV", "AdamW has none", where=lambda cfg: cfg.SOLVER.OPTIMIZER == "AdamW"),
    Unused(
        "SOLVER.GAMMA",
        "it is WarmupMultiStepLR's",
        where=lambda cfg: cfg.SOLVER.LR_SCHEDULER_NAME in ("WarmupPolyLR", "WarmupCosineLR"),
    ),
    Unused(
        "SOLVER.STEPS",
        "it is WarmupMultiStepLR's",
        where=lambda cfg: cfg.SOLVER.LR_SCHEDULER_NAME in ("WarmupPolyLR", "WarmupCosineLR"),
        harmless=((),),
    ),
    Unused("MODEL.MASK_ON", _NO_MASKS, OWN),
    Unused("MODEL.ROI_MASK_HEAD", _NO_MASKS, OWN, _stock_heads),
    Unused("MODEL.ROI_KEYPOINT_HEAD", "there are no keypoints", OWN, _stock_heads),
    Unused(
        "MODEL.ROI_BOX_CASCADE_HEAD", "set MODEL.ROI_HEADS.NAME CascadeROIHeads", OWN, _stock_heads
    ),
    Unused(
        "MODEL.RETINANET",
        "MODEL.WSIS.DETECTOR is not RetinaNet",
        OWN,
        lambda cfg: cfg.MODEL.WSIS.DETECTOR != "RetinaNet",
    ),
    Unused(
        "MODEL.WSIS.DETECTOR",
        "MODEL.WSIS.DETECTOR_BOXES takes its place",
        OWN,
        lambda cfg: bool(cfg.MODEL.WSIS.DETECTOR_BOXES),
    ),
    Unused("MODEL.PANOPTIC_FPN", "MODEL.INSTANCE_HEAD joins things and stuff", OWN),
    Unused(
        "MODEL.ANCHOR_GENERATOR.ANGLES",
        "boxes are not rotated",
        OWN,
        lambda cfg: cfg.MODEL.ANCHOR_GENERATOR.NAME == "DefaultAnchorGenerator",
    ),
    Unused(
        "MODEL.SEM_SEG_HEAD.COMMON_STRIDE",
        "the backbone's dilation sets the stride",
        OWN,
        lambda cfg: cfg.MODEL.SEM_SEG_HEAD.NAME == "PSPHead",
    ),
    Unused("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", "labels say ignore by 255", OWN),
    *(
        Unused(
            f"{part}RESNETS.DEFORM_{name}",
            _OWN_RESNET,
            OWN,
            partial(_has_own_backbone, node),
        )
        for part, node in _BACKBONE_NODES
        for name in ("ON_PER_STAGE", "MODULATED", "NUM_GROUPS")
    ),
    *(
        Unused(
            f"{part}{name}",
            f"{part}BACKBONE.NAME names no {builders} backbone",
            OWN,
            partial(_has_other_backbone, node, builders),
        )
        for part, node in _BACKBONE_NODES
        for name, builders in (("TIMM", "timm"), ("FPN", "fpn"))
        if (part, name) != ("MODEL.", "FPN")  # of detectors of all kinds
    ),
    Unused("INPUT.CROP.ENABLED", "crops are those of crop_tags in the annotation", TAGS),
    Unused("INPUT.MIN_SIZE_TRAIN", _TAG_SIZE, TAGS, harmless=((0,),)),
    Unused("INPUT.MAX_SIZE_TRAIN", _TAG_SIZE, TAGS),
    Unused("INPUT.MIN_SIZE_TRAIN_SAMPLING", _TAG_SIZE, TAGS),
    Unused("INPUT.MIN_SIZE_TEST", _TAG_SIZE, TAGS, harmless=(0,)),
    Unused("INPUT.MAX_SIZE_TEST", _TAG_SIZE, TAGS),
    Unused("INPUT.RANDOM_FLIP", "crops are mirrored left to right", TAGS, harmless=("none",)),
    Unused("VIS_PERIOD", "a model of tags has no label map to draw", TAGS),
    Unused(
        "VIS_PERIOD",
        "MODEL.WSIS.DETECTOR_BOXES has the boxes of whole images, and it draws training crops",
        ("instance_piecewise", "end_to_end"),
        lambda cfg: bool(cfg.MODEL.WSIS.DETECTOR_BOXES),
    ),
)


def check_used(cfg: CfgNode, defaults: CfgNode) -> None:
    """Refuse settings that do nothing.

    Args:
        cfg: a merged config.
        defaults: the same before anything was merged.

    Raises:
        InputError: naming the first key that is empty, or one of :data:`UNUSED` that differs from
            its default.
    """
    for section, node in defaults.items():
        for key, value, default in _leaves(section, cfg[section], node):
            if value is None and default is not None:  # yacs takes it for a value of any type
                raise InputError(f"{key} is empty; give it a value, or leave it out: {default!r}")
    kind = kind_of(cfg)
    for row in UNUSED:
        if (row.kinds and kind not in row.kinds) or not row.where(cfg):
            continue
        nodes = (value_at(content, row.prefix) for content in (cfg, defaults))
        for key, value, default in _leaves(row.prefix, *nodes):
            if _lists(value) not in (_lists(default), *map(_lists, row.harmless)):
                raise InputError(
                    f"{key} is {value!r}, which does nothing in {_describe(cfg)}: {row.why}; "
                    f"leave it at {default!r}"
                )
    node = cfg.MODEL.PROPOSAL_GENERATOR
    if kind in OWN and node.NAME in ("PrecomputedProposals", "RRPN"):
        raise InputError(
            f"MODEL.PROPOSAL_GENERATOR.NAME is {node.NAME!r}: {_NO_PROPOSALS}, of upright boxes; "
            "expected 'RPN'"
        )
    head = cfg.MODEL.SEM_SEG_HEAD
    if kind in PANOPTIC and head.NAME == "PSPHead" and len(head.IN_FEATURES) != 1:
        raise InputError(
            f"MODEL.SEM_SEG_HEAD.IN_FEATURES is {list(head.IN_FEATURES)}, PSPHead reads one "
            "feature: expected e.g. ['res5']"
        )


def _describe(cfg: CfgNode) -> str:
    name = cfg.MODEL.META_ARCHITECTURE
    return f"stage {cfg.MODEL.WSIS.STAGE!r}" if name == "WeakPanopticRCNN" else f"a {name}"


def _lists(value: Any) -> Any:
    """The value with lists for tuples: a file that was written and read has lost the difference."""
    return [_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def _leaves(key: str, value: Any, default: Any) -> Iterable[tuple[str, Any, Any]]:
    """Return a section's keys with values and defaults; keys of another project are its own."""
    if isinstance(value, CfgNode):
        for name, inner in default.items():
            yield from _leaves(f"{key}.{name}", value[name], inner)
    else:
        yield key, value, default
