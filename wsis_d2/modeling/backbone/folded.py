# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Frozen batch norm inside the convolution before it. Addition, not in the paper.

A frozen norm is a scale and a shift of each channel. As arithmetic on the feature map they are most
of the operators of a training step and much of its memory traffic; multiplied into the
convolution's weights they are next to nothing. Names of parameters and buffers stay what they were,
and the weights learn as before: the product is made in each forward pass.
"""

import math

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d as NormedConv2d
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from wsis_d2.modeling.backbone.depthwise import depthwise_conv2d, is_depthwise

_BUFFERS = ("weight", "bias", "running_mean", "running_var")


class FoldedConv2d(nn.Conv2d):
    """A convolution that applies a frozen norm through its weights.

    Args:
        conv: the convolution; its parameters are taken over, not copied.
        norm: has the buffers ``weight``, ``bias``, ``running_mean``, ``running_var`` and ``eps``.
        owns_norm: make ``norm`` a submodule of that name, as in Detectron2's ``Conv2d``.
        same: pad as TensorFlow does, by the size of the input.
    """

    def __init__(
        self, conv: nn.Conv2d, norm: nn.Module, owns_norm: bool = True, same: bool = False
    ) -> None:
        super().__init__(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding,
            conv.dilation, conv.groups, conv.bias is not None, device="meta",
        )  # fmt: skip
        self.weight, self.bias = conv.weight, conv.bias
        self.activation = getattr(conv, "activation", None)
        self.same = same
        self.norm = norm if owns_norm else None
        self._norm = (norm,)  # in a tuple: not a submodule twice
        self._known: tuple = ()

    def scale_and_shift(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the norm as (out, 1, 1, 1) factors and (out,) summands, computed once."""
        norm = self._norm[0]
        buffers = tuple(getattr(norm, name) for name in _BUFFERS)
        keep = (
            self.bias is None  # which may learn
            and not torch.is_inference_mode_enabled()
            and not any(b.is_inference() for b in buffers)
        )
        versions = tuple(b._version for b in buffers) if keep else ()
        if keep and self._known:
            known, known_versions, scale, shift = self._known
            if known_versions == versions and all(map(lambda a, b: a is b, known, buffers)):
                return scale, shift
        weight, bias, mean, var = buffers
        scale = weight * (var + norm.eps).rsqrt()
        shift = bias - mean * scale
        if self.bias is not None:
            shift = shift + self.bias * scale
        scale = scale.view(-1, 1, 1, 1)
        if keep:
            self._known = (buffers, versions, scale, shift)
        return scale, shift

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H', W')."""
        scale, shift = self.scale_and_shift()
        padding = self.padding
        if self.same:
            x, padding = self._pad_same(x)
        weight = self.weight * scale
        if (
            x.device.type == "cpu"
            and torch.is_grad_enabled()
            and is_depthwise(weight, self.stride, self.groups)
        ):
            # In float32 where others run in 16 bits, in which its gradient takes thrice the time.
            with torch.autocast("cpu", enabled=False):
                x = depthwise_conv2d(x.to(weight.dtype), weight, shift, padding, self.dilation)
        else:
            x = F.conv2d(x, weight, shift, self.stride, padding, self.dilation, self.groups)
        return x if self.activation is None else self.activation(x)

    def _pad_same(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """Pad as far as the two sides of an axis differ; the rest is the convolution's."""
        low, high = [], []
        for length, kernel, stride, dilation in zip(
            x.shape[-2:], self.kernel_size, self.stride, self.dilation, strict=True
        ):
            steps = math.ceil(length / stride) - 1
            total = max(steps * stride + (kernel - 1) * dilation + 1 - length, 0)
            low.append(total // 2)
            high.append(total - total // 2)
        if low != high:
            x = F.pad(x, [0, high[1] - low[1], 0, high[0] - low[0]])
        return x, (low[0], low[1])


class NormInConv(nn.Module):
    """What is left in the place of a norm that a :class:`FoldedConv2d` applies: its activation."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        for name in _BUFFERS:
            self.register_buffer(name, getattr(norm, name))
        self.eps = norm.eps
        self.act = getattr(norm, "act", nn.Identity())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape to the same."""
        return self.act(x)


def fold_frozen_norms(module: nn.Module) -> int:
    """Replace Detectron2's convolutions that end in a frozen norm; return how many there were."""
    count = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            # A subclass may compute something else.
            if type(child) is NormedConv2d and isinstance(child.norm, FrozenBatchNorm2d):
                setattr(parent, name, FoldedConv2d(child, child.norm))
                count += 1
    return count


def fold_followed_norms(module: nn.Module, example: torch.Tensor) -> int:
    """Fold frozen norms that are modules of their own behind a convolution, as timm has them.

    Which norm reads which convolution's output is seen in a forward pass, not guessed from names.

    Args:
        module: in evaluation mode; its frozen norms have the four buffers, none is a parameter.
        example: an input.

    Returns:
        How many norms were folded.
    """
    convs = {m: n for n, m in module.named_modules() if _plain(m) is not None}
    norms = {m: n for n, m in module.named_modules() if _is_frozen_norm(m)}
    calls: dict[nn.Module, int] = {}
    made: list[tuple[torch.Tensor, nn.Module]] = []  # keeps the tensors alive: identity is unique
    pairs: list[tuple[nn.Module, nn.Module]] = []

    def leave(conv, _, output):
        calls[conv] = calls.get(conv, 0) + 1
        made.append((output, conv))

    def enter(norm, inputs):
        calls[norm] = calls.get(norm, 0) + 1
        pairs.extend((conv, norm) for output, conv in made if output is inputs[0])

    handles = [m.register_forward_hook(leave) for m in convs]
    handles += [m.register_forward_pre_hook(enter) for m in norms]
    try:
        with torch.no_grad():
            module(example)
    finally:
        for handle in handles:
            handle.remove()
    read = [conv for conv, _ in pairs]
    folded = 0
    for conv, norm in pairs:
        if calls[conv] > 1 or calls[norm] > 1 or read.count(conv) > 1:
            continue
        rest = NormInConv(norm)
        _replace(module, norms[norm], rest)
        _replace(module, convs[conv], FoldedConv2d(conv, rest, False, same=bool(_plain(conv))))
        folded += 1
    return folded


def _plain(module: nn.Module) -> bool | None:
    """Whether a convolution pads as TensorFlow does; None for all that cannot be folded."""
    if type(module) is nn.Conv2d and module.padding_mode == "zeros":
        return False
    return True if type(module).__name__ == "Conv2dSame" else None


def _is_frozen_norm(module: nn.Module) -> bool:
    buffers = dict(module.named_buffers(recurse=False))
    return "Frozen" in type(module).__name__ and all(name in buffers for name in _BUFFERS)


def _replace(root: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(root.get_submodule(parent), last, new)
