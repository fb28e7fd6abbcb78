# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""What the labels of a run depend on: its config and the hashes of its files."""

import hashlib
import json
import os
from collections.abc import Mapping

from detectron2.config import CfgNode

# Keys that may differ between a run that was stopped and the one that continues it.
# (WEAK_LABELS and CAM made the labels of round 0, which are known by their hash.)
_FREE_KEYS = (
    "OUTPUT_DIR",
    "DATALOADER.NUM_WORKERS",
    "ITERATIVE.WORKERS",
    "VIS_PERIOD",
    "WEAK_LABELS",
    "CAM",
)

# Keys that hold paths; what they lead to is known by its hash.
_PATH_KEYS = (
    "DATASETS.OWN",
    "DATASETS.LABEL_STORES",
    "ITERATIVE.BOX_STORES",
    "ITERATIVE.FIRST_WEIGHTS",
    "MODEL.WEIGHTS",
    "MODEL.WSIS.DETECTOR_WEIGHTS",
    "MODEL.WSIS.SEMANTIC_WEIGHTS",
)


def plain_config(cfg: CfgNode, without: tuple[str, ...] = ()) -> dict:
    """Return the config as nested JSON values, without keys that do not change results.

    Args:
        cfg: a config.
        without: more keys to leave out.
    """
    content = json.loads(json.dumps(CfgNode.load_cfg(cfg.dump())))
    for key in (*_FREE_KEYS, *without):
        *parents, last = key.split(".")
        node = content
        for parent in parents:
            node = node[parent]
        node.pop(last, None)
    return content


def config_fingerprint(cfg: CfgNode, store_hashes: Mapping[str, str]) -> str:
    """Identify what a run's labels depend on, wherever its files lie.

    Args:
        cfg: the run's config.
        store_hashes: dataset to the recipe hash of its round-0 labels.
    """
    weights = []
    paths = (cfg.MODEL.WEIGHTS, cfg.MODEL.WSIS.SEMANTIC_WEIGHTS, cfg.ITERATIVE.FIRST_WEIGHTS)
    for path in paths:
        if path and os.path.isfile(path):
            with open(path, "rb") as file:
                weights.append(hashlib.file_digest(file, "sha256").hexdigest())
        else:
            weights.append(path)
    text = json.dumps(
        [plain_config(cfg, _PATH_KEYS), sorted(store_hashes.items()), weights], sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]
