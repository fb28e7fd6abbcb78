# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Detectron2's semantic heads and timm's networks inside WeakPanopticRCNN, end to end."""

import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY, build_model
from helpers.tiny_panoptic import TinyData, tiny_cfg
from torch import nn

from wsis_d2.data.mappers.build import build_mapper
from wsis_d2.data.records import load_records
from wsis_d2.engine import build_optimizer
from wsis_d2.modeling.semantic import RegistryHead
from wsis_d2.utils.errors import InputError

FPN = [
    "MODEL.SEM_SEG_HEAD.NAME", "SemSegFPNHead",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES", ["p2", "p3", "p4", "p5"],
    "MODEL.SEM_SEG_HEAD.NORM", "BN",
    "MODEL.SEMANTIC.BACKBONE.NAME", "build_resnet_any_fpn_backbone",
    "MODEL.SEMANTIC.RESNETS.RES5_DILATION", 1,
    "MODEL.SEMANTIC.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"],
    "MODEL.SEMANTIC.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"],
    "MODEL.SEMANTIC.FPN.OUT_CHANNELS", 8,
]  # fmt: skip
DEEPLAB = [
    "MODEL.SEM_SEG_HEAD.NAME", "DeepLabV3PlusHead",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res2", "res5"],
    "MODEL.SEM_SEG_HEAD.NORM", "BN",
    "MODEL.SEMANTIC.RESNETS.OUT_FEATURES", ["res2", "res5"],
]  # fmt: skip


def of_timm(name):
    return [
        "MODEL.SEMANTIC.BACKBONE.NAME", "build_timm_backbone",
        "MODEL.SEMANTIC.TIMM.NAME", name,
        "MODEL.SEMANTIC.RESNETS.RES5_DILATION", 2,
        "MODEL.SEMANTIC.RESNETS.OUT_FEATURES", ["res4", "res5"],
        "MODEL.SEMANTIC.RESNETS.NORM", "BN",
        "MODEL.BACKBONE.NAME", "build_timm_fpn_backbone",
        "MODEL.TIMM.NAME", name,
        "MODEL.RESNETS.NORM", "BN",
    ]  # fmt: skip


