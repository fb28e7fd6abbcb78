# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""A detector, a semantic subnetwork and a CRF that joins them (paper fig. 5)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Instances
from torch import nn

from wsis_d2.modeling.annotation_losses import AnnotationLosses
from wsis_d2.modeling.instance import (
    InstanceLabels,
    build_instance_head,
    instance_loss,
    make_labels,
)
from wsis_d2.modeling.meta_arch.detector import BoxesFromFiles, Detector, build_detector
from wsis_d2.modeling.postprocessing import (
    SCORE_MODES,
    assign_labels,
    panoptic_result,
    segments_to_instances,
)
from wsis_d2.modeling.semantic import SemanticSubnetwork
from wsis_d2.structures.stages import Stage, stage_named

_STEP = 4
TRAIN_BOXES = ("detector", "gt", "gt_jitter")


@META_ARCH_REGISTRY.register()
class WeakPanopticRCNN(nn.Module):
    """Explains every pixel of an image by a detected thing or a stuff class.

    One stage is trained at a time, and a stage holds only the parts it needs; which, and what they
    learn, is the table :data:`wsis_d2.structures.stages.STAGES`. The detector is back-propagated
    in its own stage only.
    """

    @configurable
    def __init__(
        self,
        *,
        stage: Stage,
        detector: Detector | BoxesFromFiles | None,
        semantic: SemanticSubnetwork | None,
        instance: nn.Module | None,
        num_classes: int,
        thing_ids: list[int],
        train_boxes: str = "detector",
        box_jitter: float = 0.05,
        semantic_loss_weight: float = 1.0,
        instance_loss_weight: float = 1.0,
        annotation: AnnotationLosses | None = None,
        annotation_loss_weight: float = 0.0,
        match_box_weight: float = 1e-3,
        min_thing_area: int = 0,
        min_stuff_area: int = 0,
        thing_score: str = "detection",
        stuff_score: str = "mean_confidence",
        head_lr_factor: float = 10.0,
        crf_lr_factor: float = 10.0,
    ) -> None:
        """
        Args:
            stage: what is trained; it has the parts that are given.
            detector, semantic, instance: the parts; None where the stage has no use for one.
            num_classes: number of unified classes C.
            thing_ids: ascending unified ids of the things.
            train_boxes: where the instance stages take boxes from, one of ``TRAIN_BOXES``.
            box_jitter: each side of a "gt_jitter" box moves by up to this share of its size.
            semantic_loss_weight: weight of the semantic losses in the end_to_end stage.
            instance_loss_weight: weight of the instance loss.
            annotation: what tags and boxes say of the semantics of weak samples.
            annotation_loss_weight: its weight wherever the semantic losses are; 0: not used.
            match_box_weight: see :func:`wsis_d2.modeling.instance.match_instances`.
            min_thing_area, min_stuff_area: see
                :func:`wsis_d2.modeling.postprocessing.assign_labels`.
            thing_score, stuff_score: which score ranks segments.
            head_lr_factor, crf_lr_factor: learning rates of the semantic head and of the instance
                head, as factors of the base rate.

        Raises:
            ValueError: an option outside its range, or a stage with nothing to train.
        """
        super().__init__()
        if train_boxes not in TRAIN_BOXES:
            raise ValueError(
                f"MODEL.WSIS.TRAIN_BOXES is {train_boxes!r}, expected one of {TRAIN_BOXES}"
            )
        for name, mode in (("thing_score", thing_score), ("stuff_score", stuff_score)):
            if mode not in SCORE_MODES:
                raise ValueError(f"{name} is {mode!r}, expected one of {SCORE_MODES}")
        self.stage = stage
        self._fixed = [part for part in stage.parts if part not in stage.trained]
        self.detector = detector
        self.semantic = semantic
        self.instance = instance
        self.num_classes = num_classes
        self.thing_ids = list(thing_ids)
        self.stuff_ids = [c for c in range(num_classes) if c not in set(thing_ids)]
        self.train_boxes = train_boxes
        self.box_jitter = box_jitter
        self.semantic_loss_weight = semantic_loss_weight
        self.instance_loss_weight = instance_loss_weight
        self.annotation = annotation
        self.annotation_loss_weight = annotation_loss_weight
        self.match_box_weight = match_box_weight
        self.min_thing_area = min_thing_area
        self.min_stuff_area = min_stuff_area
        self.thing_score = thing_score
        self.stuff_score = stuff_score
        self.head_lr_factor = head_lr_factor
        self.crf_lr_factor = crf_lr_factor
        self.register_buffer("_thing_ids", torch.tensor(self.thing_ids, dtype=torch.int64), False)
        self.register_buffer("_stuff_ids", torch.tensor(self.stuff_ids, dtype=torch.int64), False)
        self.register_buffer("_device", torch.zeros(()), False)
        self._detections: dict[tuple[str | None, str], Instances] = {}
        self._freeze()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        options, head = cfg.MODEL.WSIS, cfg.MODEL.INSTANCE_HEAD
        stage = stage_named(options.STAGE)
        return {
            "stage": stage,
            "detector": build_detector(cfg) if "detector" in stage.parts else None,
            "semantic": SemanticSubnetwork(cfg) if "semantic" in stage.parts else None,
            "instance": build_instance_head(cfg) if "instance" in stage.parts else None,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "thing_ids": options.THING_IDS,
            "train_boxes": options.TRAIN_BOXES,
            "annotation": AnnotationLosses(
                cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
                options.THING_IDS,
                box_weight=0.3,
                entropy_weight=0.0,
            ),
            "annotation_loss_weight": options.ANNOTATION_LOSS_WEIGHT,
            "min_stuff_area": head.MIN_AREAS[0],
            "min_thing_area": head.MIN_AREAS[1],
            "head_lr_factor": cfg.SOLVER.HEAD_LR_FACTOR,
        }

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return self._device.device

    def parameter_rules(self) -> list[tuple[str, float, float | None]]:
        """Return (name prefix, factor of the learning rate, weight decay or None for the usual)."""
        return [
            ("semantic.head.", self.head_lr_factor, None),
            ("instance.", self.crf_lr_factor, 0.0),
        ]

    def _freeze(self) -> None:
        """Fix the parts that the stage does not train."""
        for part in self._fixed:
            getattr(self, part).requires_grad_(False)
        if self.stage.joint and self.semantic_loss_weight == 0:
            for name, parameter in self.semantic.head.named_parameters():
                if name.startswith("aux_"):
                    parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> "WeakPanopticRCNN":
        """Switch the trained parts to training; the others stay in evaluation mode."""
        super().train(mode)
        for part in self._fixed if mode else ():
            getattr(self, part).eval()
        return self

    def forward(self, batched_inputs: list[dict]) -> dict[str, torch.Tensor] | list[dict]:
        """Train on or predict a batch.

        Args:
            batched_inputs: for each image ``image`` (3, H, W) 0 to 255, BGR, and
                while training what :class:`wsis_d2.data.mappers.PanopticMapper` gives;
                while testing ``height``, ``width`` of the output (default: the image's).

        Returns:
            While training, losses by name. Else for each image, as far as the stage has it:
            ``sem_seg`` (C, H, W) probabilities, ``panoptic_seg`` ((H, W) int32, segments), and
            ``instances``.
        """
        if not self.training:
            return self._predict(batched_inputs)
        if self.semantic is None:
            return self.detector(batched_inputs)
        images = [record["image"].to(self.device, non_blocking=True) for record in batched_inputs]
        if self.instance is None:
            logits, aux = self.semantic.logits(images, self.semantic.crop_size)
            return self._semantic_losses(logits, aux, batched_inputs)
        return self._joint_losses(batched_inputs, images)

    def _semantic_losses(
        self, logits: torch.Tensor, aux: torch.Tensor | None, batched_inputs: list[dict]
    ) -> dict[str, torch.Tensor]:
        """Losses on the labels, and of weak samples what their tags and boxes say."""
        targets = [
            record["sem_seg"].to(self.device, non_blocking=True) for record in batched_inputs
        ]
        losses = self.semantic.losses(logits, aux, targets)
        if self.annotation_loss_weight == 0:
            return losses
        found = []
        for own, record in zip(logits, batched_inputs, strict=True):
            if "crops" in record:
                height, width = record["image"].shape[-2:]
                # The logits are smooth: every fourth pixel tells it all.
                cells = own[:, :height:_STEP, :width:_STEP].float().softmax(0)
                found.append(self.annotation(cells, record))
        # Every process must have every loss, also one that drew no weak image.
        zero = logits.sum() * 0.0
        for name in self.annotation.weights:
            mean = torch.stack([own[name] for own in found]).mean() if found else zero
            losses[f"loss_{name}"] = self.annotation_loss_weight * mean
        return losses

    def _joint_losses(
        self, batched_inputs: list[dict], images: list[torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        trained = "semantic" in self.stage.trained
        self.instance.project()
        with torch.set_grad_enabled(trained):
            logits, aux = self.semantic.logits(images, self.semantic.crop_size)
        losses = {}
        if trained and self.semantic_loss_weight > 0:
            losses = self._semantic_losses(logits, aux, batched_inputs)
            losses = {k: v * self.semantic_loss_weight for k, v in losses.items()}
        total = logits.sum() * 0.0 + sum(p.sum() for p in self.instance.parameters()) * 0.0
        for index, (record, image) in enumerate(zip(batched_inputs, images, strict=True)):
            height, width = image.shape[-2:]
            labels = self._training_labels(record, image)
            if len(labels) == 0:
                continue
            probabilities = F.softmax(logits[index, :, :height, :width].float(), dim=0)
            scores = self.instance(probabilities, image, labels)
            total = total + instance_loss(
                scores,
                labels,
                record["inst_seg"].to(self.device),
                record["inst_classes"].to(self.device),
                self.match_box_weight,
            )
        losses["loss_instance"] = self.instance_loss_weight * total / len(images)
        return losses

    def _training_labels(self, record: dict, image: torch.Tensor) -> InstanceLabels:
        size = tuple(image.shape[-2:])
        if self.train_boxes == "detector":
            boxes, scores, classes = self._cached_detections(record, size)
        else:
            truth = record["instances"].to(self.device)
            boxes = truth.gt_boxes.tensor
            classes = self._thing_ids[truth.gt_classes]
            scores = boxes.new_ones(len(boxes))
            if self.train_boxes == "gt_jitter":
                sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
                boxes = boxes + sides * self.box_jitter * (2 * torch.rand_like(boxes) - 1)
        return make_labels(boxes, scores, classes, self._stuff_ids, size)

    def _cached_detections(self, record: dict, size: tuple[int, int]) -> tuple[torch.Tensor, ...]:
        """Detections of the whole training image, brought into its crop.

        The detector does not change in these stages, so it sees each image once.
        """
        # Files of boxes may differ between data sets that share a photograph.
        key = (record.get("dataset_name"), record["file_name"])
        if key not in self._detections:
            with torch.no_grad():
                image = record["detector_image"].to(self.device)
                source = {k: record[k] for k in ("dataset_name", "image_id") if k in record}
                found = self.detector.detect([image], [source])[0]
            self._detections[key] = found.to("cpu")
        found = self._detections[key]
        boxes = found.pred_boxes.tensor.numpy()
        if len(boxes):
            boxes = record["transforms"].apply_box(boxes)
        boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        limit = boxes.new_tensor([size[1], size[0], size[1], size[0]])
        boxes = torch.minimum(boxes.clamp(min=0), limit)
        inside = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(dim=1)
        classes = self._thing_ids[found.pred_classes[inside].to(self.device)]
        return boxes[inside].to(self.device), found.scores[inside].to(self.device), classes

    @torch.no_grad()
    def _predict(self, records: list[dict]) -> list[dict]:
        images, sizes = zip(*(self.input_of(record) for record in records), strict=True)
        if self.semantic is None:
            return [{"instances": self._unified(f)} for f in self.detector.detect(images, records)]
        probabilities = self.class_probabilities(images, sizes)
        if self.instance is None:
            return [{"sem_seg": own} for own in probabilities]
        labels = self.instance_labels(images, records)
        return [
            {"sem_seg": own, **self.merge(own, image, candidates)}
            for own, image, candidates in zip(probabilities, images, labels, strict=True)
        ]

    def input_of(self, record: dict) -> tuple[torch.Tensor, tuple[int, int]]:
        """Return a record's image on the model's device and the size (H, W) of its output."""
        image = record["image"].to(self.device)
        height, width = image.shape[-2:]
        return image, (int(record.get("height", height)), int(record.get("width", width)))

    def class_probabilities(
        self, images: Sequence[torch.Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[torch.Tensor]:
        """Return the semantic subnetwork's Q of each image, (C, H, W) of its size."""
        return [
            own
            if size == tuple(own.shape[-2:])
            else F.interpolate(own[None], size=size, mode="bilinear", align_corners=False)[0]
            for own, size in zip(self.semantic.probabilities(list(images)), sizes, strict=True)
        ]

    def instance_labels(
        self, images: Sequence[torch.Tensor], records: Sequence[dict]
    ) -> list[InstanceLabels]:
        """Return the labels that each image's pixels choose from, boxes in the output's size."""
        return [
            make_labels(
                found.pred_boxes.tensor,
                found.scores,
                self._thing_ids[found.pred_classes],
                self._stuff_ids,
                found.image_size,
            )
            for found in self.detector.detect(images, records)
        ]

    def merge(
        self, probabilities: torch.Tensor, image: torch.Tensor, labels: InstanceLabels
    ) -> dict:
        """Join class probabilities and labels to the panoptic result.

        Args:
            probabilities: (C, H, W).
            image: (3, h, w), resized to (H, W) if it differs.
            labels: L labels; with none, every pixel is void (segment 0).

        Returns:
            ``panoptic_seg`` and ``instances``.
        """
        size = tuple(probabilities.shape[-2:])
        if len(labels) == 0:
            assignment = torch.zeros(size, dtype=torch.int64, device=probabilities.device)
        else:
            if tuple(image.shape[-2:]) != size:
                image = F.interpolate(
                    image[None].float(), size=size, mode="bilinear", align_corners=False
                )[0]
            scores = self.instance(probabilities, image, labels)
            assignment = assign_labels(scores, labels, self.min_thing_area, self.min_stuff_area)
        segmentation, segments = panoptic_result(
            assignment, probabilities, labels, self.thing_score, self.stuff_score
        )
        instances = segments_to_instances(segmentation, segments)
        return {"panoptic_seg": (segmentation, segments), "instances": instances}

    def _unified(self, found: Instances) -> Instances:
        found.pred_classes = self._thing_ids[found.pred_classes]
        return found
