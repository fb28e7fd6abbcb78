# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""timm's networks as backbones, against timm's own whole networks."""

import pytest
import timm
import torch

from wsis_d2.modeling.backbone import TimmBackbone
from wsis_d2.utils.errors import InputError

ALL = ["res2", "res3", "res4", "res5"]


def whole_network(name: str) -> torch.nn.Module:
    """timm's classifier with statistics unlike those at the start."""
    torch.manual_seed(0)
    network = timm.create_model(name).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("tf_efficientnet_lite0", lambda n, x: n.blocks(n.bn1(n.conv_stem(x)))),
        ("resnet10t", lambda n, x: n.forward_features(x)),
        ("convnext_atto", lambda n, x: n.stages(n.stem(x))),
    ],
)
def test_features_are_those_of_the_whole_network(name, stages):
    network = whole_network(name)
    # BGR, standardized unlike any network: the backbone brings it to the network's own.
    mean, std = [100.0, 110.0, 120.0], [50.0, 60.0, 70.0]
    backbone = TimmBackbone(name, out_features=ALL, pixel_mean=mean, pixel_std=std).eval()
    arrays, elsewhere = backbone.own_names(network.state_dict())
    assert set(arrays) - set(elsewhere) >= set(backbone.state_dict())
    backbone.load_state_dict({n: arrays[n] for n in backbone.state_dict()})
    image = torch.randint(0, 256, (1, 3, 64, 96)).float()  # BGR
    own = network.pretrained_cfg
    rgb = (image.flip(1) / 255 - torch.tensor(own["mean"]).view(3, 1, 1)) / torch.tensor(
        own["std"]
    ).view(3, 1, 1)
    with torch.no_grad():
        given = (image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        found = backbone(given)["res5"]
        expected = stages(network, rgb)
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_output_stride(stride):
    backbone = TimmBackbone("tf_efficientnet_lite0", out_features=ALL, output_stride=stride)
    strides = [min(s, stride) for s in (4, 8, 16, 32)]
    shapes = backbone.output_shape()
    assert [shapes[f].stride for f in ALL] == strides
    assert backbone.size_divisibility == 0
    found = backbone(torch.zeros(1, 3, 65, 97))
    for f, s in zip(ALL, strides, strict=True):
        assert found[f].shape == (1, shapes[f].channels, 64 // s + 1, 96 // s + 1)


def test_patches_need_multiples():
    backbone = TimmBackbone("convnext_atto", out_features=["res3", "res5"], output_stride=16)
    assert backbone.size_divisibility == 16
    assert list(backbone.output_shape()) == ["res3", "res5"]


def test_stages_behind_the_last_feature_are_not_built():
    short = TimmBackbone("resnet10t", out_features=["res3"])
    assert not any("layer3" in n or "layer4" in n for n in short.state_dict())


def trained(backbone: TimmBackbone) -> set[str]:
    return {n.removeprefix("body.") for n, p in backbone.named_parameters() if p.requires_grad}


def test_norms_and_freezing():
    free = TimmBackbone("resnet10t", out_features=ALL, norm="BN").train()
    everything = trained(free)
    before = free.state_dict()["body.bn1.running_mean"].clone()
    free(torch.randn(2, 3, 32, 32))
    assert not torch.equal(before, free.state_dict()["body.bn1.running_mean"])

    stem = TimmBackbone("resnet10t", out_features=ALL, norm="BN", freeze_at=1)
    assert everything - trained(stem) == {n for n in everything if n.startswith(("conv1", "bn1"))}
    two = TimmBackbone("resnet10t", out_features=ALL, norm="BN", freeze_at=2).train()
    fixed = ("conv1", "bn1", "layer1")
    assert everything - trained(two) == {n for n in everything if n.startswith(fixed)}
    two(torch.randn(2, 3, 32, 32))
    assert torch.equal(before, two.state_dict()["body.bn1.running_mean"])

    frozen = TimmBackbone("resnet10t", out_features=ALL)
    network = timm.create_model("resnet10t")
    norms = {n for n, m in network.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert everything - trained(frozen) == {n for n in everything if n.rpartition(".")[0] in norms}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet1O1"}, "no such model; near are resnet101"),
        ({"name": "resnet10t", "out_features": ["p2"]}, "has ['res1', 'res2'"),
        ({"name": "resnet10t", "output_stride": 4}, "output stride 4"),
        ({"name": "resnet10t", "norm": "GN"}, "NORM is 'GN'"),
        ({"name": "vit_tiny_patch16_224"}, "strides [16, 16, 16]"),
        ({"name": "swin_tiny_patch4_window7_224"}, "cannot run on images of any size"),
    ],
)
def test_what_cannot_be_a_backbone(options, message):
    with pytest.raises(InputError) as error:
        TimmBackbone(**{"out_features": ["res5"], **options})
    assert message in str(error.value) and "\n" not in str(error.value)
