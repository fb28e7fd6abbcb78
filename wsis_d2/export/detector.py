# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Faster R-CNN's inference as one graph, for any image size and any number of detections.

Detectron2's own code branches on tensor values ("is any box empty?") and keeps its results in
Python objects, neither of which ``torch.export`` takes. This computes the same: what is dropped
there is put last here by a score of minus infinity, and only the final choice has a size that
depends on the picture.
"""

import copy

import torch
import torch.nn.functional as F
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import FPN
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import StandardROIHeads
from torch import nn
from torchvision.ops import nms

from wsis_d2.utils.errors import InputError


def pad_by_index(batch: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Extend (C, h, w) with zeros at the bottom and right to (C, height, width).

    By index: ``F.pad`` would make the program depend on whether a size needs padding.
    """
    h, w = batch.shape[-2:]
    rows = torch.arange(height, device=batch.device)
    columns = torch.arange(width, device=batch.device)
    batch = batch.index_select(1, rows.clamp(max=h - 1)).index_select(2, columns.clamp(max=w - 1))
    return batch * ((rows < h)[:, None] & (columns < w)[None, :])


class DetectorGraph(nn.Module):
    """Tensors in, tensors out: what ``Detector.detect`` computes, in unified class ids.

    Args:
        detector: a :class:`wsis_d2.modeling.meta_arch.detector.Detector` in evaluation mode.
        thing_ids: unified ids of the run's things, whose indices the detector gives.

    Raises:
        InputError: a detector of other parts than a feature pyramid, an RPN with plain anchors and
            box heads.
    """

    def __init__(self, detector: nn.Module, thing_ids: list[int]) -> None:
        super().__init__()
        rcnn = getattr(detector, "rcnn", None)  # boxes of files have none
        proposals = getattr(rcnn, "proposal_generator", None)
        for part, kind in (
            (getattr(rcnn, "backbone", None), FPN),
            (proposals, RPN),
            (getattr(proposals, "anchor_generator", None), DefaultAnchorGenerator),
            (getattr(rcnn, "roi_heads", None), StandardROIHeads),
        ):
            if type(part) is not kind:
                raise InputError(
                    f"detector: has a {type(part).__name__} where the exported graph knows a "
                    f"{kind.__name__}; export with --detections given"
                )
        # In channels-last order a program would be bound to sizes above 64.
        self.rcnn = copy.deepcopy(rcnn).to(memory_format=torch.contiguous_format)
        self.min_size, self.max_size = detector.min_size, detector.max_size
        # Of each class of the network; -1: a class of another data set that is no thing here.
        ids = [thing_ids[k] if k >= 0 else -1 for k in detector.class_map] or thing_ids
        self.register_buffer("_class_ids", torch.tensor(ids, dtype=torch.int64), False)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Detect things.

        Args:
            image: (3, H, W) float32, 0 to 255, channels in the config's order (BGR).

        Returns:
            boxes (D, 4) float32 XYXY in the image's pixels, best first; scores (D,) float32;
            classes (D,) int64 unified ids.
        """
        height, width = image.shape[-2:]
        resized = self._resize(image)
        size = resized.shape[-2:]
        features = self._features(resized)
        proposals, valid = self._proposals(features, size)
        boxes, scores, indices = self._detections(features, proposals, valid, size)
        scale = torch.stack([_number(width) / size[1], _number(height) / size[0]] * 2)
        boxes = _clip(boxes * scale.to(boxes), (height, width))
        classes = self._class_ids[indices]
        kept = _not_empty(boxes) & (classes >= 0)
        return boxes[kept], scores[kept], classes[kept]

    def _resize(self, image: torch.Tensor) -> torch.Tensor:
        """The shorter side to ``min_size``, the longer to at most ``max_size``."""
        if self.min_size <= 0:
            return image
        height, width = image.shape[-2:]
        short, long = torch.sym_min(height, width), torch.sym_max(height, width)
        # Detector.detect's rounding, in whole numbers: of these torch.export keeps formulas.
        wanted = [
            torch.sym_max(1, torch.sym_min(
                (2 * side * self.min_size + short) // (2 * short),
                (2 * side * self.max_size + long) // (2 * long),
            ))
            for side in (height, width)
        ]  # fmt: skip
        # Where the picture grows, antialiasing changes nothing.
        return F.interpolate(
            image[None], size=wanted, mode="bilinear", align_corners=False, antialias=True
        )[0]

    def _features(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        step = self.rcnn.backbone.size_divisibility
        height, width = image.shape[-2:]
        batch = (image - self.rcnn.pixel_mean) / self.rcnn.pixel_std
        high, wide = ((side + step - 1) // step * step for side in (height, width))
        return self.rcnn.backbone(pad_by_index(batch, high, wide)[None])

    def _proposals(
        self, features: dict[str, torch.Tensor], size: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the RPN's boxes (P, 4), best first, and which of them count, (P,) bool."""
        rpn = self.rcnn.proposal_generator
        levels = [features[name] for name in rpn.in_features]
        cells = list(rpn.anchor_generator.cell_anchors)
        strides, offset = rpn.anchor_generator.strides, rpn.anchor_generator.offset
        before, after = rpn.pre_nms_topk[False], rpn.post_nms_topk[False]
        all_boxes, all_scores, all_levels = [], [], []
        for level, (logits, deltas) in enumerate(zip(*rpn.rpn_head(levels), strict=True)):
            # Copies before views: whether a view is possible depends on sizes being 1.
            scores = logits[0].permute(1, 2, 0).contiguous().view(-1)
            deltas = deltas[0].permute(1, 2, 0).contiguous().view(-1, 4)
            anchors = _anchors(logits.shape[-2:], strides[level], offset, cells[level])
            boxes = _decode(deltas, anchors, rpn.box2box_transform)[:, 0]
            # A small level has fewer anchors than are asked for: padding makes up the number.
            scores = torch.cat([scores, scores.new_full((before,), -torch.inf)])
            boxes = torch.cat([boxes, boxes.new_zeros((before, 4))])
            scores, order = scores.topk(before)
            all_boxes.append(boxes[order])
            all_scores.append(scores)
            all_levels.append(torch.full_like(order, level))
        boxes, scores, levels = map(torch.cat, (all_boxes, all_scores, all_levels))
        boxes, scores = _drop_infinite(boxes, scores)
        boxes = _clip(boxes, size)
        scores = torch.where(_not_empty(boxes, rpn.min_box_size), scores, -torch.inf)
        kept = _nms(boxes, scores, levels, rpn.nms_thresh)
        survives = torch.zeros_like(levels, dtype=torch.bool).index_fill(0, kept, True)
        scores = torch.where(survives, scores, -torch.inf)
        scores, order = scores.topk(min(after, len(scores)))
        return boxes[order], scores > -torch.inf

    def _detections(
        self,
        features: dict[str, torch.Tensor],
        proposals: torch.Tensor,
        valid: torch.Tensor,
        size: tuple[int, int],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Classify proposals; return boxes (D, 4), scores (D,) and class indices (D,)."""
        heads = self.rcnn.roi_heads
        predictor = heads.box_predictor
        pooled = self._pool([features[name] for name in heads.box_in_features], proposals)
        logits, deltas = predictor(heads.box_head(pooled))
        scores = logits.softmax(dim=1)
        boxes = _decode(deltas, proposals, predictor.box2box_transform)
        good = valid & torch.isfinite(boxes).flatten(1).all(1) & torch.isfinite(scores).all(1)
        scores = scores[:, :-1]
        boxes = _clip(boxes, size).expand(-1, scores.shape[1], -1)
        rows, classes = torch.nonzero(
            (scores > predictor.test_score_thresh) & good[:, None], as_tuple=True
        )
        boxes, scores = boxes[rows, classes], scores[rows, classes]
        kept = _nms(boxes, scores, classes, predictor.test_nms_thresh)
        if predictor.test_topk_per_image >= 0:
            rank = torch.arange(kept.shape[0], device=kept.device)
            kept = kept[rank < predictor.test_topk_per_image]
        return boxes[kept], scores[kept], classes[kept]

    def _pool(self, features: list[torch.Tensor], boxes: torch.Tensor) -> torch.Tensor:
        """Detectron2's ROIPooler for one image: every box from the level of its size."""
        pooler = self.rcnn.roi_heads.box_pooler
        rois = torch.cat([boxes.new_zeros((len(boxes), 1)), boxes], dim=1)
        if len(features) == 1:
            return pooler.level_poolers[0](features[0], rois)
        sides = torch.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
        levels = pooler.canonical_level + torch.log2(sides / pooler.canonical_box_size + 1e-8)
        levels = levels.floor().clamp(pooler.min_level, pooler.max_level).to(torch.int64)
        result = 0.0
        for index, (pool, feature) in enumerate(zip(pooler.level_poolers, features, strict=True)):
            here = (levels == pooler.min_level + index)[:, None]
            # Boxes of other levels shrink to a point: almost no work.
            part = pool(feature, torch.where(here, rois, 0.0))
            result = result + torch.where(here[:, :, None, None], part, 0.0)
        return result


def _number(value: int | float) -> torch.Tensor:
    """A size of the picture as a tensor."""
    return torch.scalar_tensor(value, dtype=torch.float32)


def _anchors(size: tuple[int, int], stride: int, offset: float, cell: torch.Tensor) -> torch.Tensor:
    """Anchors of a feature map in the order of its scores: rows, columns, the cell's anchors."""
    y, x = (
        (torch.arange(n, device=cell.device, dtype=torch.float32) + offset) * stride for n in size
    )
    x, y = x.expand(size[0], -1), y[:, None].expand(-1, size[1])
    corners = torch.stack([x, y, x, y], dim=-1)
    return (corners[:, :, None] + cell).contiguous().view(-1, 4)


def _decode(deltas: torch.Tensor, boxes: torch.Tensor, transform: Box2BoxTransform) -> torch.Tensor:
    """Apply deltas (N, 4 k) to boxes (N, 4), as Detectron2's Box2BoxTransform; (N, k, 4).

    Written out because that one is a TorchScript class, which ``torch.export`` does not take.
    """
    deltas = deltas.float().unflatten(1, (-1, 4)) / deltas.new_tensor(transform.weights)
    sides = (boxes[:, 2:] - boxes[:, :2])[:, None]
    centres = deltas[..., :2] * sides + (boxes[:, :2][:, None] + 0.5 * sides)
    half = 0.5 * deltas[..., 2:].clamp(max=transform.scale_clamp).exp() * sides
    return torch.cat([centres - half, centres + half], dim=-1)


def _clip(boxes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Corners (..., 4) into an image of (height, width)."""
    height, width = size
    x = boxes[..., 0::2].clamp(min=0).clamp(max=width)
    y = boxes[..., 1::2].clamp(min=0).clamp(max=height)
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], dim=-1)


def _not_empty(boxes: torch.Tensor, threshold: float = 0.0) -> torch.Tensor:
    return ((boxes[:, 2:] - boxes[:, :2]) > threshold).all(dim=1)


def _drop_infinite(boxes: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    good = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores)
    return torch.where(good[:, None], boxes, 0.0), torch.where(good, scores, -torch.inf)


def _nms(
    boxes: torch.Tensor, scores: torch.Tensor, groups: torch.Tensor, threshold: float
) -> torch.Tensor:
    """Non-maximum suppression within each group; indices, best first.

    Args:
        boxes: (N, 4) with no corner below 0.

    Groups are moved apart; in double precision, so that it rounds nothing.
    """
    boxes = boxes.double()
    # torchvision tells torch.export that two boxes at least are kept. Two that touch no other
    # make that true, and are taken out again.
    guards = boxes.new_tensor([[-2, -2, -1, -1], [-4, -4, -3, -3]])
    far = torch.cat([boxes, guards]).max().clamp(min=0) + 1
    boxes = torch.cat([boxes + (groups * far)[:, None], guards])
    scores = torch.cat([scores, scores.new_full((2,), -torch.inf)]).double()
    kept = nms(boxes, scores, threshold)
    return kept[kept < groups.shape[0]]
