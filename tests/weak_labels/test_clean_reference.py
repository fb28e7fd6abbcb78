# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Label cleaning against a slow literal reference, pixel by pixel."""

import numpy as np
import pytest

from wsis_d2.weak_labels.clean import Box, CleanOptions, clean_labels

I = 255


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
            if box_mask_map[p] in things:
                now[p] = int(box_mask_map[p])
            elif now[p] in things:
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
