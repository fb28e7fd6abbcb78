# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Settings that would do nothing, and values that cannot be: one line that names the key.

A file may be shared by the runs of a pipeline, so keys of another part of it may stand in any
config: a semantic recipe may tell of the detector. What no run of this kind, nor another part,
ever reads is refused as soon as it differs from its default.
"""

from collections.abc import Callable, Iterable
from functools import partial
from math import inf
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode

from wsis_d2.structures.stages import STAGES, stage_of
from wsis_d2.utils.errors import InputError

JOINT = tuple(stage.name for stage in STAGES.values() if stage.joint)
PANOPTIC = tuple(STAGES)
TAGS = ("TagClassifier", "TagSegmenter")
OWN = (*PANOPTIC, *TAGS)
_OWN_BACKBONES = (
    "build_resnet_any_backbone",
    "build_resnet_any_fpn_backbone",
    "build_pspnet_resnet_backbone",
)
_MAPPERS = {"TagClassifier": "TagMapper", "TagSegmenter": "TagRegionMapper"}


def kind_of(cfg: CfgNode) -> str:
    """Return the stage of a WeakPanopticRCNN, else the meta-architecture."""
    return stage_of(cfg).name or cfg.MODEL.META_ARCHITECTURE


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
)


def check_used(cfg: CfgNode, defaults: CfgNode) -> None:
    """Refuse settings that do nothing.

    Args:
        cfg: a merged config.
        defaults: the same before anything was merged.

    Raises:
        InputError: naming the first key of :data:`UNUSED` that differs from its default.
    """
    kind = kind_of(cfg)
    for row in UNUSED:
        if (row.kinds and kind not in row.kinds) or not row.where(cfg):
            continue
        for key, value, default in _leaves(row.prefix, _at(cfg, row.prefix), defaults):
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


def _at(cfg: CfgNode, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def _lists(value: Any) -> Any:
    """The value with lists for tuples: a file that was written and read has lost the difference."""
    return [_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def _leaves(key: str, value: Any, defaults: CfgNode) -> Iterable[tuple[str, Any, Any]]:
    if isinstance(value, CfgNode):
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}", inner, defaults)
    else:
        yield key, value, _at(defaults, key)


class Value(NamedTuple):
    """What a key's value must be."""

    key: str
    fits: Callable[[Any], bool]
    expected: str


def _one_of(key: str, *names: str) -> Value:
    return Value(key, lambda value: value in names, "one of " + ", ".join(map(repr, names)))


def _at_least(key: str, low: float) -> Value:
    return Value(key, lambda value: low <= value < inf, f"at least {low}")


def _positive(key: str) -> Value:
    return Value(key, lambda value: 0 < value < inf, "a number above 0")


def _sizes(value: Any) -> bool:
    sizes = (value,) if isinstance(value, int) else tuple(value)
    return len(sizes) > 0 and all(size >= 0 for size in sizes)


def _four_each(value: Any) -> bool:
    return all(
        isinstance(row, (list, tuple))
        and len(row) == 4
        and all(isinstance(x, str) for x in row[:2])
        and all(isinstance(x, (int, float)) for x in row[2:])
        for row in value
    )


def _three(fits: Callable[[float], bool]) -> Callable[[Any], bool]:
    return lambda value: len(value) == 3 and all(fits(number) for number in value)


