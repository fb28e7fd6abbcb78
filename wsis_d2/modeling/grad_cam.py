# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Grad-CAM: where in an image a classifier sees each class (Selvaraju et al., ICCV 2017).

The map of a class is the ReLU of the layer's activations weighted by the spatial mean of the
gradient of that class's logit. Many classes of many images are computed together: one forward pass
for all, then one backward pass for the first class of every image, one for the second, and so on.
Images do not touch one another in evaluation mode, so each map equals the map computed alone.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from wsis_d2.utils.errors import InputError


class GradCAM:
    """Class activation maps of one network at one of its layers.

    Args:
        network: in evaluation mode.
        layer: name of a module of ``network`` whose output is a tensor (N, C, h, w), as in
            ``network.named_modules()``; the last convolution stage is the usual choice.
        logits: turns images (N, 3, H, W) into logits (N, classes); None calls ``network``.

    Raises:
        InputError: no such layer.
    """

    def __init__(
        self,
        network: nn.Module,
        layer: str,
        logits: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        modules = dict(network.named_modules())
        if not layer or layer not in modules:
            names = [name for name in modules if name and name.count(".") < 2]
            raise InputError(f"CAM.LAYER {layer!r} is not in the network; some are {names}")
        self.network = network
        self.layer_name = layer
        self._layer = modules[layer]
        self._logits = logits or network

    def __call__(
        self, images: torch.Tensor, classes: Sequence[Sequence[int]]
    ) -> list[torch.Tensor]:
        """Return the maps of the asked classes at image size, each divided by its maximum.

        Args:
            images: (N, 3, H, W) float, as ``logits`` takes them.
            classes: for each image its classes, any number, also none.

        Returns:
            For each image (K, H, W) float32 on the CPU in [0, 1], one map a class in the order
            asked; all zero where nothing speaks for the class.
        """
        if len(classes) != len(images):
            raise ValueError(f"{len(images)} images with classes for {len(classes)}")
        size = images.shape[-2:]
        maps = self.raw_maps(images, classes)
        return [_resize(_divide_by_maximum(own), size).cpu() for own in maps]

    def raw_maps(
        self, images: torch.Tensor, classes: Sequence[Sequence[int]]
    ) -> list[torch.Tensor]:
        """Return the maps at the layer's resolution, after the ReLU and not normalised.

        Args:
            images: (N, 3, H, W) float.
            classes: for each image its classes.

        Returns:
            For each image (K, h, w) float32.
        """
        if self.network.training:
            raise ValueError("Grad-CAM needs the network in evaluation mode: call .eval()")
        captured: list[torch.Tensor] = []

        def capture(module, inputs, output):
            if not isinstance(output, torch.Tensor) or output.dim() != 4:
                raise InputError(f"CAM.LAYER {self.layer_name!r} gives no (N, C, h, w) tensor")
            # Cut the graph here: nothing before the layer is needed. The rest of the network gets
            # a copy, because it may work in place.
            captured.append(output.detach().requires_grad_(True))
            return captured[-1].clone()

        handle = self._layer.register_forward_hook(capture)
        try:
            with torch.enable_grad():
                logits = self._logits(images)
        finally:
            handle.remove()
        if len(captured) != 1:
            raise InputError(f"CAM.LAYER {self.layer_name!r} ran {len(captured)} times, not once")
        activation = captured[0]
        maps: list[list[torch.Tensor]] = [[] for _ in classes]
        for rank in range(max((len(own) for own in classes), default=0)):
            rows = [i for i, own in enumerate(classes) if rank < len(own)]
            columns = [int(classes[i][rank]) for i in rows]
            with torch.enable_grad():
                asked = logits[rows, columns].sum()
            (gradient,) = torch.autograd.grad(asked, activation, retain_graph=True)
            weights = gradient[rows].mean(dim=(2, 3), keepdim=True)
            cams = F.relu((weights * activation.detach()[rows]).sum(dim=1))
            for i, cam in zip(rows, cams.float(), strict=True):
                maps[i].append(cam)
        empty = activation.new_zeros((0, *activation.shape[-2:]), dtype=torch.float32)
        return [torch.stack(own) if own else empty for own in maps]


def _divide_by_maximum(maps: torch.Tensor) -> torch.Tensor:
    """(K, h, w) to (K, h, w) with maximum 1 in each map that is not all zero."""
    maximum = maps.amax(dim=(1, 2), keepdim=True) if len(maps) else maps.new_zeros((0, 1, 1))
    return torch.where(maximum > 0, maps / maximum.clamp(min=torch.finfo(maps.dtype).tiny), maps)


def _resize(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    if not len(maps):
        return maps.new_zeros((0, *size))
    return F.interpolate(maps[None], size=list(size), mode="bilinear", align_corners=False)[0]
