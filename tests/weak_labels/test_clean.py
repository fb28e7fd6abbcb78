# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Label cleaning: hand-computed cases for each step, and a slow literal reference for all."""

import numpy as np
import pytest

from wsis_d2.weak_labels.clean import Box, CleanOptions, clean_labels
from wsis_d2.weak_labels.possible_classes import possible_classes

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


@pytest.mark.parametrize(
    "kept, expected",
    [
        ("stuff", "01312 01.12"),
        ("nothing", "0.3.2 0...2"),
        # The 4 lies in a box of class 3, the last 3 in no box.
        ("things", "0.3.2 033.2"),
    ],
)
def test_what_the_merge_keeps_beside_the_masks_in_boxes(kept, expected):
    # The single box covers columns 1 to 3 of both rows; a group of the rest has no mask to trust.
    labels = grid("01012 01312" if kept != "things" else "01412 03312")
    box_mask_map = grid("..3.. .....")
    boxes = [Box(3, 1, 0, 3, 1), Box(4, 4, 0, 4, 1, True)]
    options = only(merge=True, keep_in_boxes=kept)
    result = clean_labels(
        labels, box_mask_map=box_mask_map, boxes=boxes, thing_ids=THINGS, options=options
    )
    assert result.semantic.tolist() == grid(expected).tolist()


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
    with pytest.raises(ValueError, match="keep_in_boxes is 'all', expected one of"):
        CleanOptions(keep_in_boxes="all")


def literal_reference(labels, scores, box_mask_map, boxes, crop_tags, image_tags, things, options):
    """The six steps pixel by pixel, as one would explain them."""
    height, width = labels.shape
    pixels = [(y, x) for y in range(height) for x in range(width)]
    now = {p: int(labels[p]) for p in pixels}
    stages = {}

    def keep(name):
        stages[name] = dict(now)

    if options.score_threshold is not None and scores is not None:
        for p in pixels:
            if scores[p] < np.float32(options.score_threshold):
                now[p] = I
        keep("score")
    if options.tags:
        for x0, y0, x1, y1, tags in crop_tags:
            allowed = set(tags)
            if options.add_box_classes_to_tags:
                for box in boxes:
                    box_pixels = {
                        (y, x) for y in range(box.y0, box.y1 + 1) for x in range(box.x0, box.x1 + 1)
                    }
                    if any(x0 <= x < x1 and y0 <= y < y1 for y, x in box_pixels):
                        allowed.add(box.class_id)
            for y, x in pixels:
                if x0 <= x < x1 and y0 <= y < y1 and now[y, x] not in allowed:
                    now[y, x] = I
        keep("tags")
    if options.merge and box_mask_map is not None:
        for p in pixels:
            covering = {
                b.class_id
                for b in boxes
                if b.x0 <= p[1] <= b.x1 and b.y0 <= p[0] <= b.y1 and not b.is_group
            }
            if box_mask_map[p] in things:
                now[p] = int(box_mask_map[p])
            elif now[p] in things:
                if options.keep_in_boxes != "things" or now[p] not in covering:
                    now[p] = I
            elif options.keep_in_boxes != "stuff" and covering:
                now[p] = I
        keep("merge")
    if options.prior:
        for y, x in pixels:
            if now[y, x] in things and not any(
                b.class_id == now[y, x] and b.x0 <= x <= b.x1 and b.y0 <= y <= b.y1 for b in boxes
            ):
                now[y, x] = options.outside_label
            if now[y, x] == I and not any(b.x0 <= x <= b.x1 and b.y0 <= y <= b.y1 for b in boxes):
                now[y, x] = options.outside_label
        keep("prior")
    if options.fill:
        before = dict(now)
        order = sorted(
            range(len(boxes)),
            key=lambda i: (
                -(boxes[i].x1 - boxes[i].x0 + 1) * (boxes[i].y1 - boxes[i].y0 + 1),
                i,
            ),
        )
        for i in order:
            box = boxes[i]
            area = (box.x1 - box.x0) * (box.y1 - box.y0)
            if box.is_group or box.x1 < box.x0 or box.y1 < box.y0 or area == 0:
                continue
            window = [
                (y, x) for y in range(box.y0 + 1, box.y1 + 1) for x in range(box.x0 + 1, box.x1 + 1)
            ]
            if sum(before[p] == box.class_id for p in window) / area < options.fill_threshold:
                for p in window:
                    if before[p] not in things:
                        now[p] = box.class_id
        keep("fill")
    instance = {p: (-1 if now[p] == I else 0) for p in pixels}
    entries = [
        (c, 0, 0, width - 1, height - 1, False) for c in sorted(image_tags) if c not in things
    ]
    entries += [tuple(b) for b in boxes]
    number, seen = 0, []
    for class_id, x0, y0, x1, y1, is_group in entries:
        if (class_id, x0, y0, x1, y1) in seen:
            continue
        seen.append((class_id, x0, y0, x1, y1))
        if is_group:
            continue
        number += 1
        for y, x in pixels:
            if x0 <= x <= x1 and y0 <= y <= y1 and now[y, x] == class_id:
                instance[y, x] = number if instance[y, x] == 0 else -1

    def to_map(values, dtype):
        return np.array([[values[y, x] for x in range(width)] for y in range(height)], dtype)

    return (
        to_map(now, np.uint8),
        to_map(instance, np.int32),
        {name: to_map(values, np.uint8) for name, values in stages.items()},
    )


