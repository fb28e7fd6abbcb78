# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Points and scribbles in labels: seeds, cues, facts."""

import dataclasses

import numpy as np

from wsis_d2.structures.annotation import AnnotatedClasses, record_marks
from wsis_d2.structures.boxes import Box
from wsis_d2.weak_labels.box_masks import BoxLabelOptions
from wsis_d2.weak_labels.boxes_to_labels import make_box_labels
from wsis_d2.weak_labels.clean import CleanOptions
from wsis_d2.weak_labels.grabcut import GrabCutOptions, grabcut_mask
from wsis_d2.weak_labels.merge import clean_record, merge_record
from wsis_d2.weak_labels.proposals import select_proposal
from wsis_d2.weak_labels.proposals.files import SuperpixelProposals

HEIGHT, WIDTH = 60, 90
GRABCUT = BoxLabelOptions(masks="grabcut")


def two_squares():
    """A red square left and a green one right on noisy grey; both inside the box below."""
    image = np.random.default_rng(0).integers(90, 110, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    left, right = np.zeros((HEIGHT, WIDTH), bool), np.zeros((HEIGHT, WIDTH), bool)
    left[20:40, 20:40], right[20:40, 50:70] = True, True
    image[left], image[right] = (30, 30, 200), (40, 200, 40)
    return image, left, right


BOX = Box(1, 15, 15, 74, 44)


def record(**fields):
    box = {"bbox": [15.0, 15.0, 75.0, 45.0], "bbox_mode": 0, "category_id": 1, "iscrowd": 0}
    own = {k: fields.pop(k) for k in ("points", "scribbles") if k in fields}
    return {"height": HEIGHT, "width": WIDTH, "image_id": 1, "annotations": [{**box, **own}],
            "image_tags": [], **fields}  # fmt: skip


def test_marks_tell_grabcut_which_of_two_is_meant():
    image, left, right = two_squares()
    for object_, other, x, u in ((left, right, 22.5, 52), (right, left, 52.5, 22)):
        # Nothing but the marks tells the two apart: the box holds both, the ellipse neither.
        denied = [[u + k + 0.5, 30.5, 0] for k in range(15)]
        marks = record_marks(record(scribbles=[[[x, 30.5], [x + 15, 30.5]]], points=denied))
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[BOX.window] = grabcut_mask(
            image, BOX.corners, GrabCutOptions(), marks.of(0), marks.others(0, 1)
        )
        assert (mask & object_).sum() > 0.9 * object_.sum()
        assert (mask & other).sum() < 0.25 * other.sum()


def test_marks_choose_among_proposals():
    labels = np.zeros((HEIGHT, WIDTH), int)
    _, left, right = two_squares()
    labels[left], labels[right] = 1, 2
    proposals = SuperpixelProposals(labels, [np.array([1]), np.array([2]), np.array([1, 2])])
    assert select_proposal(proposals, BOX.corners) == 2
    inside, outside = np.zeros((HEIGHT, WIDTH), bool), np.zeros((HEIGHT, WIDTH), bool)
    inside[30, 60] = outside[30, 30] = True
    assert select_proposal(proposals, BOX.corners, "bbox_area", inside, outside) == 1


def test_labels_say_what_was_marked_whatever_the_masks():
    image, _, _ = two_squares()
    given = record(points=[[16.5, 16.5, 1]], scribbles=[[[70.5, 42.5], [73.5, 42.5]]])
    given["points"] = [{"category_id": 0, "xy": [30.5, 30.5]}]
    for masks in ("grabcut", "box"):
        options = dataclasses.replace(GRABCUT, masks=masks)
        labels = make_box_labels(image, [BOX], None, options, marks=record_marks(given))
        assert labels.semantic[16, 16] == 1 and labels.instance[16, 16] == 1
        assert (labels.semantic[42, 70:74] == 1).all() and (labels.instance[42, 70:74] == 1).all()
        stuff = next(s["id"] for s in labels.segments if s["category_id"] == 0)
        assert labels.semantic[30, 30] == 0 and labels.instance[30, 30] == stuff
        assert labels.counters["boxes_marked"] == 1 and labels.counters["pixels_marked"] == 6


def test_an_object_without_a_box_is_found_around_its_scribble():
    image, left, right = two_squares()
    given = {"height": HEIGHT, "width": WIDTH, "annotations": [],
             "unboxed": [{"category_id": 1, "scribbles": [[[22.5, 22.5], [37.5, 37.5]]]}],
             "scribbles": [{"category_id": 0, "xy": [[5.5, 5.5], [80.5, 5.5]]}]}  # fmt: skip
    labels = make_box_labels(image, [], None, GRABCUT, 2, record_marks(given), [1])
    found = labels.semantic == 1
    assert (found & left).sum() > 0.9 * left.sum() and not (found & right).any()
    assert (labels.instance[found] == 1).all()
    assert not (labels.semantic == 2).any()  # more of it may be outside all boxes
    assert (labels.semantic[5, 5:81] == 0).all()
    assert labels.counters["objects_without_box"] == 1


def test_class_marks_grow_within_their_superpixels_alone():
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    cells = np.kron(np.arange(6).reshape(2, 3), np.ones((30, 30), int))

    class Cells(SuperpixelProposals):
        def regions(self):
            return cells

    proposals = Cells(cells, [np.array([k]) for k in range(6)])
    given = {"height": HEIGHT, "width": WIDTH,
             "points": [{"category_id": 0, "xy": [5.5, 5.5]}, {"category_id": 2, "xy": [35.5, 5.5]},
                        {"category_id": 0, "xy": [50.5, 5.5]},
                        {"category_id": 2, "xy": [65.5, 35.5]}]}  # fmt: skip
    labels = make_box_labels(
        image, [Box(1, 70, 40, 79, 49)], proposals, BoxLabelOptions(masks="mcg"),
        marks=record_marks(given),
    )  # fmt: skip
    expected = np.full((HEIGHT, WIDTH), 255)
    expected[:30, :30] = 0
    expected[5, 35], expected[5, 50] = 2, 0  # two classes in one superpixel: the marks alone
    expected[30:, 60:] = 2
    box = np.zeros((HEIGHT, WIDTH), bool)
    box[40:50, 70:80] = True
    np.testing.assert_array_equal(labels.semantic[~box], expected[~box])
    assert not (labels.semantic[box] == 2).any()


ANNOTATION = AnnotatedClasses(frozenset({1, 3}))


def test_no_cleaning_step_overrules_a_mark():
    """Every step on: marks outside the tags, beside the masks, outside boxes, of low score."""
    given = record(
        points=[[20.5, 20.5, 1], [60.5, 30.5, 0]],
        image_tags=[2],
        crop_tags=[{"box": [0, 0, WIDTH, HEIGHT], "tags": [2]}],
    )
    given["points"] = [{"category_id": 0, "xy": [2.5, 2.5]}, {"category_id": 3, "xy": [80.5, 5.5]}]
    labels = np.full((HEIGHT, WIDTH), 2, np.uint8)
    labels[30, 55:65] = 1
    masks = np.full((HEIGHT, WIDTH), 255, np.uint8)
    masks[30, 55:65] = 1
    scores = np.zeros((HEIGHT, WIDTH), np.float32)
    options = CleanOptions(score_threshold=0.9, zero_is_no_box=False)
    result = clean_record(given, labels, ANNOTATION, options, scores, masks)
    assert result.semantic[2, 2] == 0 and result.semantic[5, 80] == 3
    assert result.semantic[20, 20] == 1 and result.instance[20, 20] > 0
    assert result.semantic[30, 60] == 255 and result.semantic[30, 59] == 1


def test_a_mark_tells_overlapping_boxes_apart():
    given = record(points=[[40.5, 30.5, 1]])
    second = {**given["annotations"][0], "bbox": [30.0, 15.0, 85.0, 45.0]}
    second.pop("points")
    given["annotations"].append(second)
    labels = np.full((HEIGHT, WIDTH), 255, np.uint8)
    labels[30, 20:80] = 1
    result = clean_record(given, labels, ANNOTATION, CleanOptions())
    assert result.instance[30, 41] == -1
    assert result.instance[30, 40] == result.instance[30, 20] > 0


def test_the_merge_keeps_objects_without_a_box_and_scores():
    image, left, _ = two_squares()
    unboxed = [{"category_id": 1, "scribbles": [[[22.5, 22.5], [37.5, 37.5]]]}]
    given = {**record(image_tags=[1], unboxed=unboxed), "annotations": []}
    made = make_box_labels(image, [], None, GRABCUT, 255, record_marks(given), [1])
    made.segments[0]["score"] = 0.5
    options = CleanOptions(score_threshold=None, zero_is_no_box=False)
    merged = merge_record(
        given, None, made.semantic, ANNOTATION, options, (made.instance, made.segments)
    )
    np.testing.assert_array_equal(merged.semantic == 1, made.semantic == 1)
    assert [s["score"] for s in merged.segments] == [0.5]
    assert (merged.instance[merged.semantic == 1] == merged.segments[0]["id"]).all()
    assert (merged.semantic == 1).sum() > 0.8 * left.sum()
