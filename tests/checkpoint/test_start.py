# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""What a training begins with: each file fills the parts that it holds, or is refused."""

import logging

import pytest
import torch
from helpers.part_networks import (
    ANEW,
    DETECTOR,
    JOINT,
    PIECEWISE,
    R50,
    SEMANTIC,
    arrays_of,
    same,
    save,
)

from wsis_d2.checkpoint.start import load_for_training
from wsis_d2.utils.errors import InputError


def test_weights_of_no_known_network_are_refused(network, tmp_path):
    from torchvision.models import mobilenet_v3_small

    path = tmp_path / "mobilenet.pth"
    torch.save(mobilenet_v3_small().state_dict(), path)
    for stage in (SEMANTIC, DETECTOR, JOINT):
        cfg, model = network(*stage, *ANEW, "MODEL.WEIGHTS", str(path))
        before = {n: v.clone() for n, v in model.state_dict().items()}
        with pytest.raises(InputError, match="mobilenet.pth: "):
            load_for_training(cfg, model)
        assert same(model, before)


def test_a_plain_detectron2_model_fills_the_detector(network, trained, tmp_path, caplog):
    wanted = arrays_of(trained["detector"])
    for key in ("MODEL.WEIGHTS", "MODEL.WSIS.DETECTOR_WEIGHTS"):
        cfg, model = network(*DETECTOR, key, trained["plain"])
        load_for_training(cfg, model)
        assert same(model, wanted)
    # Other classes: an error that names what differs, or, with the option, said in the log.
    other = {
        n: v[:2] if n.startswith("roi_heads.box_predictor.cls_score") else v
        for n, v in arrays_of(trained["plain"]).items()
    }
    path = save(tmp_path / "classes.pth", other)
    cfg, model = network(*DETECTOR, "MODEL.WEIGHTS", path)
    with pytest.raises(InputError) as caught:
        load_for_training(cfg, model)
    text = str(caught.value)
    assert text.startswith(f"MODEL.WEIGHTS: {path}: has 2 arrays of the detector in another shape")
    assert "cls_score.weight is (2, 16), not (3, 16)" in text and "\n" not in text
    assert "MODEL.WSIS.PARTIAL_WEIGHTS True" in text
    cfg, model = network(*DETECTOR, *ANEW, "MODEL.WEIGHTS", path)
    with caplog.at_level(logging.INFO, "wsis_d2"):
        load_for_training(cfg, model)
    assert "new, without weights of a file: detector.rcnn.roi_heads (2 arrays)" in caplog.text
    assert same(model.detector.rcnn.backbone, wanted, "detector.rcnn.backbone.")


def test_a_detector_is_no_semantic_network(network, trained):
    for name in ("plain", "detector"):
        cfg, model = network(*SEMANTIC, "MODEL.WEIGHTS", trained[name])
        with pytest.raises(InputError, match="detector, which the stage 'semantic' does not have"):
            load_for_training(cfg, model)
        cfg, model = network(*SEMANTIC, "MODEL.SEMANTIC.BACKBONE_WEIGHTS", trained[name])
        load_for_training(cfg, model)
        wanted = arrays_of(trained["detector"])
        assert same(model.semantic.backbone, wanted, "detector.rcnn.backbone.bottom_up.")


@pytest.mark.parametrize("stage", [JOINT, PIECEWISE])
def test_what_is_never_trained_needs_weights(network, trained, stage):
    missing = {"MODEL.WSIS.DETECTOR_WEIGHTS": trained["detector"]}
    if stage is PIECEWISE:
        missing["MODEL.WSIS.SEMANTIC_WEIGHTS"] = trained["semantic"]
    for key in missing:
        given = [x for k, v in missing.items() if k != key for x in (k, v)]
        cfg, model = network(*stage, *given)
        with pytest.raises(InputError, match=f"^{key}: .* at random: .*[.]PARTIAL_WEIGHTS True$"):
            load_for_training(cfg, model)
        cfg, model = network(*stage, *given, *ANEW)
        load_for_training(cfg, model)
    cfg, model = network(*stage, *[x for pair in missing.items() for x in pair])
    load_for_training(cfg, model)
    assert same(model.detector, arrays_of(trained["detector"]), "detector.")


def test_frozen_stages_of_a_backbone_need_weights(network, imagenet):
    cfg, model = network(*DETECTOR, *R50, "MODEL.BACKBONE.FREEZE_AT", 2)
    with pytest.raises(InputError, match="^MODEL.WEIGHTS: 11 arrays .*stem.conv1.weight"):
        load_for_training(cfg, model)
    cfg, model = network(
        *DETECTOR, *R50, "MODEL.BACKBONE.FREEZE_AT", 2, "MODEL.WEIGHTS", imagenet[0]
    )
    load_for_training(cfg, model)


def test_a_whole_checkpoint_fills_the_parts_of_a_stage(network, trained, caplog):
    wanted = arrays_of(trained["end_to_end"])
    for stage in (DETECTOR, SEMANTIC, JOINT, PIECEWISE):
        cfg, model = network(*stage, "MODEL.WEIGHTS", trained["end_to_end"])
        load_for_training(cfg, model)
        assert same(model, wanted)
    # What a run's config still names is not loaded over it, and that is said.
    cfg, model = network(*JOINT, "MODEL.WEIGHTS", trained["end_to_end"],
                         "MODEL.WSIS.DETECTOR_WEIGHTS", trained["detector"])  # fmt: skip
    load_for_training(cfg, model)
    assert same(model, wanted) and "DETECTOR_WEIGHTS is not used" in caplog.text


@pytest.mark.parametrize(
    ("stage", "key"),
    [(DETECTOR, "MODEL.WSIS.SEMANTIC_WEIGHTS"), (DETECTOR, "MODEL.SEMANTIC.BACKBONE_WEIGHTS")],
)
def test_weights_for_a_part_that_is_not_there_are_refused(network, trained, stage, key):
    cfg, model = network(*stage, key, trained["semantic"])
    with pytest.raises(InputError, match=f"^{key} is .*; leave it empty$"):
        load_for_training(cfg, model)
