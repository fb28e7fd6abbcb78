# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Learns from tags where each class is, without pretrained weights: another source of stuff cues.

Grad-CAM on a classifier (paper 3.3) lives on pretrained weights; one that starts from random
weights finds what tells crops apart, not what fills them. Here each cell of an image gets a
distribution over the classes, and what tags and boxes say of sets of cells is the loss
(constrained multiple-instance learning, as Pathak, Krähenbühl, Darrell, "Constrained convolutional
neural networks for weakly supervised segmentation", ICCV 2015). The supervision is the paper's.
"""

import math

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from wsis_d2.modeling.backbone.color_texture import NUM_FEATURES, color_texture

_TINY = 1e-6


@META_ARCH_REGISTRY.register()
class TagSegmenter(nn.Module):
    """Colour, texture and place of a cell, three linear layers, a distribution over the classes.

    A sample is one of :class:`wsis_d2.data.mappers.TagRegionMapper`: the whole image with its
    windows (crops), which classes each has, and its boxes. Losses, each a mean of negative
    logarithms:

    - ``loss_possible``: a cell's probability of the classes possible there. Stuff is possible
      where every window that holds the cell has it, a thing in the boxes of its class.
    - ``loss_tags``: for each window and stuff class in it, the mean of the cells that are surest
      of the class, a small share of the window.
    - ``loss_boxes``: the same for each box and its class.
    - ``loss_entropy``: entropy among the possible classes: a cell should make up its mind.
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
            box_weight, entropy_weight: of their losses, beside 1 for the other two.

        Raises:
            ValueError: a share outside (0, 1], no class, or a size below a cell.
        """
        super().__init__()
        for key, value in (("TAG_SHARE", tag_share), ("BOX_SHARE", box_share)):
            if not 0 < value <= 1:
                raise ValueError(
                    f"MODEL.TAG_SEGMENTER.{key} is {value}, expected a share in (0, 1]"
                )
        if num_classes < 1:
            raise ValueError("MODEL.SEM_SEG_HEAD.NUM_CLASSES: expected at least one class")
        if size < 4:
            raise ValueError(f"MODEL.TAG_SEGMENTER.SIZE is {size}, expected at least 4 pixels")
        self.num_classes = num_classes
        self.thing_ids = list(thing_ids)
        self.stuff_ids = [c for c in range(num_classes) if c not in set(thing_ids)]
        self.size = size
        self.tag_share = tag_share
        self.box_share = box_share
        self.box_weight = box_weight
        self.entropy_weight = entropy_weight
        self.standardize = nn.BatchNorm1d(NUM_FEATURES, affine=False)
        self.layers = nn.Sequential(
            nn.Linear(NUM_FEATURES, hidden), nn.ReLU(),
            nn.Linear(hidden, hidden), nn.ReLU(),
            nn.Linear(hidden, num_classes),
        )  # fmt: skip
        self.register_buffer("_device", torch.zeros(()), False)

    @classmethod
    def from_config(cls, cfg) -> dict:
        own = cfg.MODEL.TAG_SEGMENTER
        return {
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "thing_ids": cfg.MODEL.WSIS.THING_IDS,
            "size": own.SIZE,
            "hidden": own.HIDDEN,
            "tag_share": own.TAG_SHARE,
            "box_share": own.BOX_SHARE,
            "box_weight": own.BOX_WEIGHT,
            "entropy_weight": own.ENTROPY_WEIGHT,
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
        cells = torch.cat([f.flatten(1).T for f in features])
        found = self.layers(self.standardize(cells)).softmax(1)
        shapes = [f.shape[-2:] for f in features]
        parts = found.split([h * w for h, w in shapes])
        return [p.T.reshape(-1, *shape) for p, shape in zip(parts, shapes, strict=True)]

    def forward(self, batched_inputs: list[dict]) -> dict | list[dict]:
        """Return the losses while training, else what :class:`TagClassifier` returns.

        Returns:
            In evaluation a list of ``{"tags": (classes,), "crop_tags": (crops, classes)}``: the
            mean probability of the surest cells of the image and of each of its crops.
        """
        found = self.probabilities([sample["image"] for sample in batched_inputs])
        if not self.training:
            return [self._tags(p.detach(), s) for p, s in zip(found, batched_inputs, strict=True)]
        losses = [self._losses(p, s) for p, s in zip(found, batched_inputs, strict=True)]
        weights = {"loss_boxes": self.box_weight, "loss_entropy": self.entropy_weight}
        return {
            name: weights.get(name, 1.0) * torch.stack([own[name] for own in losses]).mean()
            for name in losses[0]
        }

    def _losses(self, probabilities: torch.Tensor, sample: dict) -> dict[str, torch.Tensor]:
        zero = probabilities.sum() * 0.0
        possible = self.possible(sample, probabilities.shape[-2:])
        mass = (probabilities * possible).sum(0)
        some = possible.any(0)
        own = (probabilities * possible / mass.clamp(min=_TINY))[:, some]
        tags = [
            self._surest(probabilities[class_id], sample, window, self.tag_share)
            for window, target in zip(sample["crops"], sample["crop_targets"], strict=True)
            for class_id in self.stuff_ids
            if target[class_id] > 0
        ]
        boxes = [
            self._surest(probabilities[class_id], sample, box, self.box_share)
            for box, class_id, group in _boxes(sample)
            if not group
        ]
        return {
            "loss_possible": -mass[some].clamp(min=_TINY).log().mean() if some.any() else zero,
            "loss_tags": torch.stack(tags).mean() if tags else zero,
            "loss_boxes": torch.stack(boxes).mean() if boxes else zero,
            "loss_entropy": -(own * own.clamp(min=_TINY).log()).sum(0).mean()
            if some.any()
            else zero,
        }

    def possible(self, sample: dict, grid: tuple[int, int]) -> torch.Tensor:
        """Return where annotation allows each class, (C, *grid) bool.

        Where no window tells of stuff, none is allowed: nothing is known there. A sample whose
        ``has_boxes`` is False allows things everywhere.
        """
        allowed = torch.ones(self.num_classes, *grid, dtype=torch.bool, device=self.device)
        told = torch.zeros(grid, dtype=torch.bool, device=self.device)
        for window, target in zip(sample["crops"], sample["crop_targets"], strict=True):
            absent = [c for c in self.stuff_ids if target[c] == 0]
            rows, columns = _cells(window, sample, grid)
            allowed[absent, rows, columns] = False
            told[rows, columns] = True
        allowed[self.stuff_ids] &= told
        if sample.get("has_boxes", True):
            allowed[self.thing_ids] = False
            for box, class_id, _ in _boxes(sample):
                rows, columns = _cells(box, sample, grid)
                allowed[class_id, rows, columns] = True
        return allowed

    def _surest(self, probability: torch.Tensor, sample: dict, window, share: float):
        """Return -log of the mean over the surest share of a window's cells, one at least."""
        rows, columns = _cells(window, sample, probability.shape)
        cells = probability[rows, columns].flatten()
        count = max(1, int(share * len(cells)))
        return -cells.topk(count).values.mean().clamp(min=_TINY).log()

    def _tags(self, probabilities: torch.Tensor, sample: dict) -> dict:
        height, width = sample["image"].shape[-2:]

        def scores(window) -> torch.Tensor:
            own = [self._surest(p, sample, window, self.tag_share) for p in probabilities]
            return (-torch.stack(own)).exp()

        result = {"tags": scores((0, 0, width, height))}
        if sample.get("crops"):
            result["crop_tags"] = torch.stack([scores(window) for window in sample["crops"]])
        return result


def _boxes(sample: dict) -> list[tuple]:
    """(corners, class, is a group) of each box; none where boxes are unreliable."""
    return sample.get("boxes", []) if sample.get("has_boxes", True) else []


def _cells(window, sample: dict, grid: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of the cells that a window of the image touches, one at least."""
    result = []
    for low, high, side, cells in (
        (window[1], window[3], sample["image"].shape[-2], grid[0]),
        (window[0], window[2], sample["image"].shape[-1], grid[1]),
    ):
        first = min(int(low / side * cells), cells - 1)
        result.append(slice(first, min(max(math.ceil(high / side * cells), first + 1), cells)))
    return result[0], result[1]