@pytest.mark.parametrize("seed", range(60))
def test_against_the_literal_reference_on_random_maps(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(4, 14, 2)
    things = frozenset({3, 4, 5})
    values = np.array([0, 1, 2, 3, 4, 5, I], np.uint8)

    def random_map():
        blocks = rng.choice(values, (-(-height // 2), -(-width // 2)))
        noise = rng.choice(values, (height, width))
        smooth = blocks.repeat(2, 0).repeat(2, 1)[:height, :width]
        return np.where(rng.random((height, width)) < 0.25, noise, smooth).astype(np.uint8)

    boxes = []
    for _ in range(rng.integers(0, 9)):
        x0, x1 = np.sort(rng.integers(0, width, 2))
        y0, y1 = np.sort(rng.integers(0, height, 2))
        if rng.random() < 0.1:
            x1 = x0 - 1  # an empty box
        boxes.append(Box(int(rng.choice([3, 4, 5])), x0, y0, x1, y1, bool(rng.random() < 0.25)))
        if rng.random() < 0.2:
            repeated = boxes[rng.integers(len(boxes))]
            boxes.append(repeated._replace(is_group=bool(rng.random() < 0.5)))
    crops = []
    for x in (0, width // 3):
        for y in (0, height // 3):
            tags = frozenset(rng.choice(6, rng.integers(0, 5), replace=False).tolist())
            crops.append((x, y, x + width - width // 3, y + height - height // 3, tags))
    options = CleanOptions(
        score_threshold=None if rng.random() < 0.3 else 0.4,
        tags=bool(rng.random() < 0.7),
        merge=bool(rng.random() < 0.6),
        keep_in_boxes=str(rng.choice(["stuff", "nothing", "things"])),
        prior=bool(rng.random() < 0.8),
        fill=bool(rng.random() < 0.8),
        add_box_classes_to_tags=bool(rng.random() < 0.7),
        outside_label=int(rng.choice([I, 0])),
    )
    labels, box_mask_map = random_map(), random_map()
    scores = rng.random((height, width), np.float32)
    image_tags = frozenset(rng.choice(6, 4, replace=False).tolist())
    result = clean_labels(labels, scores, box_mask_map, boxes, crops, image_tags, things, options)
    semantic, instance, stages = literal_reference(
        labels, scores, box_mask_map, boxes, crops, image_tags, things, options
    )
    assert list(result.stages) == list(stages)
    for name in stages:
        np.testing.assert_array_equal(result.stages[name], stages[name], err_msg=name)
    np.testing.assert_array_equal(result.semantic, semantic)
    np.testing.assert_array_equal(result.instance, instance)
    assert result.semantic.dtype == np.uint8 and result.instance.dtype == np.int32


@pytest.mark.parametrize("seed", range(20))
def test_possible_classes_are_those_that_tags_and_prior_do_not_delete(seed):
    rng = np.random.default_rng(seed)
    height, width = (int(n) for n in rng.integers(4, 14, 2))
    boxes = []
    for _ in range(rng.integers(0, 6)):
        x0, x1 = np.sort(rng.integers(-2, width + 2, 2))
        y0, y1 = np.sort(rng.integers(-2, height + 2, 2))
        boxes.append(Box(int(rng.choice([3, 4])), x0, y0, x1, y1, bool(rng.random() < 0.3)))
    crops = [
        (x, y, x + 2 * width // 3, y + 2 * height // 3 + 1, frozenset({int(rng.integers(3)), 1}))
        for x in (-1, width // 3)
        for y in (0, height // 3)
    ]
    steps = only(tags=bool(seed % 4), prior=bool(seed % 3), add_box_classes_to_tags=bool(seed % 2))
    possible = possible_classes((height, width), 5, boxes, crops, THINGS, steps)
    assert possible.shape == (5, height, width) and possible.dtype == bool
    for class_id in range(5):
        everywhere = np.full((height, width), class_id, np.uint8)
        kept = clean_labels(
            everywhere, boxes=boxes, crop_tags=crops, thing_ids=THINGS, options=steps
        )
        np.testing.assert_array_equal(possible[class_id], kept.semantic == class_id)
