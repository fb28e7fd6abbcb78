# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Checks of values: each key's range or names, for any run and for one that trains."""

from collections.abc import Callable, Iterable
from math import inf
from typing import Any, NamedTuple

from detectron2.config import CfgNode

from wsis_d2.config_checks.kinds import PANOPTIC
from wsis_d2.utils.errors import InputError


def value_at(cfg: CfgNode, key: str) -> Any:
    """Return the value of a key, e.g. "MODEL.WEIGHTS"."""
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


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


def _pairs(key: str, *words: str) -> Value:
    def fits(value: Any) -> bool:
        return all(
            isinstance(row, list | tuple) and len(row) == 2 and all(isinstance(x, str) for x in row)
            for row in value
        )

    return Value(key, fits, f"a list of [{', '.join(words)}]")


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
    _pairs("MODEL.WSIS.DETECTOR_BOXES", "data set", "file"),
    Value("CAM.THRESHOLD", lambda value: 0 < value <= 1, "above 0, at most 1"),
    Value("CLEAN.SCORE_THRESHOLD", lambda value: 0 <= value <= 1, "0 (off) to 1"),
    _at_least("ITERATIVE.WORKERS", 1),
    _pairs("ITERATIVE.BOX_STORES", "data set", "store folder"),
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
        value = value_at(cfg, key)
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