NETWORKS = {
    "Semantic FPN": FPN,
    "DeepLabV3+": DEEPLAB,
    "ConvNeXt": of_timm("convnext_atto"),
    "ResNet of timm": of_timm("resnet10t"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    tiny = TinyData(tmp_path_factory.mktemp("tiny") / "data")
    yield tiny
    tiny.close()


def config(tmp_path, stage, opts):
    opts = [*opts, "MODEL.WSIS.TRAIN_BOXES", "gt", "MODEL.WSIS.DETECTION_SCORE_THRESH", 0.0]
    return tiny_cfg(tmp_path, "MODEL.WSIS.STAGE", stage, *opts, train="tiny_full")


@pytest.mark.parametrize("network", NETWORKS)
def test_two_steps_and_a_prediction_with_the_crf(data, tmp_path, network):
    cfg = config(tmp_path, "end_to_end", NETWORKS[network])
    torch.manual_seed(0)
    model = build_model(cfg).train()
    optimizer = build_optimizer(cfg, model)
    mapper = build_mapper(cfg, True)
    records = load_records(cfg.DATASETS.TRAIN)[:2]
    batch = [mapper(record) for record in records]
    # Sides that are no multiple of anything.
    batch[0] = {**batch[0], "image": batch[0]["image"][:, :-3, :-5]}
    for key in ("sem_seg", "inst_seg"):
        batch[0][key] = batch[0][key][:-3, :-5]
    values = []
    for _ in range(2):
        losses = model(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        trained = [n for n, p in model.semantic.named_parameters() if p.requires_grad]
        grads = dict(model.semantic.named_parameters())
        assert [n for n in trained if grads[n].grad is None] == []
        optimizer.step()
        values.append(float(losses["loss_sem_seg"].detach()))
    assert values[1] != values[0] and all(map(math.isfinite, values))
    model.eval()
    image = batch[0]["image"]
    with torch.no_grad():
        output = model([{"image": image}])[0]
    size = tuple(image.shape[-2:])
    assert output["sem_seg"].shape == (4, *size)
    assert torch.allclose(output["sem_seg"].sum(0), torch.ones(size), atol=1e-5)
    segmentation, segments = output["panoptic_seg"]
    assert segmentation.shape == size and {s["id"] for s in segments} == set(
        segmentation.unique().tolist()
    )


@pytest.mark.parametrize("network", ["Semantic FPN", "DeepLabV3+"])
def test_losses_and_logits_are_the_heads_own(data, tmp_path, network):
    """Against the head called as Detectron2's own meta architecture calls it."""
    torch.manual_seed(0)
    semantic = build_model(config(tmp_path, "semantic", NETWORKS[network])).semantic
    for module in semantic.modules():
        module.p = 0.0  # of dropout
    assert isinstance(semantic.head, RegistryHead)
    images = [torch.randint(0, 256, (3, 64, 96)).float()] * 2
    targets = torch.randint(0, 4, (2, 64, 96))
    targets[:, :5] = 255
    semantic.train()
    logits, aux = semantic.logits(images)
    ours = semantic.losses(logits, aux, list(targets))
    features = semantic.backbone(semantic.batch(images))
    _, theirs = semantic.head.inner(features, targets)
    assert float(ours["loss_sem_seg"]) == pytest.approx(float(theirs["loss_sem_seg"]), rel=1e-5)
    semantic.eval()
    with torch.no_grad():
        found = semantic.logits(images)[0]
        expected = semantic.head.inner(semantic.backbone(semantic.batch(images)))[0]
    assert torch.allclose(found, expected, atol=1e-5)


def test_hard_pixels(data, tmp_path):
    cfg = config(tmp_path, "semantic", DEEPLAB).clone()
    cfg.defrost()
    cfg.MODEL.SEM_SEG_HEAD.LOSS_TYPE = "hard_pixel_mining"  # as a project of one's own adds it
    semantic = build_model(cfg).semantic
    logits = torch.randn(2, 4, 16, 16)
    targets = torch.randint(0, 4, (2, 16, 16))
    losses = F.cross_entropy(logits, targets, reduction="none").flatten()
    hardest = losses.sort(descending=True).values[: int(0.2 * losses.numel())].mean()
    found = semantic.losses(logits, None, list(targets))["loss_sem_seg"]
    assert float(found) == pytest.approx(float(hardest), rel=1e-5)
    nothing = [torch.full((16, 16), 255)] * 2
    assert float(semantic.losses(logits, None, nothing)["loss_sem_seg"]) == 0


@SEM_SEG_HEADS_REGISTRY.register()
class OnesHeadOfATest(nn.Module):
    """The registry's protocol and nothing else; one class too many."""

    def __init__(self, cfg, input_shape):
        super().__init__()
        self.conv = nn.Conv2d(
            input_shape["res5"].channels, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES + 1, 1
        )

    def forward(self, features, targets=None):
        assert not self.training
        return F.interpolate(self.conv(features["res5"]), scale_factor=8), {}


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.SEM_SEG_HEAD.NAME", "PspHead"], "'PspHead', registered are"),
        (
            ["MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res6"]],
            "names 'res6', the backbone gives res4, res5",
        ),
        (["MODEL.SEMANTIC.RESNETS.OUT_FEATURES", ["res5"]], "AUX_DIM is 4, and"),
        ([*DEEPLAB, "MODEL.SEM_SEG_HEAD.NAME", "DeepLabV3Head"], "cannot be built"),
        (["MODEL.SEM_SEG_HEAD.NAME", "OnesHeadOfATest"], "expected (N, 4, H, W)"),
    ],
)
def test_heads_that_do_not_fit(data, tmp_path, opts, message):
    with pytest.raises(InputError) as error:
        model = build_model(config(tmp_path, "semantic", opts)).train()
        model.semantic.logits([torch.zeros(3, 64, 64)])
    assert message in str(error.value) and "\n" not in str(error.value)
