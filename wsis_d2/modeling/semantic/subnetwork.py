# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The semantic subnetwork: its own backbone, a head, and the sizes that fit them."""

import math

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import Backbone
from torch import nn

from wsis_d2.modeling.backbone import build_semantic_backbone
from wsis_d2.modeling.backbone.folded import fold_frozen_norms
from wsis_d2.modeling.precision import amp_dtype, autocast
from wsis_d2.modeling.semantic.head import SemanticHead, build_semantic_head
from wsis_d2.modeling.semantic.inference import SemanticInference, in_groups


class SemanticSubnetwork(nn.Module):
    """Image to class probabilities of each pixel (the Q of paper 3.5).

    Images are padded at the right and the bottom: to a multiple of the head's stride plus 1, the
    sizes whose corners stay aligned under strided convolution and bilinear upsampling; or, for a
    backbone or a head with a ``size_divisibility`` (feature pyramids, patches), to a multiple of
    that.
    Trained on crops of one size (paper 4.1: 521 x 521), the network sees that size alone: smaller
    crops are padded to it, and so are the tiles of an image at test time.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: SemanticHead,
        pixel_mean: list[float],
        pixel_std: list[float],
        inference: SemanticInference,
        channels_last: bool = True,
        amp: torch.dtype | None = None,
        max_batch: int = 1,
    ) -> None:
        """
        Args:
            backbone: the subnetwork's own.
            head: on the backbone's features.
            pixel_mean, pixel_std: of the input, in its channel order.
            inference: how an image of any size is classified at test time.
            channels_last: run convolutions in channels-last memory order.
            amp: 16-bit type that backbone and head run in; None: float32.
            max_batch: most images or tiles that run together at test time.
        """
        super().__init__()
        self.backbone = backbone
        self.head = head
        fold_frozen_norms(self)
        divisors = [n for n in (backbone.size_divisibility, head.size_divisibility) if n > 1]
        self.size_divisibility = math.lcm(head.stride, *divisors) if divisors else 0
        self.inference_mode = inference
        side = inference.tile_size
        self.crop_size = (side, side) if side else None
        self.channels_last = channels_last
        self.amp = amp
        self.max_batch = max_batch
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        if channels_last:
            self.to(memory_format=torch.channels_last)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        backbone = build_semantic_backbone(cfg)
        return {
            "backbone": backbone,
            "head": build_semantic_head(cfg, backbone.output_shape()),
            "pixel_mean": cfg.MODEL.SEMANTIC.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.SEMANTIC.PIXEL_STD,
            "inference": SemanticInference.from_config(cfg),
            "amp": amp_dtype(cfg),
            "max_batch": cfg.TEST.IMS_PER_BATCH,
        }

    def padded(self, length: int) -> int:
        """Return the side that one of ``length`` pixels is padded to."""
        if self.size_divisibility:
            return -(-length // self.size_divisibility) * self.size_divisibility
        return -(-(length - 1) // self.head.stride) * self.head.stride + 1

    def upsample(self, logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Resize logits (N, C, h, w) to a padded size."""
        return F.interpolate(
            logits, size=size, mode="bilinear", align_corners=not self.size_divisibility
        )

    def batch(
        self, images: list[torch.Tensor], least: tuple[int, int] | None = None
    ) -> torch.Tensor:
        """Normalise, pad and stack images.

        Args:
            images: (3, H, W) each, 0 to 255, BGR.
            least: height and width that the batch has at least.

        Returns:
            (N, 3, H', W') float32 of the padded size; the padding is 0, the mean colour.
        """
        sizes = [image.shape[-2:] for image in images] + ([least] if least else [])
        height, width = (self.padded(max(size[axis] for size in sizes)) for axis in (0, 1))
        shape = (len(images), images[0].shape[0], height, width)
        batch = images[0].new_zeros(shape, dtype=torch.float32)
        for slot, image in zip(batch, images, strict=True):
            slot[:, : image.shape[-2], : image.shape[-1]] = (
                image.float() - self.pixel_mean
            ) / self.pixel_std
        return batch.contiguous(memory_format=torch.channels_last) if self.channels_last else batch

    def logits(
        self, images: list[torch.Tensor], least: tuple[int, int] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Classify every pixel of a batch; see :meth:`batch`.

        Returns:
            (N, C, H', W') float32 logits at the padded size, and the auxiliary ones while training.
        """
        batch = self.batch(images, least)
        with autocast(batch.device, self.amp):
            logits, aux = self.head(self.backbone(batch))
        size = batch.shape[-2:]
        logits = self.upsample(logits.float(), size)
        return logits, None if aux is None else self.upsample(aux.float(), size)

    def losses(
        self,
        logits: torch.Tensor,
        aux_logits: torch.Tensor | None,
        targets: list[torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """Semantic losses of a batch; ``targets`` are (H, W) int64 maps, one an image."""
        padded = logits.new_full(
            (len(targets), *logits.shape[-2:]), self.head.ignore_value, dtype=torch.int64
        )
        for slot, target in zip(padded, targets, strict=True):
            slot[: target.shape[0], : target.shape[1]] = target
        return self.head.losses(logits, aux_logits, padded)

    def probabilities(self, images: list[torch.Tensor]) -> list[torch.Tensor]:
        """Classify images of any size as the inference options say.

        Images, tiles and mirror images that are padded to one size run together.

        Args:
            images: (3, H, W) each, 0 to 255, BGR.

        Returns:
            (C, H, W) float32 probabilities each.
        """
        least = self.crop_size
        smallest = least or (0, 0)

        def padded_size(view: torch.Tensor) -> tuple[int, ...]:
            return tuple(
                self.padded(max(side, own))
                for side, own in zip(smallest, view.shape[-2:], strict=True)
            )

        def classify(views: list[torch.Tensor]) -> list[torch.Tensor]:
            logits, _ = self.logits(views, least)
            return [
                F.softmax(own[:, : view.shape[-2], : view.shape[-1]], dim=0)
                for own, view in zip(logits, views, strict=True)
            ]

        def classify_all(views: list[torch.Tensor]) -> list[torch.Tensor]:
            return in_groups(views, padded_size, classify, self.max_batch)

        return self.inference_mode(classify_all, images)
