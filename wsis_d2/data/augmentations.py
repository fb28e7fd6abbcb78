# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Augmentations of training images, from the config."""

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T


class RandomScale(T.Augmentation):
    """Resize by a factor drawn uniformly from a range."""

    def __init__(self, low: float, high: float) -> None:
        """
        Args:
            low, high: the range.
        """
        super().__init__()
        if not 0 < low <= high:
            raise ValueError(f"INPUT.SCALE_RANGE is [{low}, {high}], expected 0 < low <= high")
        self.low, self.high = low, high

    def get_transform(self, image: np.ndarray) -> T.Transform:
        height, width = image.shape[:2]
        scale = np.random.uniform(self.low, self.high)  # noqa: NPY002
        size = max(1, round(height * scale)), max(1, round(width * scale))
        return T.ResizeTransform(height, width, *size)


def build_train_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """Size, scale, crop, flip and colour, as the INPUT keys say."""
    augmentations: list[T.Augmentation] = []
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    sizes = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    if any(size > 0 for size in sizes):
        augmentations.append(
            T.ResizeShortestEdge(sizes, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING)
        )
    low, high = cfg.INPUT.SCALE_RANGE
    if (low, high) != (1.0, 1.0):
        augmentations.append(RandomScale(low, high))
    if cfg.INPUT.CROP.ENABLED:
        augmentations.append(T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
    if cfg.INPUT.RANDOM_FLIP != "none":
        augmentations.append(
            T.RandomFlip(
                horizontal=cfg.INPUT.RANDOM_FLIP == "horizontal",
                vertical=cfg.INPUT.RANDOM_FLIP == "vertical",
            )
        )
    return augmentations + color_jitter(cfg.INPUT.COLOR_JITTER)


def color_jitter(strength: float) -> list[T.Augmentation]:
    """Random brightness, contrast and saturation, factors in 1 - strength to 1 + strength."""
    kinds = (T.RandomBrightness, T.RandomContrast, T.RandomSaturation) if strength > 0 else ()
    return [kind(1 - strength, 1 + strength) for kind in kinds]
