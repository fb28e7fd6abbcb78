# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Clean a semantic label map with what the weak annotation knows for certain.

Six steps in a fixed order, each of which can be switched off: score threshold, crop tags, merge
with the masks of the boxes, box prior, filling of nearly empty boxes, and instance labels. The
paper names the merge and the box prior (3.2 to 3.4); the score threshold, the tag check, the fill
and the order are those of the label-cleaning code that its authors released. Everything here is a
pure function of arrays: it needs maps and boxes alone.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from wsis_d2.structures.annotation import CropTags, Marks
from wsis_d2.structures.boxes import Box
from wsis_d2.structures.labels import IGNORE, INSTANCE_IGNORE, keep_table, member_table
from wsis_d2.utils.errors import check_choice

KEPT_IN_BOXES = ("stuff", "nothing", "things")


@dataclass(frozen=True)
class CleanOptions:
    """Which steps run, and how.

    The defaults are those of a label map with street-scene annotation; a step whose input is not
    given (``scores``, ``box_mask_map``) does not run whatever the options say.

    Attributes:
        score_threshold: labels less probable than this become ignore; None skips the step.
        tags: drop labels that are not among the tags of each crop they lie in.
        merge: let the box masks win and drop things elsewhere.
        keep_in_boxes: what the merge leaves of a prediction inside boxes but beside their masks:
            "stuff" as in the authors' code; "nothing", as when boxes become masks (paper 3.2); or
            "things", those that lie in a box of their class. Groups have no mask and do not count.
        prior: drop things outside the boxes of their class, and give ``outside_label`` to what is
            ignored outside all boxes.
        fill: give a nearly empty box to its class.
        add_box_classes_to_tags: count the class of a box as a tag of the crops it meets, so that
            tags that list stuff alone delete no things.
        outside_label: what the prior writes: 255, or the class that everything outside the boxes
            has (Pascal VOC: 0, paper 3.4).
        fill_threshold: boxes whose share of own pixels is below it are filled.
        zero_is_no_box: in ``box_mask_map`` 0 means "no box here" and not class 0, as in the
            authors' files. Switch off where class 0 is a thing.
        stuff_instances: give each tagged stuff class an instance that spans the image.
        instances: make instance labels; without, the instance map is all ignore (images whose
            boxes are unreliable).
    """

    score_threshold: float | None = 0.99
    tags: bool = True
    merge: bool = True
    keep_in_boxes: str = "stuff"
    prior: bool = True
    fill: bool = True
    add_box_classes_to_tags: bool = True
    outside_label: int = IGNORE
    fill_threshold: float = 0.5
    zero_is_no_box: bool = True
    stuff_instances: bool = True
    instances: bool = True

    def __post_init__(self) -> None:
        check_choice("CleanOptions.keep_in_boxes", self.keep_in_boxes, KEPT_IN_BOXES)
        if not 0 <= self.outside_label <= IGNORE:
            raise ValueError(f"CleanOptions.outside_label is {self.outside_label}, expected 0-255")
        for name in ("score_threshold", "fill_threshold"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"CleanOptions.{name} is {value}, expected a share from 0 to 1")

    def as_dict(self) -> dict:
        """Return the options as plain values, for a recipe or a log."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


@dataclass
class CleanResult:
    """What :func:`clean_labels` returns.

    Attributes:
        semantic: (H, W) uint8, 255 = ignore.
        instance: (H, W) int32: the instance's id from 1 on, -1 = ignore, 0 = covered by no box of
            its class that is an instance (a group alone, or a class without box or tag).
        segments: ``{"id", "category_id"}`` of every instance id with at least one pixel.
        stages: the map after each step that ran, in order; (H, W) uint8.
    """

    semantic: np.ndarray
    instance: np.ndarray
    segments: list[dict] = field(default_factory=list)
    stages: dict[str, np.ndarray] = field(default_factory=dict)


def clean_labels(
    labels: np.ndarray,
    scores: np.ndarray | None = None,
    box_mask_map: np.ndarray | None = None,
    boxes: Sequence[Box] = (),
    crop_tags: Sequence[tuple] = (),
    image_tags: Collection[int] = frozenset(),
    thing_ids: Collection[int] = frozenset(),
    options: CleanOptions | None = None,
    marks: Marks | None = None,
) -> CleanResult:
    """Clean one label map.

    Args:
        labels: (H, W) uint8, the map to clean; 255 = ignore.
        scores: (H, W) float32, the probability of each pixel's label; None skips that step.
        box_mask_map: (H, W) uint8, the map of the box masks: a class of things where they agree,
            anything else elsewhere; None skips the merge.
        boxes: the annotated boxes of things and groups, in annotation order. The parts of a box
            outside the image are cut off.
        crop_tags: ``(x0, y0, x1, y1, set of class ids)`` each; ends exclusive. Crops are taken as
            given, each updating the map in place; deleting labels commutes, so the order is free.
        image_tags: the classes of the image; the stuff among them gets whole-image instances.
        thing_ids: every class that is a thing. The classes of the boxes are added.
        options: see :class:`CleanOptions`; None is its defaults.
        marks: points and scribbles, which hold whatever the steps say; those of an object have its
            instance. Addition, not in the paper.

    Returns:
        :class:`CleanResult`; the arrays are new, the inputs are not altered.

    Raises:
        ValueError: an array of another shape or dtype than stated, a class id outside 0 to 254.
    """
    options = options or CleanOptions()
    _check_map("labels", labels, np.uint8)
    height, width = labels.shape
    boxes = [_clip_box(Box(*box), width, height) for box in boxes]
    things = frozenset(int(i) for i in thing_ids) | {box.class_id for box in boxes}
    _check_classes("thing_ids", things)
    result = labels.copy()
    stages: dict[str, np.ndarray] = {}
    if marks is not None:
        marks.state_facts(result)

    if options.score_threshold is not None and scores is not None:
        _check_map("scores", scores, np.floating, labels.shape)
        result[scores < options.score_threshold] = IGNORE
        stages["score"] = result.copy()
    if options.tags:
        crops = [CropTags(*crop) for crop in crop_tags]
        if options.add_box_classes_to_tags:
            crops = add_box_classes(crops, boxes)
        check_tags(result, crops)
        stages["tags"] = result.copy()
    if options.merge and box_mask_map is not None:
        _check_map("box_mask_map", box_mask_map, np.uint8, labels.shape)
        no_box = {0} if options.zero_is_no_box else frozenset()
        predicted, result = result, merge_masks(result, box_mask_map, things, things - no_box)
        if options.keep_in_boxes != "stuff":
            ignore_stuff_in_boxes(result, boxes, things)
        if options.keep_in_boxes == "things":
            keep_things_in_boxes(result, predicted, boxes)
        stages["merge"] = result.copy()
    if options.prior:
        apply_box_prior(result, boxes, things, options.outside_label)
        stages["prior"] = result.copy()
    if options.fill:
        result = fill_boxes(result, boxes, things, options.fill_threshold)
        stages["fill"] = result.copy()

    if marks is not None:
        marks.state_facts(result)
    stuff = sorted(int(i) for i in set(image_tags) - things) if options.stuff_instances else []
    _check_classes("image_tags", stuff)
    if not options.instances:
        nothing = np.full(labels.shape, INSTANCE_IGNORE, np.int32)
        return CleanResult(result, nothing, [], stages)
    instance, segments = instance_labels(result, boxes, stuff, marks)
    return CleanResult(result, instance, segments, stages)


def add_box_classes(crops: Iterable[CropTags], boxes: Sequence[Box]) -> list[CropTags]:
    """Return ``crops`` with the class of every box, groups included, added where it meets one."""
    return [
        crop._replace(
            tags=frozenset(crop.tags)
            | {
                box.class_id
                for box in boxes
                if not _is_empty(box)
                and box.x0 < crop.x1
                and box.x1 >= crop.x0
                and box.y0 < crop.y1
                and box.y1 >= crop.y0
            }
        )
        for crop in crops
    ]


def check_tags(labels: np.ndarray, crops: Iterable[CropTags]) -> None:
    """Step 2: in each crop, set labels that are not among its tags to ignore, in place.

    Args:
        labels: (H, W) uint8, changed.
        crops: the crops; what reaches past the image is cut off.
    """
    for crop in crops:
        kept = [int(tag) for tag in crop.tags]
        _check_classes("crop_tags", kept)
        lookup = keep_table(kept)
        window = labels[max(crop.y0, 0) : max(crop.y1, 0), max(crop.x0, 0) : max(crop.x1, 0)]
        window[...] = lookup[window]


def possible_classes(
    shape: tuple[int, int],
    num_classes: int,
    boxes: Sequence[Box] = (),
    crop_tags: Iterable[CropTags] = (),
    thing_ids: Collection[int] = frozenset(),
    options: CleanOptions | None = None,
) -> np.ndarray:
    """Tell which classes the annotation leaves each pixel: what steps 2 and 4 would not delete.

    Addition, not in the paper, which applies its rules after the CRF alone.

    Args:
        shape: height and width of the image.
        num_classes: classes are 0 to ``num_classes - 1``.
        boxes, crop_tags, thing_ids: as :func:`clean_labels`.
        options: ``tags``, ``prior`` and ``add_box_classes_to_tags`` are read; None is the defaults.

    Returns:
        (num_classes, H, W) bool. A pixel may be left no class at all, where crops contradict.
    """
    options = options or CleanOptions()
    height, width = shape
    boxes = [_clip_box(Box(*box), width, height) for box in boxes]
    possible = np.ones((num_classes, height, width), bool)
    if options.tags:
        crops = [CropTags(*crop) for crop in crop_tags]
        if options.add_box_classes_to_tags:
            crops = add_box_classes(crops, boxes)
        for crop in crops:
            untagged = [i for i in range(num_classes) if i not in crop.tags]
            rows = slice(max(crop.y0, 0), max(crop.y1, 0))
            columns = slice(max(crop.x0, 0), max(crop.x1, 0))
            possible[untagged, rows, columns] = False
    if options.prior:
        for thing in {*thing_ids, *(box.class_id for box in boxes)}:
            inside = np.zeros(shape, bool)
            for box in boxes:
                if box.class_id == thing and not _is_empty(box):
                    inside[box.y0 : box.y1 + 1, box.x0 : box.x1 + 1] = True
            possible[thing] &= inside
    return possible


def merge_masks(
    labels: np.ndarray,
    box_mask_map: np.ndarray,
    thing_ids: Collection[int],
    mask_ids: Collection[int] | None = None,
) -> np.ndarray:
    """Step 3: the things of the box masks win; elsewhere only predicted stuff stays.

    Args:
        labels: (H, W) uint8.
        box_mask_map: (H, W) uint8, the map of the box masks.
        thing_ids: the things of ``labels``.
        mask_ids: the values of ``box_mask_map`` that are things; None is ``thing_ids``.

    Returns:
        (H, W) uint8, a new array.
    """
    keep = keep_table(set(range(IGNORE)) - set(thing_ids))
    is_mask = member_table(thing_ids if mask_ids is None else mask_ids)
    return np.where(is_mask[box_mask_map], box_mask_map, keep[labels])


def ignore_stuff_in_boxes(
    labels: np.ndarray, boxes: Sequence[Box], thing_ids: Collection[int]
) -> None:
    """Part of step 3: set what is no thing inside the boxes to ignore, in place; not in groups.

    Addition, not in the paper for rounds after the first: there it is the rule of 3.2.
    """
    lookup = keep_table(thing_ids)
    for box in boxes:
        if not box.is_group and not _is_empty(box):
            window = labels[box.y0 : box.y1 + 1, box.x0 : box.x1 + 1]
            window[...] = lookup[window]


def keep_things_in_boxes(labels: np.ndarray, predicted: np.ndarray, boxes: Sequence[Box]) -> None:
    """Part of step 3: bring back the ``predicted`` things that lie in a box of theirs, in place.

    Addition, not in the paper.

    Only ignored pixels of ``labels`` are written; groups do not count.
    """
    for box in boxes:
        if not box.is_group and not _is_empty(box):
            window = (slice(box.y0, box.y1 + 1), slice(box.x0, box.x1 + 1))
            own = (predicted[window] == box.class_id) & (labels[window] == IGNORE)
            labels[window][own] = box.class_id


def apply_box_prior(
    labels: np.ndarray, boxes: Sequence[Box], thing_ids: Collection[int], outside_label: int
) -> None:
    """Step 4: a thing outside the union of its class's boxes becomes ``outside_label``, in place.

    Groups count as boxes. The ends of boxes are inclusive (paper 3.4). Where everything outside
    all boxes has a class, what is ignored there gets it too: the merge of the step before has made
    predicted things ignore, and they are known to be none.
    """
    for thing in sorted(thing_ids):
        outside = labels == thing
        if not outside.any():
            continue
        for box in boxes:
            if box.class_id == thing and not _is_empty(box):
                outside[box.y0 : box.y1 + 1, box.x0 : box.x1 + 1] = False
        labels[outside] = outside_label
    if outside_label != IGNORE:
        unknown = labels == IGNORE
        for box in boxes:
            if not _is_empty(box):
                unknown[box.y0 : box.y1 + 1, box.x0 : box.x1 + 1] = False
        labels[unknown] = outside_label


def fill_boxes(
    labels: np.ndarray, boxes: Sequence[Box], thing_ids: Collection[int], threshold: float
) -> np.ndarray:
    """Step 5: give a box that holds too little of its class to that class.

    Boxes go from large to small (equal areas in annotation order). Only pixels that were stuff or
    ignore before the step are written, so things stay and a smaller box overwrites the fill of a
    larger one. Groups are left out. In this step alone a box is without its first column and row,
    as in the rasteriser that the authors used; a box of one column or row has no area here.

    Args:
        labels: (H, W) uint8.
        boxes: inclusive, inside the image.
        thing_ids: what may not be overwritten.
        threshold: boxes whose share of own pixels is below it are filled.

    Returns:
        (H, W) uint8, a new array.
    """
    is_thing = member_table(thing_ids)
    filled = labels.copy()
    candidates = [box for box in boxes if not box.is_group and box.x1 > box.x0 and box.y1 > box.y0]
    candidates.sort(key=lambda box: -(box.x1 - box.x0 + 1) * (box.y1 - box.y0 + 1))
    for box in candidates:
        window = (slice(box.y0 + 1, box.y1 + 1), slice(box.x0 + 1, box.x1 + 1))
        before = labels[window]
        ratio = np.count_nonzero(before == box.class_id) / before.size
        if ratio < threshold:
            filled[window][~is_thing[before]] = box.class_id
    return filled


def instance_labels(
    labels: np.ndarray,
    boxes: Sequence[Box],
    stuff_ids: Sequence[int] = (),
    marks: Marks | None = None,
) -> tuple[np.ndarray, list[dict]]:
    """Step 6: tell instances apart by their boxes (paper 3.2).

    Repeated boxes of one class count once, groups give no instance, and each remaining box has an
    id of its own, 1 to N, even where it ends without a pixel. A pixel of a class belongs to the
    one box of that class that covers it; covered by two it is ignored.

    Args:
        labels: (H, W) uint8.
        boxes: things and groups, in annotation order.
        stuff_ids: stuff classes that get an instance over the whole image, before the boxes.
        marks: points and scribbles; what an object's own say, holds.

    Returns:
        (H, W) int32 (0 = no instance, -1 = ignore), and ``{"id", "category_id"}`` of the
        instances that have pixels.
    """
    height, width = labels.shape
    instance = np.zeros(labels.shape, np.int32)
    instance[labels == IGNORE] = INSTANCE_IGNORE
    whole = [Box(int(i), 0, 0, width - 1, height - 1) for i in stuff_ids]
    # A group that repeats a box hides it where it comes first, as unique rows do in the authors'
    # code.
    unique: dict[tuple, Box] = {}
    for box in [*whole, *boxes]:
        unique.setdefault(tuple(box[:5]), box)
    kept = [box for box in unique.values() if not box.is_group]
    for number, box in enumerate(kept, start=1):
        if _is_empty(box):
            continue
        window = (slice(box.y0, box.y1 + 1), slice(box.x0, box.x1 + 1))
        own = labels[window] == box.class_id
        inside = instance[window]
        free = inside == 0
        inside[own & ~free] = INSTANCE_IGNORE
        inside[own & free] = number
    if marks is not None:
        for owner, box in enumerate(boxes):
            number = next((n for n, b in enumerate(kept, 1) if b[:5] == box[:5]), None)
            if number is not None:
                instance[marks.of(owner) & (labels == box.class_id)] = number
    present = np.unique(instance)
    segments = [
        {"id": int(i), "category_id": int(kept[i - 1].class_id)} for i in present[present > 0]
    ]
    return instance, segments


def _clip_box(box: Box, width: int, height: int) -> Box:
    """Return ``box`` as integers inside the image; one that lies outside becomes empty."""
    for name, value in zip("class_id x0 y0 x1 y1".split(), box[:5], strict=True):
        if int(value) != value:
            raise ValueError(f"box {tuple(box)}: {name} is {value}, expected a whole number")
    class_id, x0, y0, x1, y1 = (int(value) for value in box[:5])
    _check_classes(f"box {tuple(box)}", [class_id])
    return Box(
        class_id, max(x0, 0), max(y0, 0), min(x1, width - 1), min(y1, height - 1), bool(box[5])
    )


def _is_empty(box: Box) -> bool:
    return box.x1 < box.x0 or box.y1 < box.y0


def _check_classes(name: str, class_ids: Iterable[int]) -> None:
    for class_id in class_ids:
        if not 0 <= class_id < IGNORE:
            raise ValueError(f"{name}: class id {class_id}, expected 0 to {IGNORE - 1}")


def _check_map(name: str, array: np.ndarray, dtype: type, shape: tuple | None = None) -> None:
    if not isinstance(array, np.ndarray) or array.ndim != 2:
        raise ValueError(f"{name}: expected an array (H, W), found {np.shape(array)}")
    if not np.issubdtype(array.dtype, dtype):
        raise ValueError(f"{name}: dtype is {array.dtype}, expected {np.dtype(dtype).name}")
    if shape is not None and array.shape != shape:
        raise ValueError(f"{name}: shape is {array.shape}, labels have {shape}")
