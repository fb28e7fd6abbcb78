# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Boxes to labels: where GrabCut and the best proposal agree, a pixel has the box's class.

Paper 3.2: a pixel takes the class of a box only where both say foreground; the rest of the box is
ignore. What fails (tiny and whole-image boxes, nothing agreed) stays ignore, is counted, and may
have a fallback.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence

import numpy as np
from yacs.config import CfgNode

from wsis_d2.structures.annotation import Marks
from wsis_d2.structures.boxes import Box
from wsis_d2.structures.labels import IGNORE, INSTANCE_IGNORE
from wsis_d2.utils.errors import InputError, check_choice
from wsis_d2.weak_labels.grabcut import GrabCutOptions, ellipse_mask, grabcut_mask
from wsis_d2.weak_labels.marked import (
    NO_HINTS,
    Hints,
    grow_class_marks,
    guessed_box,
    hints_of,
    state_marks,
)
from wsis_d2.weak_labels.proposals.proposal_set import ProposalSet
from wsis_d2.weak_labels.proposals.select import MODES, select_proposal
from wsis_d2.weak_labels.workers import Labels

MASKS = ("agreement", "grabcut", "mcg", "box")
FALLBACKS = ("none", "mcg", "ellipse")
OVERLAPS = ("smaller", "ignore")
#: An image with a shorter side, in pixels, is counted: hardly anything can be told apart in it.
TINY_IMAGE = 8


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


def make_box_labels(
    image: np.ndarray,
    boxes: Sequence[Box],
    proposals: ProposalSet | Callable[[], ProposalSet] | None,
    options: BoxLabelOptions,
    outside: int = IGNORE,
    marks: Marks | None = None,
    unboxed: Sequence[int] = (),
    thing_ids: Collection[int] = (),
) -> Labels:
    """Label one image from its boxes, and from its points and scribbles where it has some.

    Args:
        image: (H, W, 3) uint8 BGR.
        boxes: in the order of the annotation; instance ids are their places among those that are
            no groups, from 1, and spent even on boxes that end up empty.
        proposals: the image's, or a function that makes them when first asked; None: the source
            gives none, GrabCut alone decides.
        options: see :class:`BoxLabelOptions`.
        outside: class of the pixels outside all boxes (VOC: background); 255 = no information.
        marks: the image's points and scribbles. They seed GrabCut, choose among the proposals and
            are written as they are; those of classes also label the superpixels that they lie in,
            outside boxes.
        unboxed: classes of the objects that have marks and no box; a box is guessed around the
            marks. Where there is one, pixels outside all boxes stay unknown.
        thing_ids: classes of things beside those of boxes, for marks.

    Returns:
        ``semantic``: class where a box's mask says so, 255 elsewhere in boxes; ``instance``: id
        there, -1 elsewhere and where two boxes of one class claim a pixel; ``counters``.
        Segments whose proposal was made for the box have its ``score``, if it has one.
    """
    height, width = image.shape[:2]
    semantic = np.full((height, width), IGNORE, np.uint8)
    instance = np.full((height, width), INSTANCE_IGNORE, np.int32)
    in_a_box = np.zeros((height, width), bool)
    counters = new_counters()
    masks, seen = [], set()
    segments: list[dict] = []
    maker = _Lazy(proposals)
    numbers: dict[int, int] = {}
    for index, box in enumerate(boxes):
        in_a_box[box.window] = True
        if box.is_group:
            counters["boxes_group"] += 1
            continue
        segments.append({"id": len(segments) + 1, "category_id": box.class_id})
        numbers[index] = segments[-1]["id"]
        if (box.class_id, box.corners) in seen:
            counters["boxes_duplicate"] += 1
            continue
        seen.add((box.class_id, box.corners))
        counters["boxes"] += 1
        hints = hints_of(index, box.class_id, marks)
        counters["boxes_marked"] += hints.inside is not None and bool(hints.inside.any())
        mask = box_mask(image, box, maker, options, counters, hints)
        score = maker.score(index)
        if score is not None:
            segments[-1]["score"] = score
        if mask.any():
            masks.append((box, segments[-1]["id"], mask))
    for index, class_id in enumerate(unboxed, start=len(boxes)):
        counters["objects_without_box"] += 1
        segments.append({"id": len(segments) + 1, "category_id": class_id})
        numbers[index] = segments[-1]["id"]
        guess = None if marks is None else guessed_box(marks, index, class_id)
        if guess is not None and options.masks != "box":
            hints = hints_of(index, class_id, marks, guessed=True)
            mask = box_mask(image, guess, maker, options, new_counters(), hints)
            masks.append((guess, segments[-1]["id"], mask))
    _paint(masks, semantic, instance, options.overlap)
    if marks is not None:
        # A class that marks alone know may reach into what is outside all boxes.
        free = maker().regions() if options.needs_proposals and maker() is not None else None
        counters["pixels_grown"] = grow_class_marks(marks, free, semantic, in_a_box)
        counters["pixels_marked"] = int(np.count_nonzero(marks.classes != IGNORE))
    if outside != IGNORE and not unboxed:
        semantic[~in_a_box & (semantic == IGNORE)] = outside
        segments.append({"id": len(segments) + 1, "category_id": int(outside)})
        instance[~in_a_box & (semantic == outside)] = segments[-1]["id"]
    if marks is not None:
        things = {*thing_ids, *(box.class_id for box in boxes), *unboxed}
        state_marks(marks, semantic, instance, numbers, segments, things)
    counters["images_tiny"] = int(min(height, width) < TINY_IMAGE)
    counters["images_scaled_down"] = int(maker.scaled_down)
    counters["pixels"] = height * width
    counters["pixels_in_boxes"] = int(in_a_box.sum())
    counters["pixels_thing"] = int((semantic[in_a_box] != IGNORE).sum())
    counters["pixels_ignore"] = int((semantic == IGNORE).sum())
    return Labels(semantic, instance, segments, counters)


