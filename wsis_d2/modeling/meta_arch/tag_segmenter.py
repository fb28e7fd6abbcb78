# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Learns from tags where each class is, without pretrained weights: another source of stuff cues.

Addition, not in the paper.

Grad-CAM on a classifier (paper 3.3) lives on pretrained weights; one that starts from random
weights finds what tells crops apart, not what fills them. Here each cell of an image gets a
distribution over the classes, learned from what tags and boxes say of sets of cells. The
supervision is the paper's.
"""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from wsis_d2.modeling.annotation_losses import AnnotationLosses
from wsis_d2.modeling.backbone.color_texture import NUM_FEATURES, color_texture


@META_ARCH_REGISTRY.register()
class TagSegmenter(nn.Module):
    """Colour, texture and place of a cell, three linear layers, a distribution over the classes.

    A sample is one of :class:`wsis_d2.data.mappers.TagRegionMapper`: the whole image with its
    windows (crops), which classes each has, and its boxes. The losses are those of
    :class:`wsis_d2.modeling.annotation_losses.AnnotationLosses`.

    These losses leave it open which of the classes that always come together a cell is, and
    training settles that early, for the commoner one.
    """

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        thing_ids: list[int],
        size: int = 240,
        hidden: int = 64,
        tag_share: float = 0.01,
        box_share: float = 0.3,
        box_weight: float = 0.3,
        entropy_weight: float = 0.1,
    ) -> None:
        """
        Args:
            num_classes: number of classes, stuff and things.
            thing_ids: contiguous ids of the things.
            size: longer side that images are resized to, in pixels.
            hidden: width of the two hidden layers.
            tag_share, box_share: share of a window's or a box's cells that must show its class.
            box_weight, entropy_weight: of their losses, beside 1 for the others.

        Raises:
            ValueError: a share outside its range, no class, or a size below a cell.
        """
        super().__init__()
        for name, value in (("tag_share", tag_share), ("box_share", box_share)):
            if not 0 < value <= 1:
                raise ValueError(f"{name} is {value}, expected a share in (0, 1]")
        if num_classes < 1:
            raise ValueError("MODEL.SEM_SEG_HEAD.NUM_CLASSES: expected at least one class")
        if size < 4:
            raise ValueError(f"size is {size}, expected at least 4 pixels")
        self.num_classes = num_classes
        self.thing_ids = list(thing_ids)
        self.annotation = AnnotationLosses(
            num_classes, thing_ids, tag_share, box_share, box_weight, entropy_weight
        )
        self.size = size
        self.standardize = nn.BatchNorm1d(NUM_FEATURES, affine=False)
        self.layers = nn.Sequential(
            nn.Linear(NUM_FEATURES, hidden), nn.ReLU(),
            nn.Linear(hidden, hidden), nn.ReLU(),
            nn.Linear(hidden, num_classes),
        )  # fmt: skip
        self.register_buffer("_device", torch.zeros(()), False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "thing_ids": cfg.MODEL.WSIS.THING_IDS,
        }

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self._device.device

    def parameter_rules(self) -> list[tuple[str, float, float | None]]:
        """Learning-rate factors by parameter name; none differ."""
        return []

    def probabilities(self, images: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return each image's distribution over the classes, cell by cell.

        Args:
            images: (3, H, W) each, 0 to 255, any sizes.

        Returns:
            (C, h, w) each, sums of 1 over C.
        """
        features = [color_texture(image.to(self.device), self.size) for image in images]
        cells = self.standardize(torch.cat([f.flatten(1).T for f in features]))
        parts = self.layers(cells).softmax(1).split([f[0].numel() for f in features])
        return [p.T.reshape(-1, *f.shape[-2:]) for p, f in zip(parts, features, strict=True)]

    def forward(self, batched_inputs: list[dict]) -> dict | list[dict]:
        """Return the losses while training, else what :class:`TagClassifier` returns.

        Returns:
            In evaluation a list of ``{"tags": (classes,), "crop_tags": (crops, classes)}``: the
            mean probability of the surest cells of the image and of each of its crops.
        """
        found = self.probabilities([sample["image"] for sample in batched_inputs])
        pairs = list(zip(found, batched_inputs, strict=True))
        if not self.training:
            return [self._tags(own.detach(), sample) for own, sample in pairs]
        parts = [self.annotation(own, sample) for own, sample in pairs]
        return {
            f"loss_{name}": torch.stack([own[name] for own in parts]).mean() for name in parts[0]
        }

    def _tags(self, probabilities: torch.Tensor, sample: dict) -> dict:
        height, width = sample["image"].shape[-2:]

        def scores(window: Sequence[float]) -> torch.Tensor:
            surest, share = self.annotation.surest, self.annotation.tag_share
            return (-torch.stack([surest(p, sample, window, share) for p in probabilities])).exp()

        result = {"tags": scores((0, 0, width, height))}
        if sample.get("crops"):
            result["crop_tags"] = torch.stack([scores(window) for window in sample["crops"]])
        return result
