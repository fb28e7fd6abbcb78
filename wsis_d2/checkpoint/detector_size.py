# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Whether a trained detector sees images as large as those that it learned from."""

import logging
from pathlib import Path

from detectron2.config import CfgNode

from wsis_d2.utils.errors import InputError
from wsis_d2.utils.yaml_io import parse_yaml

logger = logging.getLogger(__name__)

_KEYS = ("MIN_SIZE_TEST", "MAX_SIZE_TEST")


def warn_of_detector_size(cfg: CfgNode) -> None:
    """Warn where MODEL.WSIS.DETECTOR_WEIGHTS come from a run with other test sizes than this one.

    A detector of objects of one size finds few of another, and nothing else would tell: the
    sizes are those of the run that uses it. Files without a run's config.yaml beside them, and
    URLs, tell nothing.
    """
    path = cfg.MODEL.WSIS.DETECTOR_WEIGHTS
    beside = Path(path).parent / "config.yaml"
    if not path or "://" in path or not beside.is_file():
        return
    try:
        inputs = parse_yaml(beside.read_text(encoding="utf-8"), beside)["INPUT"]
        trained = {key: inputs[key] for key in _KEYS}
    except (OSError, ValueError, KeyError, TypeError, InputError):
        return  # of another program
    own = {key: cfg.INPUT[key] for key in _KEYS}
    if own != trained:
        logger.warning(
            "MODEL.WSIS.DETECTOR_WEIGHTS %s was trained with %s, this run has %s; set the same, "
            "or the detector finds fewer objects", path,
            ", ".join(f"INPUT.{k} {v}" for k, v in trained.items()),
            ", ".join(f"INPUT.{k} {v}" for k, v in own.items()),
        )  # fmt: skip
