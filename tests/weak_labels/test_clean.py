# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Label cleaning: hand-computed cases for each step."""

import numpy as np
import pytest

from wsis_d2.weak_labels.clean import Box, CleanOptions, clean_labels

# Classes of the small cases: stuff 0 to 2, things 3 and 4.
THINGS = frozenset({3, 4})
I = 255
OFF = dict(score_threshold=None, tags=False, merge=False, prior=False, fill=False)


def only(**steps) -> CleanOptions:
    return CleanOptions(**{**OFF, **steps})


def grid(text: str) -> np.ndarray:
    """Read a map: one character a pixel, ``.`` = ignore."""
    rows = text.split()
    return np.array([[I if c == "." else int(c) for c in row] for row in rows], np.uint8)


def test_score_is_strictly_below_the_threshold():
    labels = grid("0123")
    scores = np.array([[0.99, 0.98, 1.0, 0.0]], np.float32)
    result = clean_labels(labels, scores, thing_ids=THINGS, options=only(score_threshold=0.99))
    assert result.semantic.tolist() == [[0, I, 2, I]]
    assert list(result.stages) == ["score"]


def test_score_threshold_compares_in_the_precision_of_the_scores():
    labels = np.zeros((1, 1), np.uint8)
    scores = np.array([[0.99]], np.float32)
    result = clean_labels(labels, scores, options=only(score_threshold=0.99))
    assert result.semantic[0, 0] == 0


def test_tags_delete_in_every_crop_that_covers_the_pixel():
    labels = grid("00000 11111")
    crops = [(0, 0, 3, 2, frozenset({0})), (2, 0, 5, 2, frozenset({1}))]
    result = clean_labels(labels, crop_tags=crops, options=only(tags=True))
    assert result.semantic.tolist() == grid("00... ...11").tolist()


def test_tags_keep_the_things_whose_box_meets_the_crop():
    labels = grid("3344")
    crops = [(0, 0, 2, 1, frozenset({0})), (2, 0, 4, 1, frozenset({0}))]
    # The box of class 3 ends in the last column of the first crop; the group of 4 in both.
    boxes = [Box(3, 0, 0, 1, 0), Box(4, 1, 0, 3, 0, True)]
    kept = clean_labels(labels, boxes=boxes, crop_tags=crops, options=only(tags=True))
    assert kept.semantic.tolist() == grid("3344").tolist()
    literal = clean_labels(
        labels,
        boxes=boxes,
        crop_tags=crops,
        options=only(tags=True, add_box_classes_to_tags=False),
    )
    assert literal.semantic.tolist() == grid("....").tolist()


def test_a_box_beside_the_crop_adds_no_tag():
    labels = grid("3333")
    crops = [(0, 0, 2, 1, frozenset()), (2, 0, 4, 1, frozenset())]
    boxes = [Box(3, 2, 0, 3, 0)]
    result = clean_labels(labels, boxes=boxes, crop_tags=crops, options=only(tags=True))
    assert result.semantic.tolist() == grid("..33").tolist()


def test_merge_masks_win_and_things_elsewhere_go():
    # All nine cases of (thing, no box, ignore) in the masks against (thing, stuff, ignore).
    labels = grid("31. 31. 31.")
    box_mask_map = grid("444 000 ...")
    result = clean_labels(
        labels, box_mask_map=box_mask_map, thing_ids=THINGS, options=only(merge=True)
    )
    assert result.semantic.tolist() == grid("444 .1. .1.").tolist()


def test_zero_in_the_masks_is_no_box_unless_said_otherwise():
    labels = grid("12")
    box_mask_map = grid("00")
    things = {0}
    no_box = clean_labels(
        labels, box_mask_map=box_mask_map, thing_ids=things, options=only(merge=True)
    )
    assert no_box.semantic.tolist() == grid("12").tolist()
    own = clean_labels(
        labels,
        box_mask_map=box_mask_map,
        thing_ids=things,
        options=only(merge=True, zero_is_no_box=False),
    )
    assert own.semantic.tolist() == grid("00").tolist()


def test_prior_keeps_things_in_boxes_of_their_class_only():
    labels = grid("33344 33144")
    boxes = [Box(3, 1, 0, 2, 0), Box(4, 4, 1, 4, 1, True)]
    result = clean_labels(labels, boxes=boxes, thing_ids=THINGS, options=only(prior=True))
    assert result.semantic.tolist() == grid(".33.. ..1.4").tolist()
    voc = clean_labels(
        labels, boxes=boxes, thing_ids=THINGS, options=only(prior=True, outside_label=0)
    )
    assert voc.semantic.tolist() == grid("03300 00104").tolist()


def test_outside_all_boxes_is_background_also_after_the_merge():
    # Paper 3.4: on VOC a thing outside its boxes is background; the merge makes it ignore first.
    labels = grid("33343 ..404")
    boxes = [Box(3, 1, 0, 2, 0), Box(4, 3, 0, 4, 1, True)]
    masks = grid(".3... .....")
    options = only(merge=True, prior=True, outside_label=0)
    voc = clean_labels(labels, box_mask_map=masks, boxes=boxes, thing_ids=THINGS, options=options)
    assert voc.semantic.tolist() == grid("03... 0000.").tolist()


def test_prior_without_boxes_deletes_every_thing():
    result = clean_labels(grid("340"), thing_ids=THINGS, options=only(prior=True))
    assert result.semantic.tolist() == grid("..0").tolist()


