# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The proposal that fits a box best (paper 3.2: highest IoU with the box, no ranking)."""

import numpy as np

from wsis_d2.utils.errors import check_choice
from wsis_d2.weak_labels.proposals.proposal_set import ProposalSet

MODES = ("bbox", "bbox_area", "mask_vs_box")


def select_proposal(
    proposals: ProposalSet,
    box: tuple[int, int, int, int],
    mode: str = "bbox_area",
    inside: np.ndarray | None = None,
    outside: np.ndarray | None = None,
) -> int | None:
    """Return the index of the proposal with the best fit, None where none meets the box.

    Args:
        proposals: the image's.
        box: x0, y0, x1, y1, exclusive ends.
        mode: "bbox": IoU of the proposal's tight box with the box; "mask_vs_box": IoU of the
            proposal itself with the filled box; "bbox_area" (default): the first plus half the
            second, which settles the near-ties among thousands of proposals.
        inside, outside: (H, W) bool, pixels marked as object and as something else. The share of
            the first in a proposal counts like its fit, that of the second against it. Addition,
            not in the paper.

    Raises:
        InputError: no such mode.
    """
    check_choice("WEAK_LABELS.PROPOSALS.SELECTION", mode, MODES)
    if not len(proposals):
        return None
    box_area = float((box[2] - box[0]) * (box[3] - box[1]))
    score = np.zeros(len(proposals))
    if mode != "mask_vs_box":
        score += box_iou(proposals.boxes, np.asarray(box, float))
    if mode != "bbox":
        shared = proposals.intersections(box)
        overlap = shared / np.maximum(proposals.areas + box_area - shared, 1e-9)
        score += overlap if mode == "mask_vs_box" else 0.5 * overlap
    meets = score > 0
    for marks, sign in ((inside, 1.0), (outside, -1.0)):
        if marks is not None and marks.any():
            score += sign * proposals.mask_intersections(marks) / np.count_nonzero(marks)
    best = int(np.argmax(np.where(meets, score, -np.inf)))
    return best if meets[best] else None


def box_iou(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Return the IoU of each box, (N, 4), with one box, (4,)."""
    low = np.maximum(boxes[:, :2], box[:2])
    high = np.minimum(boxes[:, 2:], box[2:])
    shared = np.maximum(high - low, 0).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod()
    return shared / np.maximum(areas - shared, 1e-9)
