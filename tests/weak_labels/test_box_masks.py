# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Boxes to labels: agreement, overlap, and every case that fails."""

import functools

import numpy as np
import pytest
from test_grabcut import disc_image, iou

from wsis_d2.structures.annotation import centre_boxes
from wsis_d2.structures.boxes import Box
from wsis_d2.utils.errors import InputError
from wsis_d2.weak_labels.box_masks import BoxLabelOptions
from wsis_d2.weak_labels.boxes_to_labels import make_box_labels
from wsis_d2.weak_labels.proposals import MCGSource
from wsis_d2.weak_labels.proposals.files import SuperpixelProposals

BOX = BoxLabelOptions(masks="box")


def one_proposal(mask):
    """A proposal set of one mask."""
    return SuperpixelProposals(mask.astype(int), [np.array([1])])


def image_of(height=30, width=40):
    return np.random.default_rng(0).integers(0, 255, (height, width, 3)).astype(np.uint8)


def test_class_only_where_both_agree():
    image, disc = disc_image()
    half = disc & (np.arange(160) < 80)[None, :]
    box = Box(2, 50, 30, 110, 90)
    labels = {}
    for masks in ("agreement", "grabcut", "mcg"):
        options = BoxLabelOptions(masks=masks)
        labels[masks] = make_box_labels(image, [box], one_proposal(half), options).semantic
    both = (labels["grabcut"] == 2) & (labels["mcg"] == 2)
    np.testing.assert_array_equal(labels["agreement"] == 2, both)
    np.testing.assert_array_equal(labels["mcg"] == 2, half)
    assert iou(labels["grabcut"] == 2, disc) > 0.9
    assert set(np.unique(labels["agreement"])) == {2, 255}


def test_box_baseline_and_class_outside():
    labels = make_box_labels(image_of(), [Box(3, 5, 6, 14, 15)], None, BOX, outside=0)
    expected = np.zeros((30, 40))
    expected[6:16, 5:15] = 3
    np.testing.assert_array_equal(labels.semantic, expected)
    np.testing.assert_array_equal(labels.instance, np.where(expected == 3, 1, 2))
    assert labels.segments == [{"id": 1, "category_id": 3}, {"id": 2, "category_id": 0}]


def test_rest_of_a_box_is_ignore_not_background():
    half = np.zeros((30, 40), bool)
    half[6:16, 5:10] = True
    options = BoxLabelOptions(masks="mcg")
    box = Box(3, 5, 6, 14, 15)
    labels = make_box_labels(image_of(), [box], one_proposal(half), options, outside=0)
    assert (labels.semantic[6:16, 10:15] == 255).all()
    assert (labels.instance[6:16, 10:15] == -1).all()
    assert (labels.semantic == 0).sum() == 30 * 40 - 100


def test_same_class_overlap_is_ignore_in_the_instance_map_alone():
    boxes = [Box(1, 0, 0, 19, 9), Box(1, 10, 0, 29, 9)]
    labels = make_box_labels(image_of(), boxes, None, BOX)
    assert (labels.semantic[:10, :30] == 1).all()
    np.testing.assert_array_equal(labels.instance[0, :31], [1] * 10 + [-1] * 10 + [2] * 10 + [-1])


@pytest.mark.parametrize("order", [1, -1])
def test_smaller_box_wins_between_classes(order):
    large, small = Box(1, 0, 0, 19, 19), Box(2, 5, 5, 9, 9)
    labels = make_box_labels(image_of(), [large, small][::order], None, BOX)
    assert (labels.semantic[5:10, 5:10] == 2).all() and (labels.semantic == 1).sum() == 375
    ignore = BoxLabelOptions(masks="box", overlap="ignore")
    labels = make_box_labels(image_of(), [large, small][::order], None, ignore)
    assert (labels.semantic[5:10, 5:10] == 255).all() and (labels.semantic == 1).sum() == 375
    assert (labels.instance[5:10, 5:10] == -1).all()


def test_same_class_claims_meet_under_another_class():
    # Both class-1 boxes claim the middle; a class-2 box between them in size claims it too.
    boxes = [Box(1, 0, 0, 19, 19), Box(2, 4, 4, 13, 13), Box(1, 8, 8, 11, 11)]
    labels = make_box_labels(image_of(), boxes, None, BOX)
    assert (labels.semantic[8:12, 8:12] == 1).all() and (labels.instance[8:12, 8:12] == -1).all()
    assert (labels.instance[4:8, 4:14] == 2).all()


def test_groups_stay_ignore_and_take_no_id():
    boxes = [Box(1, 0, 0, 8, 8, is_group=True), Box(1, 20, 0, 28, 8)]
    labels = make_box_labels(image_of(), boxes, None, BOX, outside=0)
    assert (labels.semantic[:9, :9] == 255).all() and (labels.instance[:9, 20:29] == 1).all()
    assert labels.counters["boxes_group"] == 1 and labels.counters["boxes"] == 1


def test_a_box_given_twice_counts_once_and_spends_an_id():
    boxes = [Box(1, 0, 0, 8, 8), Box(1, 0, 0, 8, 8), Box(1, 20, 0, 28, 8)]
    labels = make_box_labels(image_of(), boxes, None, BOX)
    assert set(np.unique(labels.instance)) == {-1, 1, 3}
    assert labels.counters["boxes_duplicate"] == 1


