# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Names of other projects are matched with the network's."""

import pickle

import torch
from helpers.part_networks import (
    DETECTOR,
)

from wsis_d2.checkpoint.names import match_ends, read_weights


def test_names_of_detectron_are_matched_by_their_longest_end():
    arrays = {"conv.weight": 1, "res2.conv.weight": 2, "fc.bias": 3}
    found = match_ends(arrays, ["a.res2.conv.weight", "b.res2.conv.weight", "b.conv.weight", "x"])
    assert found == {"a.res2.conv.weight": 2, "b.res2.conv.weight": 2, "b.conv.weight": 1,
                     "fc.bias": 3}  # fmt: skip


def test_a_detector_of_detectron_fills_by_names(network, trained, tmp_path):
    """Caffe2 puts the background first and gives its boxes a place."""
    _, model = network(*DETECTOR)
    ours = {
        "fc6_w": "rcnn.roi_heads.box_head.fc1.weight",
        "fc7_b": "rcnn.roi_heads.box_head.fc2.bias",
        "cls_score_w": "rcnn.roi_heads.box_predictor.cls_score.weight",
    }
    state = model.detector.state_dict()
    blobs = {c2: state[name].numpy().copy() for c2, name in ours.items()}
    path = tmp_path / "detection.pkl"
    path.write_bytes(pickle.dumps({"blobs": blobs}))
    weights = read_weights(str(path), "KEY")
    assert weights.loose and not weights.backbone
    found = match_ends(weights.arrays, state)
    assert torch.equal(found[ours["fc6_w"]], state[ours["fc6_w"]])
    scores = found[ours["cls_score_w"]]
    assert torch.equal(scores, state[ours["cls_score_w"]].roll(-1, 0))
