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
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from wsis_d2.modeling.annotation_losses import AnnotationLosses
from wsis_d2.modeling.backbone.color_texture import NUM_FEATURES, NUM_PLACES, color_texture

_TINY = 1e-4


@META_ARCH_REGISTRY.register()
class TagSegmenter(nn.Module):
    """Colour, texture and place of a cell, three linear layers, a distribution over the classes.

    A sample is one of :class:`wsis_d2.data.mappers.TagRegionMapper`: the whole image with its
    windows (crops), which classes each has, and its boxes. The losses are those of
    :class:`wsis_d2.modeling.annotation_losses.AnnotationLosses`.

    These losses leave it open which of the classes that always come together a cell is, and
    training settles that early, for the commoner one. Where ``evidence`` is above 0, three more
    layers that see no place learn how probable it is that a class is *possible* at a cell that
    looks so (``loss_evidence``, binary cross entropy). A class is never impossible where it is,
    and as often as anywhere where it is not; so the odds of "possible", divided by those over all
    cells, tell for the class and know nothing of its frequency. Both are multiplied.
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
        evidence: float = 0.0,
    ) -> None:
        """
        Args:
            num_classes: number of classes, stuff and things.
            thing_ids: contiguous ids of the things.
            size: longer side that images are resized to, in pixels.
            hidden: width of the two hidden layers.
            tag_share, box_share: share of a window's or a box's cells that must show its class.
            box_weight, entropy_weight: of their losses, beside 1 for the others.
            evidence: its exponent in the product, in [0, 1]; the distribution has the rest of 1.

        Raises:
            ValueError: a share outside its range, no class, or a size below a cell.
        """
        super().__init__()
        for name, value in (("tag_share", tag_share), ("box_share", box_share)):
            if not 0 < value <= 1:
                raise ValueError(f"{name} is {value}, expected a share in (0, 1]")
        if not 0 <= evidence <= 1:
            raise ValueError(f"MODEL.TAG_SEGMENTER.EVIDENCE is {evidence}, expected 0 to 1")
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
        self.evidence = evidence
        self.standardize = nn.BatchNorm1d(NUM_FEATURES, affine=False)
        self.layers = _layers(NUM_FEATURES, hidden, num_classes)
        if evidence > 0:
            self.evidence_layers = _layers(NUM_FEATURES - NUM_PLACES, hidden, num_classes)
            self.register_buffer("cells_seen", torch.zeros((), dtype=torch.float64))
            self.register_buffer("cells_possible", torch.zeros(num_classes, dtype=torch.float64))
        self.register_buffer("_device", torch.zeros(()), False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "thing_ids": cfg.MODEL.WSIS.THING_IDS,
            "evidence": cfg.MODEL.TAG_SEGMENTER.EVIDENCE,
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
        cells, shapes = self._cells(images)
        return _images(self._distribution(cells), shapes)

    def _cells(self, images: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Size]]:
        """Standardized features of all images' cells, (cells, features), and the grids."""
        features = [color_texture(image.to(self.device), self.size) for image in images]
        cells = torch.cat([f.flatten(1).T for f in features])
        return self.standardize(cells), [f.shape[-2:] for f in features]

    def _distribution(self, cells: torch.Tensor) -> torch.Tensor:
        """Features to (cells, classes), sums of 1 over the classes."""
        logits = self.layers(cells)
        if self.evidence == 0:
            return logits.softmax(1)
        found = self.evidence_layers(cells[:, :-NUM_PLACES]).sigmoid()
        base = (self.cells_possible / self.cells_seen.clamp(min=1)).float()
        odds = found.logit(_TINY) - base.logit(_TINY)
        own = logits.log_softmax(1).clamp(min=-14.0)
        return ((1 - self.evidence) * own + self.evidence * odds).softmax(1)

    def forward(self, batched_inputs: list[dict]) -> dict | list[dict]:
        """Return the losses while training, else what :class:`TagClassifier` returns.

        Returns:
            In evaluation a list of ``{"tags": (classes,), "crop_tags": (crops, classes)}``: the
            mean probability of the surest cells of the image and of each of its crops.
        """
        cells, shapes = self._cells([sample["image"] for sample in batched_inputs])
        if not self.training:
            found = _images(self._distribution(cells).detach(), shapes)
            return [self._tags(p, s) for p, s in zip(found, batched_inputs, strict=True)]
        found = _images(self.layers(cells).softmax(1), shapes)
        parts = [self.annotation(p, s) for p, s in zip(found, batched_inputs, strict=True)]
        losses = {
            f"loss_{name}": torch.stack([own[name] for own in parts]).mean() for name in parts[0]
        }
        if self.evidence > 0:
            losses["loss_evidence"] = self._evidence_loss(cells, shapes, batched_inputs)
        return losses

    def _evidence_loss(
        self, cells: torch.Tensor, shapes: list[torch.Size], samples: list[dict]
    ) -> torch.Tensor:
        possible = torch.cat(
            [
                self.annotation.possible(sample, grid, cells.device).flatten(1).T
                for sample, grid in zip(samples, shapes, strict=True)
            ]
        )
        some = possible.any(1)
        logits = self.evidence_layers(cells[:, :-NUM_PLACES])
        if not some.any():
            return logits.sum() * 0.0
        target = possible[some].float()
        self.cells_seen += len(target)
        self.cells_possible += target.sum(0)
        return F.binary_cross_entropy_with_logits(logits[some], target)

    def _tags(self, probabilities: torch.Tensor, sample: dict) -> dict:
        height, width = sample["image"].shape[-2:]

        def scores(window: Sequence[float]) -> torch.Tensor:
            surest, share = self.annotation.surest, self.annotation.tag_share
            return (-torch.stack([surest(p, sample, window, share) for p in probabilities])).exp()

        result = {"tags": scores((0, 0, width, height))}
        if sample.get("crops"):
            result["crop_tags"] = torch.stack([scores(window) for window in sample["crops"]])
        return result


def _layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(),
        nn.Linear(hidden, hidden), nn.ReLU(),
        nn.Linear(hidden, outputs),
    )  # fmt: skip


def _images(cells: torch.Tensor, shapes: list[torch.Size]) -> list[torch.Tensor]:
    """Split (cells, C) into images, (C, h, w) each."""
    parts = cells.split([h * w for h, w in shapes])
    return [p.T.reshape(-1, *shape) for p, shape in zip(parts, shapes, strict=True)]
