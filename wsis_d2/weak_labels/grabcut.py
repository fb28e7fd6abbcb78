# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""GrabCut from a box (paper 3.2), on a crop at a working resolution."""

import dataclasses

import cv2
import numpy as np
from yacs.config import CfgNode

from wsis_d2.utils.errors import InputError, check_choice

INITS = ("ellipse", "rectangle")


@dataclasses.dataclass(frozen=True)
class GrabCutOptions:
    """How GrabCut is run.

    Attributes:
        init: "ellipse": the ellipse inscribed in the box starts as probable foreground, the rest
            of the box as probable background; "rectangle": the whole box starts as probable
            foreground (the literal start).
        seed_radius: relative radius of the central ellipse that is sure foreground; 0 = none. Over
            a rectangle start without it, a fifth to a third of large boxes collapse to nothing.
        margin: how much background is seen around the box, as a share of its sides.
        size: the crop's longer side is scaled down to this many pixels; 0 = never.
        min_size: a crop whose longer side is shorter is scaled up to this many pixels; 0 = never.
        iterations: GrabCut iterations.
        rng_seed: seed of OpenCV's generator, set before each call: the result depends on it.
    """

    init: str = "ellipse"
    seed_radius: float = 0.33
    margin: float = 0.5
    size: int = 160
    min_size: int = 96
    iterations: int = 2
    rng_seed: int = 0

    def __post_init__(self) -> None:
        prefix = "WEAK_LABELS.GRABCUT"
        check_choice(f"{prefix}.INIT", self.init, INITS)
        if not 0 <= self.seed_radius <= 1:
            raise InputError(f"{prefix}.SEED_RADIUS: {self.seed_radius}, expected 0..1")
        if self.margin < 0:
            raise InputError(f"margin: {self.margin}, expected 0 or more")
        if self.iterations < 1:
            raise InputError(f"iterations: {self.iterations}, expected 1 or more")
        for name in ("size", "min_size"):
            if getattr(self, name) != 0 and getattr(self, name) < 16:
                raise InputError(f"{name}: {getattr(self, name)}, expected 0 or at least 16")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "GrabCutOptions":
        """Read ``cfg.WEAK_LABELS.GRABCUT``."""
        node = cfg.WEAK_LABELS.GRABCUT
        return cls(init=node.INIT, seed_radius=node.SEED_RADIUS)


def grabcut_mask(
    image: np.ndarray,
    box: tuple[int, int, int, int],
    options: GrabCutOptions,
    inside: np.ndarray | None = None,
    outside: np.ndarray | None = None,
    guessed: bool = False,
) -> np.ndarray | None:
    """Segment what a box holds.

    Args:
        image: (H, W, 3) uint8.
        box: x0, y0, x1, y1 in pixels, x1 and y1 exclusive, inside the image, not empty.
        options: see :class:`GrabCutOptions`.
        inside, outside: (H, W) bool, pixels marked as object and as something else; sure foreground
            and background. Marks that reach over a share of ``seed_radius`` of a side of the box
            take the place of the central ellipse, which is then no more than probable foreground;
            a point alone does not. Addition, not in the paper.
        guessed: the box was guessed, so its middle says nothing.

    Returns:
        (y1 - y0, x1 - x0) bool, sure or probable foreground inside the box; None where the box
        leaves no background to see (it covers the image), so that GrabCut cannot be asked.
    """
    height, width = image.shape[:2]
    x0, y0, x1, y1 = box
    pad_x = max(1, round(options.margin * (x1 - x0)))
    pad_y = max(1, round(options.margin * (y1 - y0)))
    left, top = max(0, x0 - pad_x), max(0, y0 - pad_y)
    right, bottom = min(width, x1 + pad_x), min(height, y1 + pad_y)
    if (left, top, right, bottom) == tuple(box):
        return None
    crop = image[top:bottom, left:right]
    inner = np.array([x0 - left, y0 - top, x1 - left, y1 - top], float)
    window = slice(top, bottom), slice(left, right)
    marks = [None if m is None or not m[window].any() else m[window] for m in (inside, outside)]
    scale = _scale(max(crop.shape[:2]), options)
    if scale != 1:
        size = (max(2, round(crop.shape[1] * scale)), max(2, round(crop.shape[0] * scale)))
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        inner *= np.tile([size[0] / crop.shape[1], size[1] / crop.shape[0]], 2)
        crop = cv2.resize(crop, size, interpolation=how)
    marks = [None if m is None else _scale_marks(m, crop.shape[:2]) for m in marks]
    if marks[0] is not None and marks[1] is not None:
        both = marks[0] & marks[1]
        marks = [m & ~both for m in marks]
    centred = not guessed and (marks[0] is None or not _spans(marks[0], inner, options.seed_radius))
    state = _start(crop.shape[:2], inner, options, centred, *marks)
    if not (state == cv2.GC_BGD).any():
        return None
    if (state & 1).any() and not _uniform(crop):
        cv2.setRNGSeed(options.rng_seed)
        models = np.zeros((1, 65)), np.zeros((1, 65))
        crop = np.ascontiguousarray(crop)
        cv2.grabCut(crop, state, None, *models, options.iterations, cv2.GC_INIT_WITH_MASK)
        foreground = (state & 1).astype(np.float32)
    else:
        foreground = np.zeros(state.shape, np.float32)  # nothing tells object from background
    if scale != 1:
        size = (right - left, bottom - top)
        foreground = cv2.resize(foreground, size, interpolation=cv2.INTER_LINEAR)
    return foreground[y0 - top : y1 - top, x0 - left : x1 - left] >= 0.5


