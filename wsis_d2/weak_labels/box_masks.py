# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The mask of a box: where GrabCut and the best proposal agree that its object is (paper 3.2).

What fails (tiny and whole-image boxes, nothing agreed) has no mask, is counted, and may have a
fallback.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from yacs.config import CfgNode

from wsis_d2.structures.boxes import Box
from wsis_d2.utils.errors import InputError, check_choice
from wsis_d2.weak_labels.grabcut import GrabCutOptions, ellipse_mask, grabcut_mask
from wsis_d2.weak_labels.marked import NO_HINTS, Hints
from wsis_d2.weak_labels.proposals.proposal_set import ProposalSet
from wsis_d2.weak_labels.proposals.select import MODES, select_proposal

MASKS = ("agreement", "grabcut", "mcg", "box")
FALLBACKS = ("none", "mcg", "ellipse")
OVERLAPS = ("smaller", "ignore")


@dataclasses.dataclass(frozen=True)
class BoxLabelOptions:
    """How boxes become labels.

    Attributes:
        masks, min_agreement, fallback, overlap, selection: the keys of ``WEAK_LABELS`` and of its
            ``PROPOSALS`` of the same names.
        fallback_radius: relative radius of the fallback's ellipse; 1 is inscribed in the box.
        min_box_side: a box with a side shorter than this many pixels is tiny: it counts as failed.
        max_box_share: a box that covers at least this share of the image has no background to
            compare with: it counts as failed.
        grabcut: see :class:`GrabCutOptions`.
    """

    masks: str = "agreement"
    min_agreement: float = 0.0
    fallback: str = "none"
    fallback_radius: float = 0.8
    min_box_side: int = 4
    max_box_share: float = 0.98
    overlap: str = "smaller"
    selection: str = "bbox_area"
    grabcut: GrabCutOptions = dataclasses.field(default_factory=GrabCutOptions)

    def __post_init__(self) -> None:
        for key, value, known in (
            ("MASKS", self.masks, MASKS),
            ("FALLBACK", self.fallback, FALLBACKS),
            ("OVERLAP", self.overlap, OVERLAPS),
            ("PROPOSALS.SELECTION", self.selection, MODES),
        ):
            check_choice(f"WEAK_LABELS.{key}", value, known)
        for key, share in (
            ("WEAK_LABELS.MIN_AGREEMENT", self.min_agreement),
            ("fallback_radius", self.fallback_radius),
            ("max_box_share", self.max_box_share),
        ):
            if not 0 <= share <= 1:
                raise InputError(f"{key}: {share}, expected a value in 0..1")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "BoxLabelOptions":
        """Read ``cfg.WEAK_LABELS``."""
        node = cfg.WEAK_LABELS
        return cls(
            masks=node.MASKS,
            min_agreement=node.MIN_AGREEMENT,
            fallback=node.FALLBACK,
            overlap=node.OVERLAP,
            selection=node.PROPOSALS.SELECTION,
            grabcut=GrabCutOptions.from_config(cfg),
        )

    @property
    def needs_proposals(self) -> bool:
        """Whether any box asks for a proposal."""
        return self.masks in ("agreement", "mcg") or self.fallback == "mcg"


@dataclasses.dataclass
class BoxParts:
    """What the two parts say about one box, each bool of the box's shape or None (not asked).

    Attributes:
        grabcut: GrabCut's foreground; None also where there is no background to compare with.
        proposal: the best proposal, clipped to the box.
        index: the proposal's index, None if none met the box.
    """

    grabcut: np.ndarray | None
    proposal: np.ndarray | None
    index: int | None = None


