# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The table of stages."""

import pytest

from wsis_d2.config import read_config
from wsis_d2.structures.stages import STAGES, stage_named, stage_of


def test_a_stage_trains_parts_that_it_has():
    assert list(STAGES) == ["detector", "semantic", "instance_piecewise", "end_to_end"]
    for name, stage in STAGES.items():
        assert stage.name == str(stage) == name
        assert stage.trained and set(stage.trained) <= set(stage.parts)
        # Paper 3.5: no gradient into the detector once the parts are joined.
        assert not (stage.joint and "detector" in stage.trained)


def test_the_stage_of_a_config():
    cfg = read_config(None, ["MODEL.META_ARCHITECTURE", "WeakPanopticRCNN"])
    assert stage_of(cfg) is STAGES["instance_piecewise"]
    other = read_config(None, ["MODEL.META_ARCHITECTURE", "TagSegmenter"])
    assert stage_of(other).parts == () and not stage_of(other).joint
    with pytest.raises(ValueError, match="MODEL.WSIS.STAGE is 'both', expected one of detector"):
        stage_named("both")
