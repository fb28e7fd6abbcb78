# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Frozen norms inside convolutions give what they give behind them."""

import copy

import pytest
import timm
import torch
from torch import nn

from wsis_d2.modeling.backbone.folded import (
    FoldedConv2d,
    fold_followed_norms,
    fold_frozen_norms,
)
from wsis_d2.modeling.backbone.resnet import build_resnet


def random_norms(module: nn.Module) -> None:
    """Statistics that change everything; those at the start are the identity."""
    torch.manual_seed(1)
    for name, buffer in module.named_buffers():
        last = name.rpartition(".")[2]
        if last == "running_var" or (last == "weight" and buffer.dim() == 1):
            buffer.uniform_(0.5, 1.5)
        elif last in ("running_mean", "bias"):
            buffer.normal_(std=0.2)


def outputs_and_gradients(module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    module.zero_grad()
    found = module(x)
    found = list(found.values()) if isinstance(found, dict) else found
    sum(f.square().mean() for f in found).backward()
    gradients = [p.grad for _, p in sorted(module.named_parameters()) if p.grad is not None]
    return [*(f.detach() for f in found), *gradients]


def assert_same(first: list[torch.Tensor], second: list[torch.Tensor]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert (a - b).abs().max() <= 1e-5 * max(1.0, float(a.abs().max()))


@pytest.mark.parametrize("depth", [18, 50])
def test_detectron2_resnet(depth):
    torch.manual_seed(0)
    plain = build_resnet(
        depth=depth, norm="FrozenBN", stem_channels=8, res2_channels=8, bottleneck_channels=4,
        res4_dilation=2, res5_dilation=4, out_features=("res3", "res5"),
    )  # fmt: skip
    random_norms(plain)
    folded = copy.deepcopy(plain)
    assert fold_frozen_norms(folded) == sum(hasattr(m, "norm") for m in plain.modules())
    assert list(folded.state_dict()) == list(plain.state_dict())
    x = torch.randn(2, 3, 49, 65)
    assert_same(outputs_and_gradients(plain, x), outputs_and_gradients(folded, x))
    # Anew, after the numbers were changed in place, by loading, and by another precision.
    random_norms(plain)
    folded.load_state_dict(plain.state_dict())
    assert_same(outputs_and_gradients(plain, x), outputs_and_gradients(folded, x))
    assert_same(outputs_and_gradients(plain.double(), x.double()),
                outputs_and_gradients(folded.double(), x.double()))  # fmt: skip


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet10t", "densenet121"])
def test_norms_behind_convolutions(name):
    from timm.layers import freeze_batch_norm_2d

    torch.manual_seed(0)
    plain = freeze_batch_norm_2d(timm.create_model(name, features_only=True, out_indices=[1, 2]))
    random_norms(plain)
    folded = copy.deepcopy(plain).eval()
    count = fold_followed_norms(folded, torch.zeros(1, 3, 32, 32))
    assert count == sum(isinstance(m, FoldedConv2d) for m in folded.modules()) > 0
    assert list(folded.state_dict()) == list(plain.state_dict())
    for size in ((33, 65), (36, 50)):  # borders are padded alike, and not
        x = torch.randn(1, 3, *size)
        assert_same(outputs_and_gradients(plain, x), outputs_and_gradients(folded.train(), x))


class Branches(nn.Module):
    """A convolution whose output is read by two norms, and one that is run twice."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.ops.misc import FrozenBatchNorm2d

        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
        self.norm1, self.norm2, self.norm3 = (FrozenBatchNorm2d(4) for _ in range(3))

    def forward(self, x):
        x = self.conv1(x)
        x = self.norm1(x) + self.norm2(x)
        return [self.norm3(self.conv2(self.conv2(x)))]


def test_what_cannot_be_folded_is_left():
    plain = Branches()
    random_norms(plain)
    folded = copy.deepcopy(plain)
    assert fold_followed_norms(folded, torch.zeros(1, 3, 8, 8)) == 0
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(plain(x)[0], folded(x)[0])


def test_fewer_operators():
    """A step's operators without and with folding, counted by torch."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.calls = getattr(self, "calls", 0) + 1
            return func(*args, **(kwargs or {}))

    plain = build_resnet(
        depth=50, norm="FrozenBN", stem_channels=8, res2_channels=8, bottleneck_channels=4
    )
    folded = copy.deepcopy(plain)
    fold_frozen_norms(folded)
    x, counts = torch.randn(1, 3, 32, 32), []
    for module in (plain, folded):
        module(x)["res5"].sum().backward()
        with Count() as count:
            module(x)["res5"].sum().backward()
        counts.append(count.calls)
    assert counts[1] < 0.6 * counts[0]
