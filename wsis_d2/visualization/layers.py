# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""What can be drawn over an image: label maps, and boxes with tags."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass
class LabelLayer:
    """A label map as a layer; drawn in the dataset's and in colour-blind-safe colours.

    Attributes:
        semantic: uint8 (H, W) unified class ids, 255 ignore.
        instance: int32 (H, W) ids of instances, positive; or None.
    """

    semantic: np.ndarray
    instance: np.ndarray | None = None


@dataclass
class AnnotationLayer:
    """Boxes and tags as a layer.

    Attributes:
        boxes: XYXY, absolute, exclusive ends.
        class_ids: unified class id a box.
        tags: unified ids of the image's tags.
        crop_tags: (XYXY box, unified ids) each.
        crowd: per box, True for groups.
        scores: per box, or None.
        marks: points and scribbles: unified class id and [[x, y], ...] each, one point or more.
    """

    boxes: Sequence[Sequence[float]]
    class_ids: Sequence[int]
    tags: Sequence[int] = ()
    crop_tags: Sequence[tuple[Sequence[float], Sequence[int]]] = ()
    crowd: Sequence[bool] = ()
    scores: Sequence[float] | None = None
    marks: Sequence[tuple[int, Sequence[Sequence[float]]]] = ()


Layer = str | Path | np.ndarray | LabelLayer | AnnotationLayer
