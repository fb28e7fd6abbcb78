# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""A multi-label image classifier that learns from tags: the source of stuff cues (paper 3.3)."""

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.structures import ImageList
from torch import nn

from wsis_d2.modeling.backbone.folded import fold_frozen_norms
from wsis_d2.modeling.precision import amp_dtype, autocast
from wsis_d2.modeling.semantic.inference import in_groups


@META_ARCH_REGISTRY.register()
class TagClassifier(nn.Module):
    """Backbone, global average pooling, one linear layer; sigmoid cross entropy.

    A sample holds ``image`` (3, H, W) uint8 and, for training, ``tags`` (classes,) float: 1 the
    class is there, 0 it is not, anything below 0 unknown (no loss). A test sample may hold
    ``crops``, a list of ``(x0, y0, x1, y1)`` with exclusive ends, which are classified too.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        num_classes: int,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
        in_feature: str | None = None,
        head_lr_factor: float = 10.0,
        channels_last: bool = True,
        amp: torch.dtype | None = None,
        max_batch: int = 1,
    ) -> None:
        """
        Args:
            backbone: any Detectron2 backbone.
            num_classes: number of classes, stuff and things.
            pixel_mean, pixel_std: of each channel, in the image's channel order.
            in_feature: the output of the backbone that is pooled; None: its last.
            head_lr_factor: learning-rate factor of the linear layer.
            channels_last: run convolutions in channels-last memory order.
            amp: 16-bit type that the backbone runs in; None: float32.
            max_batch: most images or crops that run together at test time.
        """
        super().__init__()
        shapes = backbone.output_shape()
        in_feature = in_feature or list(shapes)[-1]
        if in_feature not in shapes:
            raise ValueError(f"in_feature is {in_feature!r}, the backbone gives {sorted(shapes)}")
        if num_classes < 1:
            raise ValueError("MODEL.SEM_SEG_HEAD.NUM_CLASSES: expected at least one class")
        self.backbone = backbone
        fold_frozen_norms(self)
        if channels_last:
            self.to(memory_format=torch.channels_last)
        self.in_feature = in_feature
        self.num_classes = num_classes
        self.amp = amp
        self.max_batch = max_batch
        self.lr_factor = head_lr_factor
        self.stride = shapes[in_feature].stride
        self.classifier = nn.Linear(shapes[in_feature].channels, num_classes)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {
            "backbone": build_backbone(cfg),
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "pixel_mean": tuple(cfg.MODEL.PIXEL_MEAN),
            "pixel_std": tuple(cfg.MODEL.PIXEL_STD),
            "head_lr_factor": cfg.SOLVER.HEAD_LR_FACTOR,
            "amp": amp_dtype(cfg),
            "max_batch": cfg.TEST.IMS_PER_BATCH,
        }

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.pixel_mean.device

    def parameter_rules(self) -> list[tuple[str, float, float | None]]:
        """Learning-rate factors by parameter name, for the trainer's optimiser."""
        return [("classifier", self.lr_factor, None)]

    def normalize(self, image: torch.Tensor) -> torch.Tensor:
        """(..., 3, H, W) of any dtype to float32, moved to the device and standardised."""
        return (image.to(self.device).float() - self.pixel_mean) / self.pixel_std

    def logits(
        self, images: torch.Tensor, sizes: list[tuple[int, int]] | None = None
    ) -> torch.Tensor:
        """Classify standardised images.

        Args:
            images: (N, 3, H, W).
            sizes: height and width of each image within its padding; None: no padding.

        Returns:
            (N, classes) logits.
        """
        with autocast(images.device, self.amp):
            features = self.backbone(images)[self.in_feature]
        features = features.float()
        if sizes is None or all(tuple(size) == tuple(images.shape[-2:]) for size in sizes):
            pooled = features.mean(dim=(2, 3))
        else:
            pooled = torch.stack(
                [
                    one[:, : -(-height // self.stride), : -(-width // self.stride)].mean(dim=(1, 2))
                    for one, (height, width) in zip(features, sizes, strict=True)
                ]
            )
        return self.classifier(pooled)

    def forward(self, batched_inputs: list[dict]) -> dict | list[dict]:
        """Return ``{"loss_tags"}`` while training, else probabilities.

        Returns:
            In evaluation a list of dicts. ``tags`` are the (classes,) probabilities of an image,
            ``crop_tags`` the (crops, classes) ones of a sample with ``crops``.
        """
        if not self.training:
            return self._classify(batched_inputs)
        images = ImageList.from_tensors([self.normalize(x["image"]) for x in batched_inputs])
        target = torch.stack([x["tags"] for x in batched_inputs]).to(self.device).float()
        logits = self.logits(images.tensor, images.image_sizes)
        known = target >= 0
        losses = F.binary_cross_entropy_with_logits(logits, target.clamp(min=0), reduction="none")
        return {"loss_tags": (losses * known).sum() / known.sum().clamp(min=1)}

    @torch.no_grad()
    def _classify(self, samples: list[dict]) -> list[dict]:
        """Classify images and their crops; those of one size run together."""
        views = []
        for sample in samples:
            image = self.normalize(sample["image"])
            crops = sample.get("crops") or ()
            views += [image, *(image[:, y0:y1, x0:x1] for x0, y0, x1, y1 in crops)]

        def run(group: list[torch.Tensor]) -> list[torch.Tensor]:
            return list(self.logits(torch.stack(group)).sigmoid())

        scores = iter(in_groups(views, lambda view: view.shape, run, self.max_batch))
        results = []
        for sample in samples:
            result = {"tags": next(scores)}
            if sample.get("crops"):
                result["crop_tags"] = torch.stack([next(scores) for _ in sample["crops"]])
            results.append(result)
        return results
