# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Overlays show what the maps hold: colours, ignore, borders, boxes; safe styles are distinct."""

import numpy as np
import pytest

from wsis_d2.report.charts import bar_chart, format_number, line_chart, nice_ticks
from wsis_d2.visualization.palette import class_list, pattern_mask, safe_style
from wsis_d2.visualization.visualizer import (
    LABEL_ALPHA,
    blend,
    draw_annotation,
    draw_labels,
    segment_map,
)

CLASSES = class_list(
    [
        {"id": 10, "name": "sky", "isthing": 0, "color": [10, 20, 200]},
        {"id": 2, "name": "cow", "isthing": 1, "color": [200, 30, 10]},
    ]
)


def test_class_list_is_in_unified_order():
    assert [c["name"] for c in CLASSES] == ["cow", "sky"]
    assert [c["isthing"] for c in CLASSES] == [True, False]


def test_label_colours_ignore_and_instance_borders():
    semantic = np.full((40, 60), 1, np.uint8)
    semantic[10:30, 10:50] = 0
    semantic[:, :4] = 255
    instance = np.zeros((40, 60), np.int32)
    instance[10:30, 10:30] = 1
    instance[10:30, 30:50] = 2
    drawn = draw_labels(semantic, instance, classes=CLASSES, names=False, scale=1)
    assert tuple(drawn[35, 20]) == (10, 20, 200, LABEL_ALPHA)
    assert tuple(drawn[20, 20]) == (200, 30, 10, LABEL_ALPHA)
    # Two touching cows are told apart by a border, ignored pixels are grey.
    assert tuple(drawn[20, 30, :3]) == (255, 255, 255)
    assert tuple(draw_labels(semantic, classes=CLASSES, names=False, scale=1)[20, 30, :3]) == (
        200, 30, 10,
    )  # fmt: skip
    grey = drawn[:, :3].reshape(-1, 4)
    assert (grey[:, 0] == grey[:, 1]).all() and len(np.unique(grey[:, 3])) == 2
    assert draw_labels(semantic, classes=CLASSES).shape[0] > 40  # small maps are drawn enlarged


def test_segment_map_by_hand():
    semantic = np.array([[0, 0, 1, 255]], np.uint8)
    instance = np.array([[5, 6, 0, 7]], np.int32)
    found = segment_map(semantic, instance)[0].tolist()
    assert found[0] == 5 and found[1] == 6 and found[3] == -1
    assert found[2] not in (5, 6, -1)


def test_safe_styles_differ_and_show_in_grey_too():
    styles = [safe_style(i) for i in range(48)]
    assert len(set(styles)) == 48
    # Classes that share a colour differ in pattern, and patterns differ in their pixels.
    masks = {p: pattern_mask(p, 24, 24).tobytes() for _, p in styles}
    assert len(set(masks.values())) == len(masks)
    semantic = np.zeros((32, 32), np.uint8)
    semantic[:, 16:] = 8  # shares the colour of 0 in the safe palette
    many = class_list([{"id": i, "name": str(i), "isthing": 0} for i in range(9)])
    drawn = draw_labels(semantic, classes=many, palette="safe", names=False, scale=1)
    assert len(np.unique(drawn[:, 1:14, 0])) == 1 < len(np.unique(drawn[:, 18:, 0]))


def test_boxes_are_where_they_were_annotated():
    drawn = draw_annotation(50, 80, [[10, 5, 40, 30]], [0], classes=CLASSES, scale=1)
    red = (drawn[..., :3] == (200, 30, 10)).all(-1)
    y, x = np.nonzero(red)
    assert (x.min(), y.min(), x.max(), y.max()) == (10, 5, 39, 29)
    assert drawn[45, 70, 3] == 0


def test_points_and_scribbles_are_where_they_were_put():
    marks = [(0, [[20.0, 25.0]]), (1, [[40.0, 10.0], [70.0, 10.0]])]
    drawn = draw_annotation(50, 80, [], [], classes=CLASSES, marks=marks, scale=1)
    assert tuple(drawn[25, 20, :3]) == (200, 30, 10)
    assert all(tuple(drawn[10, x, :3]) == (10, 20, 200) for x in range(41, 70))
    assert drawn[35, 20, 3] == drawn[10, 35, 3] == drawn[25, 50, 3] == 0


def test_blend_by_hand():
    image = np.full((2, 2, 3), 100, np.uint8)
    overlay = np.zeros((2, 2, 4), np.uint8)
    overlay[0, 0] = (200, 0, 0, 255)
    overlay[1, 1] = (200, 0, 0, 51)  # a fifth
    out = blend(image, overlay)
    assert out[0, 0].tolist() == [200, 0, 0] and out[0, 1].tolist() == [100, 100, 100]
    assert out[1, 1].tolist() == [120, 80, 80]


def test_label_maps_of_different_size_are_refused():
    with pytest.raises(ValueError, match="one size"):
        draw_labels(np.zeros((4, 4), np.uint8), np.zeros((4, 5), np.int32), classes=CLASSES)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 97.1), (5, 5), (0, 1e-9), (1e6, 3e6)])
def test_ticks_cover_and_are_few(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 9
    assert ticks == sorted(set(ticks))


def test_charts_hold_every_value_and_survive_none():
    nan = float("nan")
    svg = bar_chart(["a<b", "c"], [{"name": "IoU", "values": [12.5, nan]}], title="t&t")
    assert "12.5" in svg and "–" in svg and "a&lt;b" in svg and "nan" not in svg
    assert "no finite values" in bar_chart(["a"], [{"name": "x", "values": [nan]}], title="t")
    series = [{"name": "loss", "x": [0, 1, 2], "y": [3.0, nan, 1.0]}]
    svg = line_chart(series, title="loss")
    assert "from 3 to 1" in svg and "nan" not in svg
    assert "no finite values" in line_chart([{"name": "x", "x": [], "y": []}], title="t")
    assert 'role="img"' in line_chart([{"name": "x", "x": [4], "y": [4]}], title="one point")


def test_numbers_are_short():
    assert [format_number(v) for v in (0.12345, 12.345, 1234567.0, 100.0, 0.0)] == [
        "0.123", "12.3", "1.2e+06", "100", "0",
    ]  # fmt: skip
