# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Weights of ImageNet networks fill the backbones that they fit."""

import pickle

import numpy as np
import pytest
import torch
from helpers.part_networks import (
    ANEW,
    JOINT,
    R18,
    R50,
    SEMANTIC,
    arrays_of,
    check_resnet50,
    same,
)

from wsis_d2.checkpoint.backbones import backbones_of
from wsis_d2.checkpoint.start import load_for_training
from wsis_d2.utils.errors import InputError


def test_caffe2_weights_fill_both_backbones_of_a_joint_stage(network, imagenet, trained):
    path, arrays = imagenet
    cfg, model = network(*JOINT, *R50, *ANEW, "MODEL.WEIGHTS", path)
    assert backbones_of(model) == ["detector.rcnn.backbone.bottom_up", "semantic.backbone"]
    load_for_training(cfg, model)
    check_resnet50(model.semantic.backbone, arrays)
    check_resnet50(model.detector.rcnn.backbone.bottom_up, arrays)
    # The heads of the detector, which is not trained, have no weights: named without the option.
    cfg.defrost()
    cfg.MODEL.WSIS.PARTIAL_WEIGHTS = False
    with pytest.raises(InputError, match="^MODEL.WSIS.DETECTOR_WEIGHTS: .* never trained would"):
        load_for_training(cfg, model)


def test_caffe2_weights_leave_alone_what_has_its_own(network, imagenet, trained):
    path, arrays = imagenet
    cfg, model = network(
        *JOINT, *R50[8:], "MODEL.WEIGHTS", path, "MODEL.WSIS.DETECTOR_WEIGHTS", trained["detector"]
    )
    load_for_training(cfg, model)
    check_resnet50(model.semantic.backbone, arrays)
    assert same(model.detector, arrays_of(trained["detector"]), "detector.")
    cfg.defrost()
    cfg.MODEL.WSIS.SEMANTIC_WEIGHTS = trained["semantic"]
    small = network(*JOINT)[1]
    with pytest.raises(InputError, match="holds a backbone, and every backbone of .* its weights"):
        load_for_training(cfg, small)


def test_caffe2_weights_start_the_semantic_backbone(network, imagenet):
    path, arrays = imagenet
    cfg, model = network(*SEMANTIC, *R50, "MODEL.SEMANTIC.BACKBONE_WEIGHTS", path)
    load_for_training(cfg, model)
    check_resnet50(model.semantic.backbone, arrays)
    cfg, model = network(
        *SEMANTIC, *R50, "MODEL.SEMANTIC.BACKBONE_WEIGHTS", path, "INPUT.FORMAT", "RGB"
    )
    load_for_training(cfg, model)
    found = model.semantic.backbone.stem.conv1.weight.detach().numpy()
    assert np.array_equal(found, arrays["conv1_w"][:, ::-1])


@pytest.mark.parametrize("blocks", [-1, 1])
def test_a_backbone_of_another_depth_is_refused(network, imagenet, tmp_path, blocks):
    """A deeper network has every array of a shallower one."""
    arrays = dict(imagenet[1])
    for name in [n for n in arrays if n.startswith("res4_5_")]:
        value = arrays.pop(name) if blocks < 0 else arrays[name]
        if blocks > 0:
            arrays[name.replace("res4_5", "res4_6")] = value
    path = tmp_path / "other.pkl"
    path.write_bytes(pickle.dumps(arrays))
    cfg, model = network(*SEMANTIC, *R50, "MODEL.WEIGHTS", str(path))
    message = "has 9 arrays that" if blocks > 0 else "lacks 9 of 159 arrays of"
    with pytest.raises(InputError, match=f"MODEL.WEIGHTS: .*other.pkl: {message} .*res4.[56]"):
        load_for_training(cfg, model)


def test_two_backbones_that_differ_name_the_keys_of_each(network, imagenet):
    cfg, model = network(*JOINT, *R50[:8], *ANEW, "MODEL.WEIGHTS", imagenet[0])
    with pytest.raises(InputError, match="DETECTOR_WEIGHTS and MODEL.SEMANTIC.BACKBONE_WEIGHTS$"):
        load_for_training(cfg, model)


def test_torchvisions_resnet_computes_the_same_here(network, resnet18):
    path, theirs = resnet18
    cfg, model = network(*JOINT, *R18, *ANEW, "MODEL.WEIGHTS", path)
    load_for_training(cfg, model.eval())
    ours = model.detector.rcnn.backbone.bottom_up
    rgb = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        found = ours(rgb.flip(1))  # the network sees BGR
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(rgb))))
        for stage in (2, 3, 4, 5):
            x = getattr(theirs, f"layer{stage - 1}")(x)
            assert torch.allclose(found[f"res{stage}"], x, atol=1e-5)
    assert same(model.semantic.backbone, ours.state_dict())


def test_torchvisions_resnet_in_a_network_of_other_colours_or_strides(network, resnet18, tmp_path):
    from torchvision.models import resnet50

    cfg, model = network(*SEMANTIC, *R18, "MODEL.SEMANTIC.PIXEL_STD", [1.0, 1.0, 1.0],
                         "MODEL.WEIGHTS", resnet18[0])  # fmt: skip
    with pytest.raises(InputError, match=r"resnet18.pth: .*set MODEL.SEMANTIC.PIXEL_STD \[57"):
        load_for_training(cfg, model)
    with torch.device("meta"):
        shapes = resnet50().state_dict()
    path = tmp_path / "resnet50.pth"
    torch.save({n: torch.zeros(v.shape, dtype=v.dtype) for n, v in shapes.items()}, path)
    cfg, model = network(*SEMANTIC, *R50, "MODEL.WEIGHTS", str(path))
    with pytest.raises(InputError, match="set MODEL.SEMANTIC.RESNETS.STRIDE_IN_1X1 False"):
        load_for_training(cfg, model)
    cfg, model = network(*SEMANTIC, *R50, "MODEL.WEIGHTS", str(path),
                         "MODEL.SEMANTIC.RESNETS.STRIDE_IN_1X1", False)  # fmt: skip
    load_for_training(cfg, model)
    assert not any(p.any() for p in model.semantic.backbone.parameters())