def failing_case(name):
    """Image, box, proposals of each case that gives nothing, and its counter."""
    image, disc = disc_image()
    nothing = np.zeros_like(disc)
    nothing[0, 0] = True
    corner = np.zeros_like(disc)
    corner[30:34, 50:54] = True
    return {
        "tiny": (image, Box(1, 70, 50, 72, 89), one_proposal(disc), "boxes_tiny"),
        "whole": (image, Box(1, 0, 0, 159, 119), one_proposal(disc), "boxes_whole_image"),
        "uniform": (
            np.full_like(image, 7), Box(1, 50, 30, 110, 90), one_proposal(disc),
            "boxes_uniform",
        ),
        "grabcut": (
            np.full_like(image, 7), Box(1, 50, 30, 110, 90), one_proposal(disc),
            "boxes_grabcut_empty",
        ),
        "proposal": (
            image, Box(1, 50, 30, 110, 90), one_proposal(nothing), "boxes_proposal_empty",
        ),
        "agreement": (
            image, Box(1, 50, 30, 110, 90), one_proposal(corner), "boxes_no_agreement",
        ),
        "pixel": (
            image[:1, :1], Box(1, 0, 0, 0, 0), one_proposal(np.ones((1, 1), bool)),
            "boxes_whole_image",
        ),
    }[name]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["tiny", "whole", "uniform", "grabcut", "proposal", "agreement", "pixel"]
)
def test_failed_boxes_are_ignored_counted_or_fall_back(name):
    image, box, proposals, counter = failing_case(name)
    labels = make_box_labels(image, [box], proposals, BoxLabelOptions())
    assert (labels.semantic == 255).all() and (labels.instance == -1).all()
    assert labels.counters[counter] == 1
    assert labels.counters["boxes_failed"] == labels.counters["boxes_ignored"] == 1
    for fallback in ("ellipse", "mcg"):
        options = BoxLabelOptions(fallback=fallback)
        labels = make_box_labels(image, [box], proposals, options)
        empty = name == "proposal" and fallback == "mcg"
        assert (labels.semantic == 255).all() == empty
        assert labels.counters[f"boxes_fallback_{fallback}"] == (not empty)
        assert labels.counters["boxes_ignored"] == empty


def test_too_little_agreement_counts_as_failed():
    image, disc = disc_image()
    speck = disc & (np.arange(160) < 54)[None, :]
    box = Box(1, 50, 30, 110, 90)
    some = make_box_labels(image, [box], one_proposal(speck), BoxLabelOptions())
    assert 0 < (some.semantic == 1).sum() < 0.1 * box.area
    options = BoxLabelOptions(min_agreement=0.2)
    labels = make_box_labels(image, [box], one_proposal(speck), options)
    assert (labels.semantic == 255).all() and labels.counters["boxes_failed"] == 1


def test_tiny_and_giant_images_are_counted():
    tiny = make_box_labels(image_of(7, 40), [Box(1, 0, 0, 4, 4)], None, BOX)
    assert tiny.counters["images_tiny"] == 1 and tiny.counters["images_scaled_down"] == 0
    image, disc = disc_image()
    box, options = Box(1, 50, 30, 110, 90), BoxLabelOptions(masks="mcg")
    for side, scaled_down in ((80, 1), (0, 0)):
        source = functools.partial(MCGSource(max_side=side), image, {})
        labels = make_box_labels(image, [box], source, options)
        assert labels.counters["images_scaled_down"] == scaled_down
        assert labels.counters["images_tiny"] == 0
        assert iou(labels.semantic == 1, disc) > 0.9


def test_border_boxes_are_counted():
    labels = make_box_labels(image_of(), [Box(1, 0, 5, 8, 14)], None, BOX)
    assert labels.counters["boxes_border"] == 1


def test_proposals_are_made_only_when_asked():
    def refuse():
        raise AssertionError("asked")

    image, _ = disc_image()
    box = Box(1, 50, 30, 110, 90)
    make_box_labels(image, [box], refuse, BoxLabelOptions(masks="grabcut"))
    make_box_labels(image, [], refuse, BoxLabelOptions())
    with pytest.raises(AssertionError, match="asked"):
        make_box_labels(image, [box], refuse, BoxLabelOptions())


def test_without_a_source_grabcut_decides_and_mcg_is_refused():
    image, _ = disc_image()
    box = Box(1, 50, 30, 110, 90)
    alone = make_box_labels(image, [box], None, BoxLabelOptions(masks="grabcut")).semantic
    none = make_box_labels(image, [box], None, BoxLabelOptions()).semantic
    np.testing.assert_array_equal(alone, none)
    with pytest.raises(InputError, match="PROPOSALS.NAME"):
        make_box_labels(image, [box], None, BoxLabelOptions(masks="mcg"))


def test_boxes_of_a_record_in_pixels():
    record = {
        "height": 20, "width": 30,
        "annotations": [
            {"bbox": [1.4, 2.6, 5.5, 9.5], "bbox_mode": 0, "category_id": 1},
            {"bbox": [1, 2, 4, 5], "bbox_mode": 1, "category_id": 2, "iscrowd": 1},
            {"bbox": [10.1, 10.1, 10.3, 10.3], "bbox_mode": 0, "category_id": 1},
            {"bbox": [29.6, 19.7, 30, 20], "bbox_mode": 0, "category_id": 1},
        ],
    }  # fmt: skip
    boxes = centre_boxes(record)
    assert [b.corners for b in boxes] == [
        (1, 3, 6, 10), (1, 2, 5, 7), (10, 10, 11, 11), (29, 19, 30, 20),
    ]  # fmt: skip
    assert [b.is_group for b in boxes] == [False, True, False, False]


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        ("masks", "sam", "MASKS"),
        ("fallback", "box", "FALLBACK"),
        ("overlap", "larger", "OVERLAP"),
        ("selection", "best", "PROPOSALS.SELECTION"),
        ("min_agreement", 2, "MIN_AGREEMENT"),
    ],
)
def test_bad_options_name_their_key(key, value, name):
    with pytest.raises(InputError, match=f"WEAK_LABELS.{name}"):
        BoxLabelOptions(**{key: value})
