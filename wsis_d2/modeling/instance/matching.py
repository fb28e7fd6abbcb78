# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Matching ground-truth instances to labels, so that their order does not matter (paper 3.5)."""

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
    with torch.no_grad():
        same = inst_classes[:, None] == labels.classes[None, :]
        stuff = ~labels.is_thing
        has_stuff = same & stuff
        found = has_stuff.any(dim=1)
        assignment[found] = has_stuff[found].to(torch.uint8).argmax(dim=1)

        weight = mask_iou(inst_seg, num_instances, prediction, num_labels)
        weight = weight + box_weight * _pairwise_box_iou(
            tight_boxes(inst_seg, num_instances), _pixel_boxes(labels.boxes, inst_seg.shape)
        )
        weight[~same | stuff[None, :]] = 0
        rows, columns = linear_sum_assignment(weight.cpu().numpy(), maximize=True)
        for row, column in zip(rows, columns, strict=True):
            if weight[row, column] > 0:
                assignment[row] = int(column)
    return assignment


def relabel(inst_seg: torch.Tensor, assignment: torch.Tensor) -> torch.Tensor:
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
    valid = first >= 0
    a, b = first[valid], second[valid]
    overlap = torch.bincount(a * num_second + b, minlength=num_first * num_second)
    overlap = overlap.view(num_first, num_second).double()
    union = overlap.sum(1, keepdim=True) + overlap.sum(0, keepdim=True) - overlap
    return overlap / union.clamp(min=1)


def tight_boxes(inst_seg: torch.Tensor, count: int) -> torch.Tensor:
    """Tight boxes of regions, (count, 4) XYXY with exclusive right and bottom; 0 if empty."""
    height, width = inst_seg.shape
    valid = inst_seg >= 0
    ys, xs = torch.nonzero(valid, as_tuple=True)
    index = inst_seg[valid]
    boxes = inst_seg.new_zeros((count, 4))
    boxes[:, 0].fill_(width).scatter_reduce_(0, index, xs, "amin")
    boxes[:, 1].fill_(height).scatter_reduce_(0, index, ys, "amin")
    boxes[:, 2].scatter_reduce_(0, index, xs + 1, "amax")
    boxes[:, 3].scatter_reduce_(0, index, ys + 1, "amax")
    boxes[boxes[:, 2] == 0] = 0
    return boxes.double()


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
