# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Label scores to the panoptic result: one segment a label, scores of every ranking mode."""

import torch
from detectron2.structures import Boxes, Instances

from wsis_d2.modeling.instance.labels import InstanceLabels
from wsis_d2.modeling.instance.matching import count_values

SCORE_MODES = ("detection", "mean_confidence")


def assign_labels(
    scores: torch.Tensor,
    labels: InstanceLabels,
    min_thing_area: int = 0,
    min_stuff_area: int = 0,
) -> torch.Tensor:
    """Give every pixel its best label; dissolve segments that are too small.

    The paper's labelling is the maximum alone (3.5); a least area is an addition, not in the
    paper. Labels whose segment is smaller than allowed are dropped together, and their pixels take
    the best of the labels that are left. If nothing would be left, nothing is dropped.

    Args:
        scores: (L, H, W), L >= 1.
        labels: the L labels.
        min_thing_area, min_stuff_area: least pixels of a segment; 0 keeps all.

    Returns:
        (H, W) int64 in [0, L).
    """
    best = scores.argmax(dim=0)
    if min_thing_area <= 0 and min_stuff_area <= 0:
        return best
    # No step depends on how many labels are kept, so that torch.export can take this.
    flat = best.flatten()
    area = torch.zeros_like(labels.classes).scatter_add(0, flat, torch.ones_like(flat))
    least = torch.where(labels.is_thing, min_thing_area, min_stuff_area)
    kept = area >= least.clamp(min=1)
    dropped = ~kept & kept.any()
    return scores.masked_fill(dropped[:, None, None], -torch.inf).argmax(dim=0)


def panoptic_result(
    assignment: torch.Tensor,
    probabilities: torch.Tensor,
    labels: InstanceLabels,
    thing_score: str = "detection",
    stuff_score: str = "mean_confidence",
) -> tuple[torch.Tensor, list[dict]]:
    """Turn each pixel's label into segments with scores (paper 4.3, table 6).

    Args:
        assignment: (H, W) int64 in [0, L).
        probabilities: (C, H, W).
        labels: the L labels.
        thing_score, stuff_score: which of ``SCORE_MODES`` becomes ``score``.

    Returns:
        (H, W) int32, segment ids from 1; and for each segment ``id``, ``category_id``,
        ``isthing``, ``score``, ``scores`` (both modes; a stuff segment's detection score is 1),
        ``area``, and ``label``, its index among the labels. Labels without a pixel vanish.
    """
    segmentation = torch.zeros_like(assignment, dtype=torch.int32)
    count = len(labels)
    if count == 0:
        return segmentation, []
    flat = assignment.flatten()
    own_class = probabilities.gather(0, labels.classes[assignment][None])[0].flatten().double()
    area = count_values(flat, count)
    total = own_class.new_zeros(count).scatter_add_(0, flat, own_class)
    # One read from the device for all segments.
    numbers = [total / area.clamp(min=1), area, labels.scores, labels.classes]
    rows = torch.stack([n.double() for n in numbers], dim=1).tolist()
    table = [0] * count
    segments: list[dict] = []
    for index, (confidence, pixels, detection, class_id) in enumerate(rows):
        if pixels == 0:
            continue
        thing = index < labels.num_things
        scores = {"detection": detection if thing else 1.0, "mean_confidence": confidence}
        table[index] = len(segments) + 1
        segments.append(
            {
                "id": len(segments) + 1,
                "category_id": int(class_id),
                "isthing": thing,
                "score": scores[thing_score if thing else stuff_score],
                "scores": scores,
                "area": int(pixels),
                "label": index,
            }
        )
    ids = torch.tensor(table, dtype=torch.int32, device=assignment.device)
    return ids[assignment], segments


def segments_to_instances(segmentation: torch.Tensor, segments: list[dict]) -> Instances:
    """Thing segments as Detectron2 instances.

    Args:
        segmentation: (H, W) int32 segment ids.
        segments: from :func:`panoptic_result`.

    Returns:
        ``pred_masks`` (N, H, W) bool, ``pred_boxes`` (their tight boxes), ``scores``,
        ``pred_classes`` (unified ids).
    """
    things = [s for s in segments if s["isthing"]]
    device = segmentation.device
    ids = torch.tensor([s["id"] for s in things], dtype=torch.int32, device=device)
    masks = segmentation[None] == ids[:, None, None]
    instances = Instances(tuple(segmentation.shape))
    instances.pred_masks = masks
    instances.pred_boxes = Boxes(_tight_boxes(masks))
    instances.scores = torch.tensor([s["score"] for s in things], device=device)
    instances.pred_classes = torch.tensor(
        [s["category_id"] for s in things], dtype=torch.int64, device=device
    )
    return instances


def _tight_boxes(masks: torch.Tensor) -> torch.Tensor:
    """Boxes of masks (N, H, W), none empty, (N, 4) float32 XYXY with exclusive right and bottom."""
    corners = []
    for axis in (1, 2):  # what is left over columns, then over rows
        used = masks.any(dim=axis).to(torch.uint8)
        last = used.shape[1] - used.flip(1).argmax(dim=1)
        corners.append((used.argmax(dim=1), last))
    (left, right), (top, bottom) = corners
    return torch.stack([left, top, right, bottom], dim=1).float()
