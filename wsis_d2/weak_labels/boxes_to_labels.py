# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""One image's boxes to its labels: their masks painted from the largest to the smallest.

Paper 3.2: a pixel takes the class of a box only where its mask says so; the rest of the box is
ignore. Where two boxes of one class overlap, the instance is ignored.
"""

from collections.abc import Callable, Collection, Sequence

import numpy as np

from wsis_d2.structures.annotation import Marks
from wsis_d2.structures.boxes import Box
from wsis_d2.structures.labels import IGNORE, INSTANCE_IGNORE
from wsis_d2.weak_labels.box_masks import BoxLabelOptions, box_mask
from wsis_d2.weak_labels.marked import grow_class_marks, guessed_box, hints_of, state_marks
from wsis_d2.weak_labels.proposals.proposal_set import ProposalSet
from wsis_d2.weak_labels.workers import Labels

#: An image with a shorter side, in pixels, is counted: hardly anything can be told apart in it.
TINY_IMAGE = 8


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
