# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Points and scribbles from other tools' files, and the checks of the own-data format."""

import json

import numpy as np
import pytest
from helpers.load_tool import load_tool
from PIL import Image

from wsis_d2.data.datasets.own.weak import load_weak_json
from wsis_d2.structures.annotation import record_marks
from wsis_d2.utils.errors import InputError

WIDTH, HEIGHT = 40, 30
IMAGE = {"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}
CLASSES = [{"id": 1, "name": "cow", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}]
BOX = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 20, 20]}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images" / "a.png")
    return tmp_path


def run(root, kind, annotations, *options):
    tool = load_tool("import_annotations")
    images, output = str(root / "images"), str(root / "weak.json")
    tool.main([kind, "--annotations", str(annotations), "--images", images,
               "--output", output, "--force", *options])  # fmt: skip
    return json.loads((root / "weak.json").read_text()), load_weak_json(output, images)[0]


def test_labelme_points_and_lines(root):
    (root / "json").mkdir()

    def shape(label, kind, points, group=None):
        return {"label": label, "shape_type": kind, "points": points, "group_id": group}

    shapes = [
        shape("cow", "rectangle", [[2, 2], [20, 20]], 1),
        shape("cow", "point", [[30, 25]], 1),  # of the box, though outside
        shape("cow", "rectangle", [[10, 2], [28, 20]]),
        shape("cow", "linestrip", [[3, 3], [5, 9]]),  # in one box alone
        shape("cow", "point", [[15, 10]]),  # in both
        shape("cow", "point", [[35, 28]]),  # in none: an object
        shape("cow", "linestrip", [[33, 2], [33, 8]], 7),
        shape("cow", "point", [[36, 5]], 7),  # one object without a box
        shape("grass", "line", [[1, 29], [20, 29]]),
    ]
    (root / "json" / "a.json").write_text(
        json.dumps({"shapes": shapes, "imagePath": "a.png", "imageWidth": WIDTH,
                    "imageHeight": HEIGHT})
    )  # fmt: skip
    content, record = run(root, "labelme", root / "json")
    ids = {c["name"]: c["id"] for c in content["categories"]}
    isthing = {c["name"]: c["isthing"] for c in content["categories"]}
    assert isthing == {"cow": 1, "grass": 0}
    boxes = [a for a in content["annotations"] if "bbox" in a]
    assert boxes[0]["points"] == [[30, 25]] and boxes[0]["scribbles"] == [[[3, 3], [5, 9]]]
    assert not {"points", "scribbles"} & boxes[1].keys()
    bare = [a for a in content["annotations"] if "bbox" not in a]
    assert sorted((a.get("points"), a.get("scribbles")) for a in bare) == [
        ([[35, 28]], None), ([[36, 5]], [[[33, 2], [33, 8]]]),
    ]  # fmt: skip
    image = content["images"][0]
    assert image["points"] == [{"category_id": ids["cow"], "xy": [15, 10]}]
    assert image["scribbles"] == [{"category_id": ids["grass"], "xy": [[1, 29], [20, 29]]}]
    assert len(record["unboxed"]) == 2 and record["image_tags"] == [0, 1]


def test_points_alone_are_objects_of_what_is_named_a_thing(root):
    (root / "json").mkdir()
    shapes = [{"label": n, "shape_type": "point", "points": [[x, 5]]}
              for n, x in (("cow", 3), ("cow", 9), ("sky", 30))]  # fmt: skip
    (root / "json" / "a.json").write_text(json.dumps({"shapes": shapes, "imagePath": "a.png"}))
    content, record = run(root, "labelme", root / "json", "--things", "cow")
    assert [a.get("points") for a in content["annotations"]] == [[[3, 5]], [[9, 5]]]
    assert record["annotations"] == [] and len(record["points"]) == 1