# Of any run.
VALUES = (
    *(
        Value(f"{part}{name}", _three(fits), f"three numbers{words}")
        for part in ("MODEL.", "MODEL.SEMANTIC.")
        for name, fits, words in (
            ("PIXEL_MEAN", lambda number: -inf < number < inf, ""),
            ("PIXEL_STD", lambda number: 0 < number < inf, " above 0"),
        )
    ),
    _one_of("INPUT.FORMAT", "BGR", "RGB"),
    _at_least("INPUT.MIN_SIZE_TEST", 0),
    _at_least("INPUT.MAX_SIZE_TEST", 1),
    _at_least("DATALOADER.NUM_WORKERS", 0),
    _one_of("MODEL.WSIS.STAGE", *PANOPTIC),
    _one_of("SOLVER.AMP.DTYPE", "bfloat16", "float16"),
    _at_least("TEST.IMS_PER_BATCH", 1),
    _one_of("TEST.PQ_VARIANT", "coco", "paper"),
    _one_of("TEST.MATCHING", "unique", "paper"),
    _one_of("TEST.SCORE_MODE", "score", "detection", "mean_confidence", "both", "one", "oracle"),
    _one_of("TEST.INSTANCE_AP", "coco", "cityscapes", "none"),
    Value(
        "TEST.EXPECTED_RESULTS",
        _four_each,
        "a list of [task, metric, value, tolerance], e.g. [['panoptic_seg', 'PQ', 38.5, 0.2]]",
    ),
)
# Of a run that trains.
TRAINING_VALUES = (
    _at_least("SOLVER.MAX_ITER", 1),
    _at_least("SOLVER.IMS_PER_BATCH", 1),
    _positive("SOLVER.BASE_LR"),
    _at_least("SOLVER.CHECKPOINT_PERIOD", 1),
    _at_least("SOLVER.REFERENCE_WORLD_SIZE", 0),
    _at_least("SOLVER.WARMUP_ITERS", 0),
    Value("SOLVER.WARMUP_FACTOR", lambda value: 0 <= value <= 1, "0 to 1"),
    _one_of("SOLVER.WARMUP_METHOD", "linear", "constant"),
    Value("SOLVER.MOMENTUM", lambda value: 0 <= value < 1, "0 to below 1"),
    _at_least("SOLVER.WEIGHT_DECAY", 0),
    _at_least("SOLVER.WEIGHT_DECAY_NORM", 0),
    _at_least("SOLVER.BIAS_LR_FACTOR", 0),
    _at_least("SOLVER.HEAD_LR_FACTOR", 0),
    _positive("SOLVER.GAMMA"),
    _one_of("SOLVER.OPTIMIZER", "SGD", "AdamW"),
    _one_of("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "value", "norm", "full_model"),
    _positive("SOLVER.CLIP_GRADIENTS.CLIP_VALUE"),
    Value(
        "SOLVER.STEPS",
        lambda value: all(x < y for x, y in zip((0, *value), (*value, inf), strict=True)),
        "ascending iterations above 0",
    ),
    _at_least("TEST.EVAL_PERIOD", 0),
    _at_least("VIS_PERIOD", 0),
    _one_of("INPUT.RANDOM_FLIP", "horizontal", "vertical", "none"),
    _one_of("INPUT.MIN_SIZE_TRAIN_SAMPLING", "choice", "range"),
    Value("INPUT.MIN_SIZE_TRAIN", _sizes, "one or more sizes; 0 leaves the size"),
    _at_least("INPUT.MAX_SIZE_TRAIN", 1),
    Value(
        "INPUT.SCALE_RANGE",
        lambda value: len(value) == 2 and 0 < value[0] <= value[1] < inf,
        "[low, high] with 0 < low <= high",
    ),
    Value("INPUT.COLOR_JITTER", lambda value: 0 <= value < 1, "0 to below 1"),
    _one_of("INPUT.CROP.TYPE", "relative_range", "relative", "absolute", "absolute_range"),
    Value(
        "INPUT.CROP.SIZE",
        lambda value: len(value) == 2 and all(0 < side < inf for side in value),
        "[height, width] above 0",
    ),
    Value(
        "DATALOADER.ASPECT_RATIO_GROUPING",
        lambda value: not value,
        "False: batches are drawn whatever the images' shapes, so that a run can be repeated",
    ),
)


def check_values(cfg: CfgNode, values: Iterable[Value] = VALUES) -> None:
    """Refuse values that cannot be.

    Raises:
        InputError: naming the first key, its value and what was expected.
    """
    for key, fits, expected in values:
        value = _at(cfg, key)
        try:
            good = fits(value)
        except (TypeError, ValueError):
            good = False
        if not good:
            raise InputError(f"{key} is {value!r}, expected {expected}")
    relative = cfg.INPUT.CROP.TYPE.startswith("relative")
    if cfg.INPUT.CROP.ENABLED and relative and max(cfg.INPUT.CROP.SIZE) > 1:
        raise InputError(
            f"INPUT.CROP.SIZE is {list(cfg.INPUT.CROP.SIZE)}, expected shares of the image with "
            f"INPUT.CROP.TYPE {cfg.INPUT.CROP.TYPE!r}; pixels want 'absolute'"
        )


def check_trainable(cfg: CfgNode) -> None:
    """Refuse what training cannot do, before anything is written or computed.

    Raises:
        InputError: naming the first key that cannot be.
    """
    check_values(cfg, (*VALUES, *TRAINING_VALUES))
    mapper, name = cfg.INPUT.DATASET_MAPPER_NAME, cfg.MODEL.META_ARCHITECTURE
    wanted = _MAPPERS.get(name, "PanopticMapper")
    if mapper in (*_MAPPERS.values(), "PanopticMapper") and mapper != wanted:
        raise InputError(
            f"INPUT.DATASET_MAPPER_NAME is {mapper!r}, whose samples are not a {name}'s; expected "
            f"{wanted!r}"
        )
    if cfg.TEST.EXPECTED_RESULTS and len(cfg.DATASETS.TEST) != 1:
        raise InputError(
            f"TEST.EXPECTED_RESULTS: DATASETS.TEST is {list(cfg.DATASETS.TEST)}, expected the one "
            "set that the results are of"
        )
    if cfg.TEST.TRUE_PARTS and cfg.RUN_VARIANT == "main":
        raise InputError(
            f"TEST.TRUE_PARTS is {list(cfg.TEST.TRUE_PARTS)}: such a run is not the model's own "
            "result; give it a name, e.g. RUN_VARIANT true_boxes"
        )


def check_device(cfg: CfgNode) -> None:
    """Refuse a MODEL.DEVICE that is not here.

    Raises:
        InputError: no device's name, or a GPU that is not visible.
    """
    name = cfg.MODEL.DEVICE
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"MODEL.DEVICE is {name!r}, expected 'cpu', 'cuda' or 'cuda:N'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise InputError(
            f"MODEL.DEVICE is {name!r}, and {count or 'no'} GPU{'s are' if count > 1 else ' is'} "
            f"visible; expected {repr('cuda') + ' or ' if count else ''}'cpu'"
        )