def new_counters() -> dict:
    """Return the counters of one image, all zero, so that a summary always names each.

    Of ``boxes`` (distinct, no groups), ``boxes_border`` touch the image's border and
    ``boxes_uniform`` hold one colour, which fails nothing by itself. ``boxes_failed`` are those
    without a mask: ``boxes_tiny``, ``boxes_whole_image``, and those where GrabCut or the proposals
    found nothing (``boxes_grabcut_empty``, ``boxes_proposal_empty``), or both found something but
    agree on nothing, or on less than asked (``boxes_no_agreement``).
    A fallback saves some of them; ``boxes_ignored`` are left. ``images_scaled_down`` were too
    large for proposals at full size. ``boxes_marked`` have points or scribbles,
    ``objects_without_box`` these alone; ``pixels_grown`` are labelled by marks nearby.
    """
    names = (
        "images_tiny",
        "images_scaled_down",
        "boxes",
        "boxes_group",
        "boxes_duplicate",
        "boxes_tiny",
        "boxes_border",
        "boxes_whole_image",
        "boxes_uniform",
        "boxes_grabcut_empty",
        "boxes_proposal_empty",
        "boxes_no_agreement",
        "boxes_failed",
        "boxes_fallback_mcg",
        "boxes_fallback_ellipse",
        "boxes_ignored",
        "boxes_marked",
        "objects_without_box",
        "pixels_marked",
        "pixels_grown",
    )
    return dict.fromkeys(names, 0)


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


def _paint(
    masks: list[tuple[Box, int, np.ndarray]],
    semantic: np.ndarray,
    instance: np.ndarray,
    overlap: str,
) -> None:
    """Paint masks from the largest box to the smallest; settle what is claimed twice."""
    claimed = {box.class_id: np.zeros(semantic.shape, bool) for box, _, _ in masks}
    # Pixels that two classes claim stay ignore: a third claim must not get them.
    contested = np.zeros(semantic.shape, bool)
    for box, number, mask in sorted(masks, key=lambda m: -m[0].area):
        window = box.window
        classes, ids, own = semantic[window], instance[window], claimed[box.class_id][window]
        if overlap == "ignore":
            contested[window] |= mask & (classes != IGNORE) & (classes != box.class_id)
        classes[mask] = box.class_id
        ids[mask] = number
        ids[mask & own] = INSTANCE_IGNORE
        own |= mask
    semantic[contested] = IGNORE
    instance[contested] = INSTANCE_IGNORE


def _is_uniform(region: np.ndarray) -> bool:
    return bool((region == region[:1, :1]).all())


class _Lazy:
    """Proposals made when first asked for, and then kept."""

    def __init__(self, proposals: ProposalSet | Callable[[], ProposalSet] | None) -> None:
        self._proposals = proposals

    def __call__(self) -> ProposalSet | None:
        if callable(self._proposals):
            self._proposals = self._proposals()
        return self._proposals

    def score(self, owner: int) -> float | None:
        """The score of the proposal that was made for an annotation, if any and made already."""
        made = self._proposals
        if made is None or callable(made) or made.scores is None:
            return None
        index = made.owned(owner)
        return None if index is None else float(made.scores[index])

    @property
    def scaled_down(self) -> bool:
        """Whether proposals were made at a lower resolution than the image's."""
        made = self._proposals
        if made is None or callable(made):
            return False
        return made.working_size[0] < made.image_size[0]
