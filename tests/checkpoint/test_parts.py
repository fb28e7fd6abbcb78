# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""A trained network fills all of a network, or is refused."""

import pytest
import torch
from helpers.part_networks import (
    ANEW,
    DETECTOR,
    JOINT,
    NARROW,
    SEMANTIC,
    arrays_of,
    same,
    save,
)

from wsis_d2.checkpoint.parts import load_for_evaluation, load_trained
from wsis_d2.utils.errors import InputError


def test_an_evaluation_without_weights_is_refused(network, trained):
    for stage in (DETECTOR, SEMANTIC, JOINT):
        cfg, model = network(*stage, *ANEW)
        with pytest.raises(InputError, match="^MODEL.WEIGHTS is empty: .*model_final.pth$"):
            load_for_evaluation(cfg, model)
    cfg, model = network(*JOINT, "MODEL.WSIS.SEMANTIC_WEIGHTS", trained["semantic"])
    with pytest.raises(InputError, match="^MODEL.WEIGHTS is empty, MODEL.WSIS.DETECTOR_WEIGHTS t"):
        load_for_evaluation(cfg, model)
    parts = ("MODEL.WSIS.SEMANTIC_WEIGHTS", trained["semantic"],
             "MODEL.WSIS.DETECTOR_WEIGHTS", trained["detector"])  # fmt: skip
    cfg, model = network(*JOINT, *parts)
    load_for_evaluation(cfg, model)
    assert same(model.detector, arrays_of(trained["detector"]), "detector.")
    assert same(model.semantic, arrays_of(trained["semantic"]), "semantic.")
    cfg, model = network(*JOINT, *parts, "MODEL.WEIGHTS", trained["end_to_end"])
    load_for_evaluation(cfg, model)
    assert same(model, arrays_of(trained["end_to_end"]))


@pytest.mark.parametrize("stage", [DETECTOR, SEMANTIC, JOINT])
def test_a_network_of_another_width_is_not_half_loaded(network, trained, stage):
    cfg, model = network(*stage, *NARROW, *ANEW, "MODEL.WEIGHTS", trained[stage[1]])
    before = {n: v.clone() for n, v in model.state_dict().items()}
    with pytest.raises(InputError, match=r"MODEL.WEIGHTS: .*in another shape: .* is .*, not .*12"):
        load_for_evaluation(cfg, model)
    assert same(model, before)


def test_a_trained_network_is_the_whole_network(network, trained, imagenet, tmp_path):
    _, model = network(*SEMANTIC)
    arrays = arrays_of(trained["end_to_end"])
    load_trained(model, trained["end_to_end"], key="KEY")  # its semantic part
    released = {n: v for n, v in arrays.items() if ".aux_" not in n}
    load_trained(model, save(tmp_path / "released.pth", released), key="KEY")
    halves = {n: v.half() for n, v in arrays.items() if n.startswith("semantic.")}
    for prefix in ("module.", "_orig_mod.", "module._orig_mod."):
        wrapped = {f"{prefix}{n}": v for n, v in halves.items()}
        load_trained(model, save(tmp_path / "wrapped.pth", wrapped), key="KEY")
    _, merge = network(*JOINT, "MODEL.INSTANCE_HEAD.NAME", "BoxMergeHead")
    load_trained(merge, trained["end_to_end"], key="KEY")  # the CRF has no place in it
    deeper = {**arrays, "semantic.backbone.res5.2.conv1.weight": torch.zeros(64, 64, 3, 3)}
    gone = {n: v for n, v in arrays.items() if "predictor" not in n}
    for changed, message in (
        (deeper, r"has 1 arrays that .*: semantic.backbone.res5.2.conv1.weight"),
        (gone, r"lacks 2 of \d+ arrays of .*: semantic.head.predictor.weight, .*bias"),
    ):
        with pytest.raises(InputError, match=rf"^KEY: .*changed.pth: {message}"):
            load_trained(model, save(tmp_path / "changed.pth", changed), key="KEY")
    for other in (trained["detector"], imagenet[0]):
        with pytest.raises(InputError, match="fills none of the"):
            load_trained(model, other, key="KEY")
    with pytest.raises(InputError, match="^KEY: gone.pth: no such file; how to get it"):
        load_trained(model, "gone.pth", key="KEY", hint="how to get it")
