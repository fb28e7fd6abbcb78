# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""A detector that is shown images of another size than it learned from is told of."""

import logging

import pytest
from detectron2.config import get_cfg

from wsis_d2.checkpoint.detector_size import warn_of_detector_size
from wsis_d2.config import add_wsis_config


@pytest.mark.parametrize(
    ("beside", "warned"),
    [
        ("INPUT: {MIN_SIZE_TEST: 320, MAX_SIZE_TEST: 533}", True),
        ("INPUT: {MIN_SIZE_TEST: 800, MAX_SIZE_TEST: 1333}", False),
        ("INPUT: {}", False),
        ("[", False),
        (None, False),
    ],
)
def test_other_sizes_are_told(beside, warned, tmp_path, caplog):
    cfg = get_cfg()  # 800 and 1333
    add_wsis_config(cfg)
    cfg.MODEL.WSIS.DETECTOR_WEIGHTS = str(tmp_path / "model_final.pth")
    if beside is not None:
        (tmp_path / "config.yaml").write_text(beside)
    with caplog.at_level(logging.WARNING, "wsis_d2"):
        logging.getLogger("wsis_d2").propagate = True
        warn_of_detector_size(cfg)
    assert (
        "INPUT.MIN_SIZE_TEST 320" in caplog.text and "has INPUT.MIN_SIZE_TEST 800" in caplog.text
    ) == warned
    assert bool(caplog.records) == warned