def test_fill_leaves_out_the_first_column_and_row():
    labels = grid("0000 0000 0000")
    boxes = [Box(3, 0, 0, 2, 2)]
    result = clean_labels(labels, boxes=boxes, thing_ids=THINGS, options=only(fill=True))
    assert result.semantic.tolist() == grid("0000 0330 0330").tolist()


def test_fill_keeps_things_and_starts_below_one_half():
    # Inner window of the box: columns 1-2, rows 1-2.
    half = grid("000 033 011")
    boxes = [Box(3, 0, 0, 2, 2)]
    same = clean_labels(half, boxes=boxes, thing_ids=THINGS, options=only(fill=True))
    assert same.semantic.tolist() == half.tolist()
    quarter = grid("000 034 0.1")
    filled = clean_labels(quarter, boxes=boxes, thing_ids=THINGS, options=only(fill=True))
    assert filled.semantic.tolist() == grid("000 034 033").tolist()


def test_fill_smaller_boxes_overwrite_larger_fills_whatever_the_order():
    labels = np.zeros((5, 5), np.uint8)
    small, large = Box(4, 1, 1, 3, 3), Box(3, 0, 0, 4, 4)
    expected = grid("00000 03333 03443 03443 03333")
    for boxes in ([small, large], [large, small]):
        result = clean_labels(labels, boxes=boxes, thing_ids=THINGS, options=only(fill=True))
        assert result.semantic.tolist() == expected.tolist()


def test_fill_measures_the_map_before_the_step():
    # Class 4 fills its box first (larger); were the ratio of 3 measured afterwards, nothing of the
    # box of 3 would be stuff any more and it would not be filled.
    labels = np.zeros((4, 6), np.uint8)
    boxes = [Box(3, 0, 0, 2, 2), Box(4, 0, 0, 5, 3)]
    result = clean_labels(labels, boxes=boxes, thing_ids=THINGS, options=only(fill=True))
    assert result.semantic.tolist() == grid("000000 033444 033444 044444").tolist()


def test_fill_of_equal_areas_follows_annotation_order():
    labels = np.zeros((3, 4), np.uint8)
    boxes = [Box(3, 0, 0, 2, 2), Box(4, 1, 0, 3, 2)]
    result = clean_labels(labels, boxes=boxes, thing_ids=THINGS, options=only(fill=True))
    assert result.semantic.tolist() == grid("0000 0344 0344").tolist()


@pytest.mark.parametrize("box", [Box(3, 0, 0, 0, 3), Box(3, 0, 0, 3, 0), Box(3, 0, 0, 3, 3, True)])
def test_fill_skips_thin_boxes_and_groups(box):
    labels = np.zeros((4, 4), np.uint8)
    result = clean_labels(labels, boxes=[box], thing_ids=THINGS, options=only(fill=True))
    assert not result.semantic.any()


def test_instances_overlap_groups_duplicates_and_empty_boxes():
    labels = grid("33333 0044.")
    boxes = [
        Box(3, 0, 0, 2, 0),  # id 2 (id 1 is stuff 0)
        Box(3, 2, 0, 3, 0),  # id 3, overlaps at column 2
        Box(3, 2, 0, 3, 0),  # the same again: no id
        Box(4, 2, 1, 3, 1, True),  # a group: no id
        Box(4, 5, 5, 7, 7),  # outside the image: id 4 is spent
        Box(4, 3, 1, 3, 1),  # id 5
    ]
    result = clean_labels(labels, boxes=boxes, image_tags={0, 3}, thing_ids=THINGS, options=only())
    assert result.instance.tolist() == [[2, 2, -1, 3, 0], [1, 1, 0, 5, -1]]
    assert result.segments == [
        {"id": 1, "category_id": 0},
        {"id": 2, "category_id": 3},
        {"id": 3, "category_id": 3},
        {"id": 5, "category_id": 4},
    ]


def test_three_boxes_on_one_pixel_are_ignored_and_boxes_of_other_classes_do_not_matter():
    labels = grid("33")
    boxes = [Box(3, 0, 0, 1, 0), Box(4, 0, 0, 1, 0), Box(3, 0, 0, 0, 0), Box(3, -3, 0, 0, 0)]
    result = clean_labels(labels, boxes=boxes, thing_ids=THINGS, options=only())
    assert result.instance.tolist() == [[-1, 1]]


def test_a_group_that_repeats_a_box_hides_it_when_it_comes_first():
    labels = grid("33")
    single, group = Box(3, 0, 0, 1, 0), Box(3, 0, 0, 1, 0, True)
    first = clean_labels(labels, boxes=[group, single], thing_ids=THINGS, options=only())
    assert first.instance.tolist() == [[0, 0]]
    second = clean_labels(labels, boxes=[single, group], thing_ids=THINGS, options=only())
    assert second.instance.tolist() == [[1, 1]]


def test_inputs_stay_and_wrong_ones_are_named():
    labels = grid("33 00")
    before = labels.copy()
    clean_labels(labels, boxes=[Box(3, 0, 0, 0, 0)], thing_ids=THINGS)
    assert (labels == before).all()
    with pytest.raises(ValueError, match="labels: dtype is int64, expected uint8"):
        clean_labels(labels.astype(np.int64))
    with pytest.raises(ValueError, match="box_mask_map: shape"):
        clean_labels(labels, box_mask_map=np.zeros((3, 3), np.uint8))
    with pytest.raises(ValueError, match="class id 300"):
        clean_labels(labels, boxes=[Box(300, 0, 0, 1, 1)])
    with pytest.raises(ValueError, match="score_threshold is 99"):
        CleanOptions(score_threshold=99)