def test_coco_key_points_that_are_seen(root):
    annotation = {"id": 5, "image_id": 1, "category_id": 1, "bbox": [2, 2, 20, 20],
                  "keypoints": [4, 5, 2, 0, 0, 0, 7, 8, 1, 9, 10, 2]}  # fmt: skip
    path = root / "coco.json"
    path.write_text(json.dumps({
        "images": [{"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}],
        "categories": [{"id": 1, "name": "person"}], "annotations": [annotation],
    }))  # fmt: skip
    content, record = run(root, "coco", path)
    assert content["annotations"][0]["points"] == [[4, 5], [9, 10]]
    assert record["annotations"][0]["points"] == [[4, 5, 1], [9, 10, 1]]


def test_own_data_marks_survive_the_import(root):
    path = root / "own.json"
    own = {
        "images": [{**IMAGE, "points": [{"category_id": 2, "xy": [1, 2]}]}],
        "categories": CLASSES,
        "annotations": [
            {**BOX, "points": [[3, 3, 0]]},
            {"id": 2, "image_id": 1, "category_id": 1, "scribbles": [[[30, 5], [35, 9]]]},
        ],
    }  # fmt: skip
    path.write_text(json.dumps(own))
    content, record = run(root, "coco", path)
    assert content["annotations"][0]["points"] == [[3, 3, 0]]
    assert content["annotations"][1]["scribbles"] == [[[30, 5], [35, 9]]]
    assert content["images"][0]["points"] == own["images"][0]["points"]
    assert record["unboxed"][0]["scribbles"] == [[[30, 5], [35, 9]]]


@pytest.mark.parametrize("objects", [False, True])
def test_png_scribbles_come_back_pixel_by_pixel(root, objects):
    (root / "png").mkdir()
    values = np.full((HEIGHT, WIDTH), 255, np.uint8)
    values[3, 2:12] = 0
    values[5:20, 30], values[7, 31] = 1, 1
    values[25, 5:9] = 1
    Image.fromarray(values).save(root / "png" / "a.png")
    (root / "names.txt").write_text("sky\ncow\n")
    options = ["--classes", str(root / "names.txt"), "--things", "cow"]
    options += ["--strokes-as-objects"] if objects else []
    content, record = run(root, "scribbles", root / "png", *options)
    marks = record_marks(record)
    names = {
        c["name"]: k for k, c in enumerate(sorted(content["categories"], key=lambda c: c["id"]))
    }
    expected = np.full((HEIGHT, WIDTH), 255)
    expected[values == 0], expected[values == 1] = names["sky"], names["cow"]
    np.testing.assert_array_equal(marks.classes, expected)
    owners = {int(marks.owners[y, x]) for y, x in ((6, 30), (7, 31), (25, 6))}
    assert owners == ({0, 1} if objects else {-1})
    assert len(record.get("unboxed", ())) == (2 if objects else 0)


@pytest.mark.parametrize("named", [True, False])
def test_yolo_scribbles_have_the_numbers_of_its_class_list(named, root, capsys):
    (root / "txt").mkdir()
    (root / "txt" / "a.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    classes = root / ("names.txt" if named else "classes.txt")
    classes.write_text("sky\ncow\n")
    (root / "png").mkdir()
    values = np.full((HEIGHT, WIDTH), 255, np.uint8)
    values[1, 2:12], values[15, 18:22] = 0, 1
    Image.fromarray(values).save(root / "png" / "a.png")
    options = ["--classes", str(classes)] if named else []
    content, _ = run(root, "yolo", root / "txt", "--scribbles", str(root / "png"), *options)
    assert f"YOLO classes read from: {classes} (" in capsys.readouterr().out
    ids = {c["name"]: c["id"] for c in content["categories"]}
    assert content["images"][0]["scribbles"] == [
        {"category_id": ids["sky"], "xy": [[2.5, 1.5], [11.5, 1.5]]},
        {"category_id": ids["cow"], "xy": [[18.5, 15.5], [21.5, 15.5]]},
    ]
    assert [a["category_id"] for a in content["annotations"]] == [ids["cow"]]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"images": {"points": [{"category_id": 9, "xy": [1, 2]}]}}, "points[0]"),
        ({"images": {"points": [{"category_id": 2, "xy": [1, 99]}]}}, "outside its image"),
        ({"annotations": {"points": [[1, 2, 5]]}}, "expected 0 or 1"),
        ({"annotations": {"points": [["a", 2]]}}, "expected [x, y]"),
        ({"annotations": {"scribbles": [[]]}}, "scribbles[0]"),
        ({"annotations": {"scribbles": [[[0, y], [40, y]] for y in range(30)]}}, "makes a mask"),
        ({"annotations": {"bbox": None, "points": [[1, 2, 0]]}}, "bbox"),
    ],
)
def test_bad_marks_are_named(root, change, expected):
    own = {"images": [dict(IMAGE)], "categories": CLASSES, "annotations": [dict(BOX)]}
    for key, fields in change.items():
        own[key][0].update(fields)
    (root / "own.json").write_text(json.dumps(own))
    with pytest.raises(InputError) as error:
        load_weak_json(root / "own.json", root / "images")
    assert expected in str(error.value) and "own.json" in str(error.value)
