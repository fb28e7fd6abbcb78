# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The gradient of depthwise convolutions on a CPU. Addition, not in the paper.

There the gradient of a depthwise convolution takes ten to fifty times as long as its forward pass
(torch 2.14, maps of 17 x 17, kernels of 5 x 5, without and with dilation). Both gradients are
depthwise convolutions themselves, so they can be had by forward passes.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

# Largest map, in pixels, for which the weights' gradient as a convolution is the faster one.
_SMALL_MAP = 40 * 40


def is_depthwise(weight: torch.Tensor, stride: tuple[int, ...], groups: int) -> bool:
    """Whether a convolution is one that :func:`depthwise_conv2d` takes."""
    return groups == weight.shape[0] > 1 and weight.shape[1] == 1 and set(stride) == {1}


def depthwise_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> torch.Tensor:
    """``F.conv2d`` with as many groups as channels and stride 1; first derivatives alone.

    Args:
        x: (N, C, H, W) float on a CPU.
        weight: (C, 1, K, L).
        bias: (C,).
        padding, dilation: rows, columns.

    Returns:
        (N, C, H', W').
    """
    return _Depthwise.apply(x, weight, bias, padding, dilation)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        padding: tuple[int, int],
        dilation: tuple[int, int],
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding, ctx.dilation = padding, dilation
        return F.conv2d(x, weight, bias, 1, padding, dilation, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple:
        x, weight = ctx.saved_tensors
        padding, dilation = ctx.padding, ctx.dilation
        channels, kernel = len(weight), weight.shape[2:]
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            outer = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True)]
            inner = [max(-o, 0) for o in outer]  # padding beyond the kernel's reach
            grad_x = F.conv2d(
                grad, weight.flip(2, 3), None, 1, [max(o, 0) for o in outer], dilation, channels
            )
            if any(inner):
                height, width = grad_x.shape[2:]
                grad_x = grad_x[:, :, inner[0] : height - inner[0], inner[1] : width - inner[1]]
        if ctx.needs_input_grad[1]:
            if grad.shape[2] * grad.shape[3] <= _SMALL_MAP:
                # Each map is convolved with its gradient, at the offsets of the kernel's values.
                maps = F.conv2d(
                    x.reshape(1, -1, *x.shape[2:]),
                    grad.reshape(-1, 1, *grad.shape[2:]),
                    None, dilation, padding, 1, len(x) * channels,
                )  # fmt: skip
                maps = maps.view(len(x), channels, *maps.shape[2:])
                grad_weight = maps[:, :, : kernel[0], : kernel[1]].sum(0).unsqueeze(1)
            else:
                grad_weight = torch.ops.aten.convolution_backward(
                    grad, x, weight, None, [1, 1], padding, dilation, False, [0, 0], channels,
                    [False, True, False],
                )[1]  # fmt: skip
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, 2, 3))
        return grad_x, grad_weight, grad_bias, None, None
