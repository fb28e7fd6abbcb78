# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Networks of each stage and files of weights, small ones."""

import pickle

import pytest
import torch
from detectron2.modeling import build_model
from helpers.part_networks import caffe2_resnet50
from helpers.tiny_panoptic import TinyData, tiny_cfg
from torch import nn


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    tiny = TinyData(tmp_path_factory.mktemp("tiny") / "data")
    yield tiny
    tiny.close()


@pytest.fixture
def network(data, tmp_path):
    """Config and network with overrides."""

    def build(*opts):
        cfg = tiny_cfg(tmp_path / "out", *opts)
        return cfg, build_model(cfg)

    return build


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """Checkpoints as training leaves them: detector, semantic, end_to_end, plain Detectron2."""
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(4)
    files = {}
    for stage in ("detector", "semantic", "end_to_end"):
        state = build_model(tiny_cfg(folder, "MODEL.WSIS.STAGE", stage)).state_dict()
        files[stage] = str(folder / f"{stage}.pth")
        torch.save({"model": state, "iteration": 3}, files[stage])
        if stage == "detector":
            plain = {k.removeprefix("detector.rcnn."): v for k, v in state.items()}
            # A detector of the zoo may have a mask head too, and buffers of older versions.
            plain["roi_heads.mask_head.deconv.weight"] = torch.zeros(2)
            plain["proposal_generator.anchor_generator.cell_anchors.0"] = torch.zeros(3, 4)
            files["plain"] = str(folder / "plain.pth")
            torch.save({"model": plain}, files["plain"])
    return files


@pytest.fixture(scope="session")
def imagenet(tmp_path_factory):
    """R-50.pkl of Detectron and its arrays."""
    path = tmp_path_factory.mktemp("imagenet") / "R-50.pkl"
    arrays = caffe2_resnet50()
    path.write_bytes(pickle.dumps(arrays))
    return str(path), arrays


@pytest.fixture(scope="session")
def resnet18(tmp_path_factory):
    """resnet18.pth of torchvision, with statistics that are not the initial ones."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model = resnet18()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.1)
    path = tmp_path_factory.mktemp("torchvision") / "resnet18.pth"
    torch.save(model.state_dict(), path)
    return str(path), model.eval()
