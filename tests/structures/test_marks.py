# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Points and scribbles of a record, drawn; expected pixels are written out by hand."""

import numpy as np

from wsis_d2.structures.annotation import record_marks, unboxed_classes, whole_image_groups
from wsis_d2.structures.boxes import Box
from wsis_d2.structures.classes import record_in_classes
from wsis_d2.weak_labels.recipe import annotation_digest

RECORD = {
    "height": 8, "width": 12, "image_id": 1, "image_tags": [3],
    "annotations": [
        {"bbox": [0, 0, 6, 8], "bbox_mode": 0, "category_id": 1, "iscrowd": 0,
         "points": [[2.9, 1.2, 1], [5.5, 7.5, 0]]},
        {"bbox": [4, 0, 12, 8], "bbox_mode": 0, "category_id": 1, "iscrowd": 0},
    ],
    "unboxed": [{"category_id": 2, "scribbles": [[[8.5, 2.5], [10.5, 4.5], [10.5, 5.5]]]}],
    "points": [{"category_id": 1, "xy": [1.0, 5.0]}, {"category_id": 1, "xy": [5.0, 5.0]},
               {"category_id": 0, "xy": [11.0, 8.0]}],
    "scribbles": [{"category_id": 3, "xy": [[6.0, 7.0], [8.9, 7.9]]}],
}  # fmt: skip


def test_marks_are_drawn_pixel_by_pixel():
    marks = record_marks(RECORD)
    classes = np.full((8, 12), 255)
    classes[1, 2] = 1  # pixel k spans [k, k + 1)
    classes[[2, 3, 4, 5], [8, 9, 10, 10]] = 2
    classes[5, 1] = classes[5, 5] = 1
    classes[7, 11] = 0  # on the border: the last pixel
    classes[7, 6:9] = 3
    np.testing.assert_array_equal(marks.classes, classes)
    owners = np.full((8, 12), -1)
    owners[1, 2] = 0
    owners[[2, 3, 4, 5], [8, 9, 10, 10]] = 2  # behind the two boxes
    owners[5, 1] = 0  # a point of the class in one box alone; that in both is nobody's
    np.testing.assert_array_equal(marks.owners, owners)
    assert np.argwhere(marks.denied != 255).tolist() == [[7, 5]] and marks.denied[7, 5] == 1
    assert marks.of(2).sum() == 4
    others = marks.others(0, 1)
    assert others[7, 5] and others[2, 8] and others[7, 7] and not others[5, 5] and not others[1, 2]


def test_a_pixel_that_two_classes_mark_is_no_fact():
    points = [{"category_id": 1, "xy": [3.1, 3.2]}, {"category_id": 0, "xy": [3.8, 3.9]}]
    marks = record_marks({"height": 8, "width": 12, "points": points})
    assert (marks.classes == 255).all() and (marks.owners == -1).all()


def test_records_without_marks_have_none():
    assert record_marks({"height": 8, "width": 12, "annotations": []}) is None


def test_objects_without_a_box_may_be_anywhere():
    assert unboxed_classes(RECORD) == [2]
    assert whole_image_groups(RECORD, []) == [Box(2, 0, 0, 11, 7, True)]
    # Class 0 is marked and has no box; 1 is marked and has two.
    groups = [Box(0, 0, 0, 11, 7, True), Box(2, 0, 0, 11, 7, True)]
    assert whole_image_groups(RECORD, [0, 1]) == groups
    # So is a thing that is tagged; 3 is stuff.
    tagged = {"height": 8, "width": 12, "image_tags": [0, 1, 3], "annotations":
              RECORD["annotations"]}  # fmt: skip
    assert whole_image_groups(tagged, [0, 1]) == groups[:1]


def test_marks_follow_the_classes_and_count_in_the_digest():
    moved = record_in_classes(RECORD, [3, 2, 1, 0])
    assert moved["unboxed"][0]["category_id"] == 1
    assert [p["category_id"] for p in moved["points"]] == [2, 2, 3]
    bare = {k: v for k, v in RECORD.items() if k not in ("points", "scribbles", "unboxed")}
    digests = {annotation_digest(r) for r in (RECORD, moved, bare)}
    without = [{k: v for k, v in a.items() if k != "points"} for a in bare["annotations"]]
    digests.add(annotation_digest({**bare, "annotations": without}))
    assert len(digests) == 4
