# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""What tags and boxes alone say of a prediction, as losses. Addition, not in the paper.

Tags of windows and boxes speak of sets of pixels: which classes a set can have, and which it must
show somewhere (constrained multiple-instance learning, as Pathak, Krähenbühl, Darrell, "Constrained
convolutional neural networks for weakly supervised segmentation", ICCV 2015). A sample's annotation
is that of :func:`wsis_d2.data.mappers.regions.annotation_regions`.
"""

import math
from collections.abc import Collection, Mapping, Sequence

import torch

_TINY = 1e-6
_WHOLE = 0.9
"""Share of a window or a box that must be in the image for it to be sure to show its class."""


class AnnotationLosses:
    """Losses of a distribution over the classes at each cell of an image; it has no parameters.

    Each is a mean of negative logarithms:

    - ``possible``: a cell's probability of the classes possible there. Stuff is possible
      where every window that holds the cell has it, a thing in the boxes of its class.
    - ``tags``: for each window and stuff class in it, the mean of the cells that are surest
      of the class, a small share of the window.
    - ``boxes``: the same for each box and its class.
    - ``entropy``: entropy among the possible classes: a cell should make up its mind.

    What a random crop has cut from a window may have been what showed its class: windows and
    boxes of which less than nine tenths are left tell only what is possible.
    """

    def __init__(
        self,
        num_classes: int,
        thing_ids: Collection[int],
        tag_share: float = 0.01,
        box_share: float = 0.3,
        box_weight: float = 1.0,
        entropy_weight: float = 1.0,
    ) -> None:
        """
        Args:
            num_classes: number of classes, stuff and things.
            thing_ids: contiguous ids of the things.
            tag_share, box_share: share of a window's or a box's cells that must show its class,
                in (0, 1].
            box_weight, entropy_weight: of their losses, beside 1 for the others; 0: left out.
        """
        self.num_classes = num_classes
        self.thing_ids = list(thing_ids)
        self.stuff_ids = [c for c in range(num_classes) if c not in set(thing_ids)]
        self.tag_share = tag_share
        self.box_share = box_share
        weights = {"possible": 1.0, "tags": 1.0, "boxes": box_weight, "entropy": entropy_weight}
        self.weights = {name: weight for name, weight in weights.items() if weight}

    def __call__(self, probabilities: torch.Tensor, sample: Mapping) -> dict[str, torch.Tensor]:
        """Return the losses of one image, weighted.

        Args:
            probabilities: (C, h, w), sums of 1 over C, on a grid that covers the image.
            sample: ``image`` (3, H, W), ``crops``, ``crop_targets``, ``boxes``, ``has_boxes``.
        """
        zero = probabilities.sum() * 0.0
        possible = self.possible(sample, probabilities.shape[-2:], probabilities.device)
        mass = (probabilities * possible).sum(0)
        some = possible.any(0)
        cells = some.sum().clamp(min=1)
        own = probabilities * possible / mass.clamp(min=_TINY)
        tags = [
            self.surest(probabilities[class_id], sample, window, self.tag_share)
            for window, target in zip(sample["crops"], sample["crop_targets"], strict=True)
            if _is_whole(window, sample)
            for class_id in self.stuff_ids
            if target[class_id] > 0
        ]
        boxes = [
            self.surest(probabilities[class_id], sample, box, self.box_share)
            for box, class_id, group in _boxes(sample)
            if not group and _is_whole(box, sample)
        ]
        losses = {
            "possible": -(mass.clamp(min=_TINY).log() * some).sum() / cells,
            "tags": torch.stack(tags).mean() if tags else zero,
            "boxes": torch.stack(boxes).mean() if boxes else zero,
            "entropy": -(own * own.clamp(min=_TINY).log() * some).sum() / cells,
        }
        return {name: weight * losses[name] for name, weight in self.weights.items()}

    def possible(
        self, sample: Mapping, grid: tuple[int, int], device: torch.device | str = "cpu"
    ) -> torch.Tensor:
        """Return where annotation allows each class, bool (C, h, w) of ``grid`` (h, w).

        Where no window tells of stuff, none is allowed: nothing is known there. A sample whose
        ``has_boxes`` is False allows things everywhere.
        """
        allowed = torch.ones(self.num_classes, *grid, dtype=torch.bool, device=device)
        told = torch.zeros(grid, dtype=torch.bool, device=device)
        for window, target in zip(sample["crops"], sample["crop_targets"], strict=True):
            if not _meets(window, sample):
                continue
            absent = [c for c in self.stuff_ids if target[c] == 0]
            rows, columns = _cells(window, sample, grid)
            allowed[absent, rows, columns] = False
            told[rows, columns] = True
        allowed[self.stuff_ids] &= told
        if sample.get("has_boxes", True):
            allowed[self.thing_ids] = False
            for box, class_id, _ in _boxes(sample):
                if _meets(box, sample):
                    rows, columns = _cells(box, sample, grid)
                    allowed[class_id, rows, columns] = True
        return allowed

    def surest(
        self, probability: torch.Tensor, sample: Mapping, window: Sequence[float], share: float
    ) -> torch.Tensor:
        """Return -log of the mean over the surest share of a window's cells, one at least.

        Args:
            probability: (h, w) of one class.
            sample: the window's image.
            window: ``(x0, y0, x1, y1)`` in pixels, ends exclusive.
            share: of the window's cells.
        """
        rows, columns = _cells(window, sample, probability.shape)
        cells = probability[rows, columns].flatten()
        count = max(1, int(share * len(cells)))
        return -cells.topk(count).values.mean().clamp(min=_TINY).log()


def _boxes(sample: Mapping) -> list[tuple]:
    """(corners, class, is a group) of each box; none where boxes are unreliable."""
    return sample.get("boxes", []) if sample.get("has_boxes", True) else []


def _inside(window: Sequence[float], sample: Mapping) -> tuple[float, float]:
    """Width and height of the window's part inside the image; negative where it has none."""
    height, width = sample["image"].shape[-2:]
    return (
        min(window[2], width) - max(window[0], 0),
        min(window[3], height) - max(window[1], 0),
    )


def _meets(window: Sequence[float], sample: Mapping) -> bool:
    return min(_inside(window, sample)) > 0


def _is_whole(window: Sequence[float], sample: Mapping) -> bool:
    """Whether hardly anything of the window lies outside the image."""
    width, height = _inside(window, sample)
    area = (window[2] - window[0]) * (window[3] - window[1])
    return min(width, height) > 0 and width * height >= _WHOLE * area


def _cells(window: Sequence[float], sample: Mapping, grid: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of the cells that a window of the image touches, one at least."""
    result = []
    for low, high, side, cells in (
        (window[1], window[3], sample["image"].shape[-2], grid[0]),
        (window[0], window[2], sample["image"].shape[-1], grid[1]),
    ):
        first = min(max(int(low / side * cells), 0), cells - 1)
        result.append(slice(first, min(max(math.ceil(high / side * cells), first + 1), cells)))
    return result[0], result[1]
