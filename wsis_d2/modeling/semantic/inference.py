# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Semantic inference on images of any size: whole or in blended tiles, scales, mirror image."""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode

Classifier = Callable[[list[torch.Tensor]], list[torch.Tensor]]


class SemanticInference:
    """Average class probabilities over tiles, sizes and the mirror image.

    Addition, not in the paper, which evaluates whole images at a single scale (4.3).

    Args:
        tile_size: side in pixels of overlapping square tiles whose probabilities are blended with
            weights that fall off towards a tile's border, so that no seam reaches the CRF. The
            network pads smaller images to a tile. 0: images are classified whole.
        tile_overlap: share of a tile that overlaps its neighbour, in [0, 1).
        min_sizes: shorter sides that an image is resized to; none: its own size alone.
        max_size: longer side that it may have then.
        flip: also classify the mirror image.

    Raises:
        ValueError: an option outside its range.
    """

    def __init__(
        self,
        *,
        tile_size: int = 0,
        tile_overlap: float = 0.33,
        min_sizes: Sequence[int] = (),
        max_size: int = 4000,
        flip: bool = False,
    ) -> None:
        if tile_size < 0:
            raise ValueError(f"MODEL.SEMANTIC.TILE_SIZE is {tile_size}, expected 0 (off) or a side")
        if not 0 <= tile_overlap < 1:
            raise ValueError(f"tile_overlap is {tile_overlap}, expected a share in [0, 1)")
        if min((*min_sizes, max_size)) < 1:
            raise ValueError(
                f"TEST.AUG.MIN_SIZES is {list(min_sizes)}, MAX_SIZE {max_size}, expected sides in "
                "pixels"
            )
        self.tile_size = tile_size
        self.tile_overlap = tile_overlap
        self.min_sizes = tuple(min_sizes)
        self.max_size = max_size
        self.flip = flip

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "SemanticInference":
        """Read MODEL.SEMANTIC.TILE_SIZE and TEST.AUG."""
        tile_size, aug = cfg.MODEL.SEMANTIC.TILE_SIZE, cfg.TEST.AUG
        if not aug.ENABLED:
            return cls(tile_size=tile_size)
        return cls(
            tile_size=tile_size, min_sizes=aug.MIN_SIZES, max_size=aug.MAX_SIZE, flip=aug.FLIP
        )

    @property
    def is_plain(self) -> bool:
        """Whether an image is classified once, whole."""
        return not (self.tile_size or self.min_sizes or self.flip)

    def _scale(self, image: torch.Tensor, min_size: int) -> float:
        """Factor that brings the shorter side to a size, the longer one within the limit."""
        short, long = sorted(image.shape[-2:])
        return min(min_size / short, self.max_size / long) if min_size else 1.0

    def __call__(self, classify: Classifier, images: list[torch.Tensor]) -> list[torch.Tensor]:
        """Classify images.

        Args:
            classify: (3, h, w) each to (C, h, w) probabilities each, any h and w.
            images: (3, H, W) each.

        Returns:
            (C, H, W) probabilities each.
        """
        totals: list[torch.Tensor] | None = None
        count = 0
        for min_size in self.min_sizes or (0,):
            scaled = [_scaled(image, self._scale(image, min_size)) for image in images]
            for mirrored in (False, True) if self.flip else (False,):
                views = [view.flip(-1) for view in scaled] if mirrored else scaled
                found = self._tiles(classify, views) if self.tile_size else classify(views)
                if mirrored:
                    found = [own.flip(-1) for own in found]
                found = [
                    _resized(own, image.shape[-2:])
                    for own, image in zip(found, images, strict=True)
                ]
                if totals is not None:
                    found = [total + own for total, own in zip(totals, found, strict=True)]
                totals, count = found, count + 1
        return [total / count for total in totals] if count > 1 else totals

    def _tiles(self, classify: Classifier, images: list[torch.Tensor]) -> list[torch.Tensor]:
        """Classify the tiles of all images, and blend those of each."""
        places, tiles = [], []
        for index, image in enumerate(images):
            for top in tile_starts(image.shape[-2], self.tile_size, self.tile_overlap):
                for left in tile_starts(image.shape[-1], self.tile_size, self.tile_overlap):
                    places.append((index, top, left))
                    tiles.append(image[:, top : top + self.tile_size, left : left + self.tile_size])
        totals: list[Any] = [None] * len(images)
        weights = [image.new_zeros(image.shape[-2:], dtype=torch.float32) for image in images]
        for (index, top, left), part in zip(places, classify(tiles), strict=True):
            weight = _window(part.shape[-2], part)[:, None] * _window(part.shape[-1], part)
            if totals[index] is None:
                totals[index] = part.new_zeros((part.shape[0], *images[index].shape[-2:]))
            area = (slice(top, top + part.shape[-2]), slice(left, left + part.shape[-1]))
            totals[index][:, area[0], area[1]] += part * weight
            weights[index][area] += weight
        return [total / weight for total, weight in zip(totals, weights, strict=True)]


def in_groups(
    items: Sequence[Any], key: Callable[[Any], Hashable], run: Callable[[list], list], most: int
) -> list:
    """Run items of one key together, at most so many at a time; results in the items' order."""
    groups: dict[Hashable, list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(key(item), []).append(index)
    results: list[Any] = [None] * len(items)
    for indices in groups.values():
        for start in range(0, len(indices), most):
            chunk = indices[start : start + most]
            for index, result in zip(chunk, run([items[i] for i in chunk]), strict=True):
                results[index] = result
    return results


def _scaled(image: torch.Tensor, scale: float) -> torch.Tensor:
    if scale == 1.0:
        return image
    size = [max(1, round(side * scale)) for side in image.shape[-2:]]
    return F.interpolate(
        image[None].float(), size=size, mode="bilinear", align_corners=False, antialias=scale < 1
    )[0]


def _resized(probabilities: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    if probabilities.shape[-2:] == tuple(size):
        return probabilities
    return F.interpolate(
        probabilities[None], size=list(size), mode="bilinear", align_corners=False
    )[0]


def tile_starts(length: int, tile: int, overlap: float) -> list[int]:
    """Return where tiles start so that they cover ``length`` with at least the given overlap.

    Args:
        length: pixels to cover.
        tile: pixels of a tile.
        overlap: least share of a tile that overlaps its neighbour.
    """
    if length <= tile:
        return [0]
    step = max(1, math.floor(tile * (1 - overlap)))
    count = math.ceil((length - tile) / step) + 1
    return [round(k * (length - tile) / (count - 1)) for k in range(count)]


def _window(length: int, like: torch.Tensor) -> torch.Tensor:
    """Triangle weights, highest in the middle and positive everywhere."""
    position = torch.arange(length, device=like.device, dtype=like.dtype)
    return torch.minimum(position + 1, length - position)
