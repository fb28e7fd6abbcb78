# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""What the labels of a run depend on: its config and the hashes of its files."""

import hashlib
import json
import os
from collections.abc import Mapping

from detectron2.config import CfgNode

from wsis_d2.checkpoint.weight_keys import WEIGHT_KEYS, weight_files
from wsis_d2.engine.resume import plain_config
from wsis_d2.utils.files import sha256_file

# Keys that hold paths; what they lead to is known by its hash.
_PATH_KEYS = (
    "DATASETS.OWN",
    "DATASETS.LABEL_STORES",
    "ITERATIVE.BOX_STORES",
    *WEIGHT_KEYS,
)


def config_fingerprint(cfg: CfgNode, store_hashes: Mapping[str, str]) -> str:
    """Identify what a run's labels depend on, wherever its files lie.

    Args:
        cfg: the run's config.
        store_hashes: dataset to the recipe hash of its round-0 labels.
    """
    weights = []
    for path in weight_files(cfg):
        if path and os.path.isfile(path):
            weights.append(sha256_file(path))
        else:
            weights.append(path)
    text = json.dumps(
        [plain_config(cfg, _PATH_KEYS), sorted(store_hashes.items()), weights], sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]
