# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Scenes with boxes and tags, and networks of tags as training would store them."""

import pytest
import torch
from detectron2.modeling import build_model
from helpers.tag_networks import plain_config, tag_classifier_config

from wsis_d2.data.datasets.own.weak import load_weak_json
from wsis_d2.data.datasets.sample.dataset import prepare_sample

THINGS = frozenset({0, 1, 2})


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("tag_labels")
    prepare_sample(root / "data", 3, 1)
    return root, load_weak_json(root / "data/weak_train.json", root / "data/images/train")


@pytest.fixture(scope="module")
def classifier(scenes):
    """A network of random weights, stored as training would."""
    folder = scenes[0] / "classifier"
    folder.mkdir()
    torch.manual_seed(0)
    cfg = tag_classifier_config(7, "CAM.LAYER", "backbone.res3")
    model = build_model(cfg)
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder / "model_final.pth"


@pytest.fixture(scope="module")
def segmenter(scenes):
    """A segmenter of random weights, stored as training would."""
    folder = scenes[0] / "segmenter"
    folder.mkdir()
    cfg = plain_config(
        "MODEL.META_ARCHITECTURE", "TagSegmenter", "MODEL.DEVICE", "cpu",
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 7, "MODEL.WSIS.THING_IDS", sorted(THINGS),
    )  # fmt: skip
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder / "model_final.pth"
