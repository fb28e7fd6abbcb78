# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The faster gradient of depthwise convolutions equals torch's own."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from wsis_d2.modeling.backbone.depthwise import depthwise_conv2d
from wsis_d2.modeling.backbone.folded import FoldedConv2d


@pytest.mark.parametrize(
    ("size", "kernel", "padding", "dilation"),
    [
        ((9, 7), (3, 3), (1, 1), (1, 1)),
        ((9, 12), (5, 5), (4, 4), (2, 2)),
        ((8, 8), (5, 3), (0, 2), (1, 1)),  # no padding; more than the kernel needs
        ((11, 10), (3, 5), (3, 0), (1, 2)),
        ((41, 43), (3, 3), (1, 1), (1, 1)),  # a large map
    ],
)
def test_gradients_equal_torch(size, kernel, padding, dilation):
    torch.manual_seed(0)
    shapes = ((3, 6, *size), (6, 1, *kernel), (6,))
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    own = depthwise_conv2d(*inputs, padding, dilation)
    known = F.conv2d(*inputs, 1, padding, dilation, 6)
    torch.testing.assert_close(own, known)
    grad = torch.randn_like(known)
    for mine, theirs in zip(
        torch.autograd.grad(own, inputs, grad),
        torch.autograd.grad(known, inputs, grad),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_folded_convolution_uses_it_and_a_fixed_weight_gets_none():
    conv, norm = (
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4, bias=False),
        FrozenBatchNorm2d(4),
    )
    norm.weight.uniform_(0.5, 2)
    folded = FoldedConv2d(conv, norm)
    x = torch.randn(2, 4, 9, 9, requires_grad=True)
    output = folded(x)
    assert "Depthwise" in type(output.grad_fn).__name__
    (mine,) = torch.autograd.grad(output.square().sum(), x)
    (theirs,) = torch.autograd.grad(norm(conv(x)).square().sum(), x)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    conv.weight.requires_grad_(False)
    folded(x).sum().backward()
    assert conv.weight.grad is None and x.grad is not None


def test_mixed_precision_on_a_cpu_leaves_it_in_float32():
    """Its neighbours in 16 bits, itself and its gradient as exact as without."""
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
    folded = FoldedConv2d(conv, FrozenBatchNorm2d(6))
    pointwise = nn.Conv2d(6, 6, 1)
    x = torch.randn(2, 6, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        between = pointwise(x)
        output = folded(between)
        assert between.dtype == torch.bfloat16 and output.dtype == torch.float32
        assert pointwise(output).dtype == torch.bfloat16
    known = conv(between.float())
    torch.testing.assert_close(output, known, rtol=1e-4, atol=1e-5)
    weights = [
        torch.autograd.grad(own.square().sum(), conv.weight, retain_graph=True)[0]
        for own in (output, known)
    ]
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-4)