def ellipse_mask(height: int, width: int, radius: float) -> np.ndarray:
    """Return the central ellipse of a box, (height, width) bool. Addition, not in the paper.

    ``radius`` is relative: 1 is the ellipse inscribed in the box. At least one pixel is set.
    """
    y = (np.arange(height) + 0.5 - height / 2) / (height / 2)
    x = (np.arange(width) + 0.5 - width / 2) / (width / 2)
    mask = x[None, :] ** 2 + y[:, None] ** 2 <= radius**2
    mask[height // 2, width // 2] = True
    return mask


def _scale(longest: int, options: GrabCutOptions) -> float:
    if options.size and longest > options.size:
        return options.size / longest
    if options.min_size and longest < options.min_size:
        return options.min_size / longest
    return 1.0


def _scale_marks(marks: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return marks in another size, each 3 x 3 pixels wide: colours need some to be learned."""
    rows, columns = np.nonzero(marks)
    scaled = np.zeros(shape, bool)
    scaled[rows * shape[0] // marks.shape[0], columns * shape[1] // marks.shape[1]] = True
    return cv2.dilate(scaled.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)


def _spans(marks: np.ndarray, box: np.ndarray, share: float) -> bool:
    """Return whether marks reach over a share of a side of a box."""
    rows, columns = np.nonzero(marks)
    if not rows.size:
        return False
    sides = box[2:] - box[:2]
    return bool(np.ptp(columns) >= share * sides[0] or np.ptp(rows) >= share * sides[1])


def _start(
    shape: tuple[int, int],
    box: np.ndarray,
    options: GrabCutOptions,
    centred: bool,
    marked: np.ndarray | None,
    denied: np.ndarray | None,
) -> np.ndarray:
    """Return GrabCut's first mask for a crop, uint8: sure background outside the box."""
    x0, y0 = np.floor(box[:2] + 0.5).astype(int)
    x1, y1 = np.maximum(np.floor(box[2:] + 0.5).astype(int), (x0 + 1, y0 + 1))
    state = np.full(shape, cv2.GC_BGD, np.uint8)
    inside = state[y0:y1, x0:x1]
    height, width = inside.shape
    if options.init == "rectangle":
        inside[...] = cv2.GC_PR_FGD
    else:
        inside[...] = cv2.GC_PR_BGD
        inside[ellipse_mask(height, width, 1.0)] = cv2.GC_PR_FGD
    if options.seed_radius > 0:
        seed = cv2.GC_FGD if centred else cv2.GC_PR_FGD
        inside[ellipse_mask(height, width, options.seed_radius)] = seed
    if marked is not None:
        inside[marked[y0:y1, x0:x1]] = cv2.GC_FGD
    if denied is not None:
        state[denied] = cv2.GC_BGD
    return state


def _uniform(crop: np.ndarray) -> bool:
    return bool((crop == crop[:1, :1]).all())
