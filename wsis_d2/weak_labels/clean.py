# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Clean a semantic label map with what the weak annotation knows for certain.

Six steps in a fixed order, each of which can be switched off: score threshold, crop tags, merge
with the masks of the boxes, box prior, filling of nearly empty boxes, and instance labels. The
paper names the merge and the box prior (3.2 to 3.4); the score threshold, the tag check, the fill
and the order are those of the label-cleaning code that its authors released. Everything here is a
pure function of arrays: it needs maps and boxes alone.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from wsis_d2.structures.annotation import CropTags, Marks
from wsis_d2.structures.boxes import Box
from wsis_d2.structures.labels import IGNORE, INSTANCE_IGNORE
from wsis_d2.weak_labels.clean_steps import (
    add_box_classes,
    apply_box_prior,
    boxes_inside,
    check_classes,
    check_tags,
    fill_boxes,
    merge_masks,
)
from wsis_d2.weak_labels.instance_labels import instance_labels


@dataclass(frozen=True)
class CleanOptions:
    """Which steps run, and how.

    The defaults are those of a label map with street-scene annotation; a step whose input is not
    given (``scores``, ``box_mask_map``) does not run whatever the options say.

    Attributes:
        score_threshold: labels less probable than this become ignore; None skips the step.
        tags: drop labels that are not among the tags of each crop they lie in.
        merge: let the box masks win and drop things elsewhere.
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
    prior: bool = True
    fill: bool = True
    add_box_classes_to_tags: bool = True
    outside_label: int = IGNORE
    fill_threshold: float = 0.5
    zero_is_no_box: bool = True
    stuff_instances: bool = True
    instances: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.outside_label <= IGNORE:
            raise ValueError(f"CleanOptions.outside_label is {self.outside_label}, expected 0-255")
        for name in ("score_threshold", "fill_threshold"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"CleanOptions.{name} is {value}, expected a share from 0 to 1")


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
    boxes = boxes_inside(boxes, labels.shape)
    things = frozenset(int(i) for i in thing_ids) | {box.class_id for box in boxes}
    check_classes("thing_ids", things)
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
        result = merge_masks(result, box_mask_map, things, things - no_box)
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
    check_classes("image_tags", stuff)
    if not options.instances:
        nothing = np.full(labels.shape, INSTANCE_IGNORE, np.int32)
        return CleanResult(result, nothing, [], stages)
    instance, segments = instance_labels(result, boxes, stuff, marks)
    return CleanResult(result, instance, segments, stages)


def _check_map(name: str, array: np.ndarray, dtype: type, shape: tuple | None = None) -> None:
    if not isinstance(array, np.ndarray) or array.ndim != 2:
        raise ValueError(f"{name}: expected an array (H, W), found {np.shape(array)}")
    if not np.issubdtype(array.dtype, dtype):
        raise ValueError(f"{name}: dtype is {array.dtype}, expected {np.dtype(dtype).name}")
    if shape is not None and array.shape != shape:
        raise ValueError(f"{name}: shape is {array.shape}, labels have {shape}")
