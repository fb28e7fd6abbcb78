# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The config keys that name a network's weights."""

from pathlib import Path

from detectron2.config import CfgNode

from wsis_d2.config_checks.values import value_at
from wsis_d2.structures.stages import stage_named

PART_KEYS = {
    "detector": "MODEL.WSIS.DETECTOR_WEIGHTS",
    "semantic": "MODEL.WSIS.SEMANTIC_WEIGHTS",
}

BACKBONE_KEY = "MODEL.SEMANTIC.BACKBONE_WEIGHTS"

# Every key that names a checkpoint of the network.
WEIGHT_KEYS = ("MODEL.WEIGHTS", *PART_KEYS.values(), BACKBONE_KEY, "ITERATIVE.FIRST_WEIGHTS")


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
    return [value_at(cfg, key) for key in WEIGHT_KEYS if key not in unused]
