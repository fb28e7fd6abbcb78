# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Matching ground-truth instances to labels, so that their order does not matter (paper 3.5)."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from wsis_d2.modeling.instance.labels import InstanceLabels
from wsis_d2.structures.labels import INSTANCE_IGNORE


def match_instances(
    inst_seg: torch.Tensor,
    inst_classes: torch.Tensor,
    prediction: torch.Tensor,
    labels: InstanceLabels,
    box_weight: float = 1e-3,
) -> torch.Tensor:
    """Match each ground-truth instance to at most one label of its class.

    Things: Hungarian matching by the IoU of an instance with the pixels that now have the label,
    plus ``box_weight`` times the IoU of its tight box with the label's box, which breaks the ties
    of early training. A pair where both are 0 stays unmatched. Stuff goes to its class's label.

    Args:
        inst_seg: (H, W) int64, index into ``inst_classes``, -1 ignore.
        inst_classes: (G,) int64, unified class ids.
        prediction: (H, W) int64, the label each pixel has now.
        labels: L labels.
        box_weight: weight of the IoU of boxes.

    Returns:
        (G,) int64, the label of each instance, -1 where unmatched. Detached.
    """
    assignment = torch.full_like(inst_classes, INSTANCE_IGNORE)
    num_instances, num_labels = len(inst_classes), len(labels)
    if num_instances == 0 or num_labels == 0:
        return assignment
    # Device values are read once, as the costs of the matching.
    with torch.no_grad():
        same = inst_classes[:, None] == labels.classes[None, :]
        stuff = ~labels.is_thing
        has_stuff = same & stuff
        first = has_stuff.to(torch.uint8).argmax(dim=1)
        assignment = torch.where(has_stuff.any(dim=1), first, assignment)

        weight = mask_iou(inst_seg, num_instances, prediction, num_labels)
        weight = weight + box_weight * _pairwise_box_iou(
            tight_boxes(inst_seg, num_instances), _pixel_boxes(labels.boxes, inst_seg.shape)
        )
        weight = weight.masked_fill(~same | stuff[None, :], 0).cpu().numpy()
        rows, columns = linear_sum_assignment(weight, maximize=True)
        matched = weight[rows, columns] > 0
        pairs = np.stack([rows[matched], columns[matched]])
        rows, columns = torch.from_numpy(pairs).to(assignment.device)
        return assignment.index_put((rows,), columns)


def to_matched_labels(inst_seg: torch.Tensor, assignment: torch.Tensor) -> torch.Tensor:
    """Write each instance's label into its pixels; unmatched and ignored pixels become -1.

    Args:
        inst_seg: (H, W) int64, index into ``assignment``, -1 ignore.
        assignment: (G,) int64 from :func:`match_instances`.
    """
    table = torch.cat([assignment, assignment.new_tensor([INSTANCE_IGNORE])])
    return table[inst_seg]


def mask_iou(
    first: torch.Tensor, num_first: int, second: torch.Tensor, num_second: int
) -> torch.Tensor:
    """IoU of every pair of regions of two maps, over the pixels that the first map labels.

    Args:
        first: (H, W) int64 in [-1, num_first).
        second: (H, W) int64 in [0, num_second).

    Returns:
        (num_first, num_second) float64; 0 where both regions are empty.
    """
    pairs = num_first * num_second
    index = torch.where(first >= 0, first * num_second + second, pairs).flatten()
    overlap = count_values(index, pairs + 1)[:pairs]
    overlap = overlap.view(num_first, num_second).double()
    union = overlap.sum(1, keepdim=True) + overlap.sum(0, keepdim=True) - overlap
    return overlap / union.clamp(min=1)


def tight_boxes(inst_seg: torch.Tensor, count: int) -> torch.Tensor:
    """Tight boxes of regions, (count, 4) XYXY with exclusive right and bottom; 0 if empty."""
    height, width = inst_seg.shape
    index = torch.where(inst_seg >= 0, inst_seg, count).flatten()
    ys = torch.arange(height, device=inst_seg.device)[:, None].expand_as(inst_seg).flatten()
    xs = torch.arange(width, device=inst_seg.device).expand_as(inst_seg).flatten()
    sides = [
        xs.new_full((count + 1,), start).scatter_reduce(0, index, values, how)[:count]
        for start, values, how in (
            (width, xs, "amin"), (height, ys, "amin"), (0, xs + 1, "amax"), (0, ys + 1, "amax"),
        )
    ]  # fmt: skip
    boxes = torch.stack(sides, dim=1)
    return torch.where(boxes[:, 2:3] == 0, 0, boxes).double()


def count_values(index: torch.Tensor, count: int) -> torch.Tensor:
    """How often each of 0 to count - 1 occurs, (count,) int64; reads nothing from the device."""
    return index.new_zeros(count).scatter_add_(0, index, torch.ones_like(index))


def _pixel_boxes(boxes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    limit = boxes.new_tensor([size[1], size[0], size[1], size[0]]).double()
    return torch.minimum(boxes.double().clamp(min=0), limit)


def _pairwise_box_iou(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    low = torch.maximum(first[:, None, :2], second[None, :, :2])
    high = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    overlap = (high - low).clamp(min=0).prod(dim=2)
    areas = [(b[:, 2:] - b[:, :2]).clamp(min=0).prod(dim=1) for b in (first, second)]
    union = areas[0][:, None] + areas[1][None, :] - overlap
    return overlap / union.clamp(min=1e-9)
