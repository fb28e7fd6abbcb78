# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The labels an image's pixels choose from: one per detection, one per stuff class (paper 3.5)."""

from dataclasses import dataclass

import torch


@dataclass
class InstanceLabels:
    """L possible labels of an image's pixels, things first.

    Attributes:
        classes: (L,) int64, unified class ids.
        scores: (L,) float32 in [0, 1]; 1 for stuff.
        boxes: (L, 4) float32 XYXY; the whole image for stuff.
        num_things: how many of the L are detections; the rest are stuff, one a class.
    """

    classes: torch.Tensor
    scores: torch.Tensor
    boxes: torch.Tensor
    num_things: int

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def is_thing(self) -> torch.Tensor:
        """(L,) bool."""
        count = self.classes.shape[0]  # len() would fix the number in an exported program
        return torch.arange(count, device=self.classes.device) < self.num_things


def make_labels(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    classes: torch.Tensor,
    stuff_ids: list[int] | torch.Tensor,
    image_size: tuple[int, int],
) -> InstanceLabels:
    """Append a whole-image dummy detection with score 1 for every stuff class.

    Args:
        boxes: (D, 4) XYXY, D may be 0.
        scores: (D,) in [0, 1].
        classes: (D,) unified ids.
        stuff_ids: unified ids of the stuff classes; on the boxes' device nothing is copied.
        image_size: (H, W).
    """
    height, width = image_size
    device = boxes.device
    stuff = torch.as_tensor(stuff_ids, dtype=torch.int64, device=device)
    ones = torch.ones(len(stuff), device=device)
    whole = torch.stack([0 * ones, 0 * ones, width * ones, height * ones], dim=1)
    return InstanceLabels(
        classes=torch.cat([classes.to(torch.int64), stuff]),
        scores=torch.cat([scores.float(), ones]),
        boxes=torch.cat([boxes.float().reshape(-1, 4), whole]),
        num_things=boxes.shape[0],
    )


def box_masks(boxes: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
    """Return the pixels of boxes: corners truncated to integers, inclusive, clamped.

    Args:
        boxes: (L, 4) XYXY.
        image_size: (H, W).

    Returns:
        (L, H, W) bool.
    """
    height, width = image_size
    corners = boxes.trunc().to(torch.int64)
    x0, x1 = (corners[:, i].clamp(0, width - 1) for i in (0, 2))
    y0, y1 = (corners[:, i].clamp(0, height - 1) for i in (1, 3))
    xs = torch.arange(width, device=boxes.device)
    ys = torch.arange(height, device=boxes.device)
    columns = (xs >= x0[:, None]) & (xs <= x1[:, None])
    rows = (ys >= y0[:, None]) & (ys <= y1[:, None])
    return rows[:, :, None] & columns[:, None, :]
