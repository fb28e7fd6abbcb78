# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The config keys that name weights."""

from helpers.part_networks import (
    SEMANTIC,
)

from wsis_d2.checkpoint.weight_keys import only_weights


def test_only_the_named_weights_stay(network):
    cfg, _ = network(*SEMANTIC, "MODEL.WEIGHTS", "a", "MODEL.WSIS.DETECTOR_WEIGHTS", "b",
                     "MODEL.SEMANTIC.BACKBONE_WEIGHTS", "c",
                     "ITERATIVE.FIRST_WEIGHTS", "d")  # fmt: skip
    found = only_weights(cfg, semantic="e")
    assert found.is_frozen() and cfg.MODEL.WEIGHTS == "a"
    assert [found.MODEL.WEIGHTS, found.MODEL.WSIS.DETECTOR_WEIGHTS,
            found.MODEL.WSIS.SEMANTIC_WEIGHTS, found.MODEL.SEMANTIC.BACKBONE_WEIGHTS,
            found.ITERATIVE.FIRST_WEIGHTS] == ["", "", "e", "", ""]  # fmt: skip
