# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Semantic inference on images of any size: whole or in blended tiles, scales, mirror image."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode

Classifier = Callable[[torch.Tensor], torch.Tensor]


class SemanticInference:
    """Average class probabilities over tiles, scales and the mirror image.

    Addition, not in the paper, which evaluates whole images at a single scale (4.3).

    Args:
        mode: "whole", or "tiles": overlapping square tiles whose probabilities are blended with
            weights that fall off towards a tile's border, so that no seam reaches the CRF. The
            network pads smaller images to a tile.
        tile_size: side of a tile in pixels.
        tile_overlap: share of a tile that overlaps its neighbour, in [0, 1).
        scales: factors of the image's size.
        flip: also classify the mirror image.

    Raises:
        ValueError: an option outside its range.
    """

    def __init__(
        self,
        *,
        mode: str = "whole",
        tile_size: int = 521,
        tile_overlap: float = 0.33,
        scales: tuple[float, ...] = (1.0,),
        flip: bool = False,
    ) -> None:
        key = "MODEL.SEMANTIC.INFERENCE"
        if mode not in ("whole", "tiles"):
            raise ValueError(f"{key}.MODE is {mode!r}, expected 'whole' or 'tiles'")
        if not 0 <= tile_overlap < 1 or tile_size < 1:
            raise ValueError(
                f"{key}: TILE_SIZE {tile_size} and TILE_OVERLAP {tile_overlap}, expected at least "
                "1 and a share in [0, 1)"
            )
        if not scales or min(scales) <= 0:
            raise ValueError(f"{key}.SCALES is {list(scales)}, expected positive numbers")
        self.mode = mode
        self.tile_size = tile_size
        self.tile_overlap = tile_overlap
        self.scales = tuple(scales)
        self.flip = flip

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "SemanticInference":
        """Read MODEL.SEMANTIC.INFERENCE."""
        options = cfg.MODEL.SEMANTIC.INFERENCE
        return cls(
            mode=options.MODE,
            tile_size=options.TILE_SIZE,
            tile_overlap=options.TILE_OVERLAP,
            scales=tuple(options.SCALES),
            flip=options.FLIP,
        )

    def __call__(self, classify: Classifier, image: torch.Tensor) -> torch.Tensor:
        """Classify an image.

        Args:
            classify: (3, h, w) to (C, h, w) probabilities, any h and w.
            image: (3, H, W).

        Returns:
            (C, H, W) probabilities.
        """
        size = image.shape[-2:]
        total, count = None, 0
        for scale in self.scales:
            scaled = image
            if scale != 1.0:
                wanted = [max(1, round(side * scale)) for side in size]
                scaled = F.interpolate(
                    image[None].float(), size=wanted, mode="bilinear",
                    align_corners=False, antialias=scale < 1,
                )[0]  # fmt: skip
            for mirrored in (False, True) if self.flip else (False,):
                view = scaled.flip(-1) if mirrored else scaled
                tiled = self.mode == "tiles"
                probabilities = self._tiles(classify, view) if tiled else classify(view)
                if mirrored:
                    probabilities = probabilities.flip(-1)
                if probabilities.shape[-2:] != size:
                    probabilities = F.interpolate(
                        probabilities[None], size=size, mode="bilinear", align_corners=False
                    )[0]
                total = probabilities if total is None else total + probabilities
                count += 1
        return total / count if count > 1 else total

    def _tiles(self, classify: Classifier, image: torch.Tensor) -> torch.Tensor:
        height, width = image.shape[-2:]
        rows = tile_starts(height, self.tile_size, self.tile_overlap)
        columns = tile_starts(width, self.tile_size, self.tile_overlap)
        if len(rows) == len(columns) == 1:
            return classify(image)
        total = weight_sum = None
        for top in rows:
            for left in columns:
                tile = image[:, top : top + self.tile_size, left : left + self.tile_size]
                part = classify(tile)
                weight = _window(part.shape[-2], part)[:, None] * _window(part.shape[-1], part)
                if total is None:
                    total = part.new_zeros((part.shape[0], height, width))
                    weight_sum = part.new_zeros((height, width))
                area = (slice(top, top + part.shape[-2]), slice(left, left + part.shape[-1]))
                total[:, area[0], area[1]] += part * weight
                weight_sum[area] += weight
        return total / weight_sum


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