def box_mask(
    image: np.ndarray,
    box: Box,
    proposals: Callable[[], ProposalSet | None],
    options: BoxLabelOptions,
    counters: dict,
    hints: Hints = NO_HINTS,
) -> np.ndarray:
    """Return the pixels of a box that are its object, bool of its shape; count what happens.

    All false means: the whole box stays ignore.
    """
    height, width = image.shape[:2]
    shape = box.shape
    if box.x0 == 0 or box.y0 == 0 or box.x1 + 1 == width or box.y1 + 1 == height:
        counters["boxes_border"] += 1
    if options.masks == "box":
        return np.ones(shape, bool)
    tiny = min(shape) < options.min_box_side
    whole = box.area >= options.max_box_share * height * width
    counters["boxes_tiny"] += tiny
    counters["boxes_whole_image"] += whole
    parts = BoxParts(None, None)
    if not tiny and not whole:
        if _is_uniform(image[box.window]):
            counters["boxes_uniform"] += 1
        parts = box_parts(image, box, proposals, options, hints)
        mask = combine(parts, options.masks)
        if hints.outside is not None:
            mask &= ~hints.outside[box.window]
        if parts.grabcut is not None and not parts.grabcut.any():
            counters["boxes_grabcut_empty"] += 1
        if parts.proposal is not None and not parts.proposal.any():
            counters["boxes_proposal_empty"] += 1
        if mask.any() and mask.mean() >= options.min_agreement:
            return mask
        found = [part.any() for part in (parts.grabcut, parts.proposal) if part is not None]
        counters["boxes_no_agreement"] += len(found) == 2 and all(found)
    counters["boxes_failed"] += 1
    mask = None if hints.guessed else _fallback(box, proposals, options, parts, hints)
    if mask is not None and mask.any():
        counters[f"boxes_fallback_{options.fallback}"] += 1
        return mask
    counters["boxes_ignored"] += 1
    return np.zeros(shape, bool)


def box_parts(
    image: np.ndarray,
    box: Box,
    proposals: Callable[[], ProposalSet | None],
    options: BoxLabelOptions,
    hints: Hints = NO_HINTS,
) -> BoxParts:
    """Ask GrabCut and the proposals about a box, each only if ``options.masks`` needs it."""
    parts = BoxParts(None, None)
    if options.masks in ("agreement", "grabcut"):
        parts.grabcut = grabcut_mask(
            image, box.corners, options.grabcut, hints.inside, hints.outside, hints.guessed
        )
        if parts.grabcut is None:
            parts.grabcut = np.zeros(box.shape, bool)
    if options.masks in ("agreement", "mcg"):
        parts.index, parts.proposal = best_proposal(proposals(), box, options.selection, hints)
    return parts


def best_proposal(
    proposals: ProposalSet | None, box: Box, selection: str, hints: Hints = NO_HINTS
) -> tuple[int | None, np.ndarray | None]:
    """Return index and pixels (clipped to the box) of its proposal; None, None without a source.

    A proposal that was made for the box's annotation is its, else the one that fits best.
    """
    if proposals is None:
        return None, None
    index = proposals.owned(hints.owner)
    if index is None:
        index = select_proposal(proposals, box.corners, selection, hints.inside, hints.outside)
    if index is None:
        return None, np.zeros(box.shape, bool)
    return index, proposals.mask(index)[box.window]


def combine(parts: BoxParts, masks: str) -> np.ndarray:
    """Return the mask of a box from its parts: one of them, or where both agree."""
    asked = [m for m in (parts.grabcut, parts.proposal) if m is not None]
    if not asked:
        raise InputError(
            f"WEAK_LABELS.MASKS {masks!r} needs proposals, but WEAK_LABELS.PROPOSALS.NAME is "
            "'none'; name a source, or use --masks grabcut"
        )
    return asked[0] if len(asked) == 1 else asked[0] & asked[1]


def _fallback(
    box: Box,
    proposals: Callable[[], ProposalSet | None],
    options: BoxLabelOptions,
    parts: BoxParts,
    hints: Hints,
) -> np.ndarray | None:
    """Return the mask of a box that failed. Addition, not in the paper, which leaves it ignored."""
    if options.fallback == "mcg":
        if parts.proposal is not None:
            return parts.proposal
        return best_proposal(proposals(), box, options.selection, hints)[1]
    if options.fallback == "ellipse":
        return ellipse_mask(*box.shape, options.fallback_radius)
    return None


def _is_uniform(region: np.ndarray) -> bool:
    return bool((region == region[:1, :1]).all())
