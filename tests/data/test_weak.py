# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The own-data format: what is loaded, and that each kind of bad record is named."""

import copy
import json

import pytest
from detectron2.structures import BoxMode

from wsis_d2.data.datasets.own.weak import (
    WEAK_ANNOTATION_FIELDS,
    WEAK_RECORD_FIELDS,
    load_weak_json,
)
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.json_io import read_json

GOOD = {
    "images": [
        {"id": 7, "file_name": "a.jpg", "height": 40, "width": 60, "image_tags": [30, 5],
         "crop_tags": [{"box": [0, 0, 30, 40], "tags": [30]},
                       {"box": [30, 0, 30, 40], "tags": []}]},
        {"id": "b", "file_name": "sub/b.jpg", "height": 10, "width": 20},
    ],
    "categories": [
        {"id": 30, "name": "sky", "isthing": 0},
        {"id": 5, "name": "cow", "isthing": 1, "color": [1, 2, 3]},
        {"id": 9, "name": "dog", "isthing": 1},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 9, "bbox": [2.5, 3, 10, 20], "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 5, "bbox": [-0.6, -1, 61, 41.5], "iscrowd": 1},
        {"id": 3, "image_id": "b", "category_id": 5, "bbox": [0, 0, 20, 10]},
    ],
}  # fmt: skip


@pytest.fixture
def root(tmp_path):
    (tmp_path / "images" / "sub").mkdir(parents=True)
    (tmp_path / "images" / "a.jpg").write_bytes(b"x")
    (tmp_path / "images" / "sub" / "b.jpg").write_bytes(b"x")
    return tmp_path


def load(root, content, **options):
    text = content if isinstance(content, str) else json.dumps(content)
    (root / "weak.json").write_text(text)
    return load_weak_json(root / "weak.json", root / "images", **options)


def test_good_file(root):
    first, second = load(root, GOOD)
    assert set(first) == WEAK_RECORD_FIELDS - {"points", "scribbles", "unboxed"}
    assert first["file_name"] == str(root / "images" / "a.jpg") and first["image_id"] == 7
    # sorted by category id: cow 0, dog 1, sky 2
    assert first["image_tags"] == [0, 2] and first["supervision"] == "weak"
    assert first["crop_tags"][0] == {"box": [0.0, 0.0, 30.0, 40.0], "tags": [2]}
    assert first["annotations"][0] == {
        "id": 1, "bbox": [2.5, 3.0, 12.5, 23.0], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1,
        "iscrowd": 0,
    }  # fmt: skip
    assert first["annotations"][1]["bbox"] == [0.0, 0.0, 60.0, 40.0]  # clipped, within a pixel
    assert first["annotations"][1]["iscrowd"] == 1
    assert second["image_tags"] == [] and "crop_tags" not in second
    unmarked = WEAK_ANNOTATION_FIELDS - {"id", "points", "scribbles"}
    assert all(set(a) - {"id"} == unmarked for r in (first, second) for a in r["annotations"])


def test_unknown_fields_never_reach_a_record(root):
    """Whatever a file holds beside the format, masks under any name included, is left behind."""
    content = copy.deepcopy(GOOD)
    for entry in content["images"] + content["annotations"]:
        entry.update(mask="m.png", sem_seg_file_name="s.png", pan_seg_file_name="p.png", rle="abc")
        entry.update(segments_info=[{"id": 1}], attributes={"occluded": False})
    content["annotations"][0]["segmentation"] = []  # what some tools write for "no mask"
    assert load(root, content) == load(root, GOOD)


def test_tags_of_crops_are_tags_of_the_image(root):
    content = copy.deepcopy(GOOD)
    content["images"][0]["image_tags"] = []
    assert load(root, content)[0]["image_tags"] == [2]


def image(**changes):
    return lambda c: c["images"][0].update(changes)


def box(**changes):
    return lambda c: c["annotations"][0].update(changes)


def category(**changes):
    return lambda c: c["categories"][0].update(changes)


def crop(**changes):
    return lambda c: c["images"][0]["crop_tags"][0].update(changes)


def drop(section, key):
    return lambda c: c[section][0].pop(key)


BAD = {
    "box outside": (box(bbox=[50, 3, 12, 5]), r"annotations\[0\] \(id 1\).*outside.*60 x 40"),
    "box negative": (box(bbox=[-1.5, 3, 12, 5]), "outside"),
    "box no width": (box(bbox=[5, 3, 0, 5]), "without area"),
    "box inverted": (box(bbox=[5, 3, -4, 5]), "without area"),
    "box in the margin": (box(bbox=[60.2, 3, 0.5, 5]), "nothing of it"),
    "box NaN": (box(bbox=[float("nan"), 3, 4, 5]), "NaN"),
    "box infinite": (box(bbox=[1, 3, float("inf"), 5]), "infinity"),
    "box huge": (box(bbox=[1, 3, 10**400, 5]), r"expected \[x, y"),
    "box short": (box(bbox=[1, 3, 4]), r"expected \[x, y"),
    "box text": (box(bbox=["1", 3, 4, 5]), r"expected \[x, y"),
    "box true": (box(bbox=[True, 3, 4, 5]), r"expected \[x, y"),
    "box missing": (drop("annotations", "bbox"), "null"),
    "unknown class": (box(category_id=4), r"unknown class.*5 cow, 9 dog"),
    "class of stuff": (box(category_id=30), "image_tags"),
    "class float": (box(category_id=5.0), "integer"),
    "class list": (box(category_id=[5]), "integer"),
    "annotation id twice": (box(id=2), r"\(id 2\).*twice"),
    "annotation id list": (box(id=[2]), "integer"),
    "annotation of no image": (box(image_id=8), "image_id 8 is no image"),
    "image id of another type": (box(image_id="7"), "is no image"),
    "annotation no object": (lambda c: c["annotations"].insert(0, 3), "expected an object"),
    "crowd": (box(iscrowd="yes"), "iscrowd"),
    "a mask": (box(segmentation=[[1, 2, 3, 4, 5, 6]]), "weak annotation holds no mask"),
    "image id twice": (image(id="b"), "used twice"),
    "image id twice as text": (lambda c: c["images"][1].update(id="7"), "used twice"),
    "image id twice as a file": (lambda c: c["images"][1].update(id="000000000007"), "used twice"),
    "image file twice": (image(file_name="sub/b.jpg"), "keep one entry"),
    "image id missing": (drop("images", "id"), "id is missing"),
    "image id true": (image(id=True), "integer or a name"),
    "missing file": (image(file_name="c.jpg"), r"image id 7: no file .*c\.jpg"),
    "file name missing": (drop("images", "file_name"), "relative path"),
    "file name NUL": (image(file_name="a\0.jpg"), "relative path"),
    "leaves the root": (image(file_name="../a.jpg"), "leaves the image root"),
    "leaves inside": (image(file_name="sub/../../a.jpg"), "leaves the image root"),
    "absolute": (image(file_name="/etc/passwd"), "leaves the image root"),
    "backslashes": (image(file_name="..\\a.jpg"), "leaves the image root"),
    "drive": (image(file_name="C:\\a.jpg"), "leaves the image root"),
    "the root itself": (image(file_name="."), "leaves the image root"),
    "height zero": (image(height=0), "height"),
    "width huge": (image(width=10**9), "width"),
    "width NaN": (image(width=float("nan")), "width"),
    "width missing": (drop("images", "width"), "width is missing"),
    "height text": (image(height="40"), "height"),
    "tags no list": (image(image_tags=30), "expected a list"),
    "tag unknown": (image(image_tags=[31]), "31, no category"),
    "tag text": (image(image_tags=["sky"]), "no category"),
    "tag list": (image(image_tags=[[30]]), "no category"),
    "tag true": (image(image_tags=[True]), "no category"),
    "crop tags no list": (image(crop_tags={}), "expected a list"),
    "crop no object": (image(crop_tags=[1]), "crop_tags"),
    "crop outside": (crop(box=[40, 0, 30, 40]), r"crop_tags\[0\]\.box.*outside"),
    "crop tag unknown": (crop(tags=[1]), r"crop_tags\[0\]\.tags"),
    "crop without tags": (lambda c: c["images"][0]["crop_tags"][0].pop("tags"), "missing"),
    "supervision unknown": (image(supervision="strong"), '"weak" or "full"'),
    "supervision full": (image(supervision="full"), 'supervision="mixed"'),
    "image no object": (lambda c: c["images"].insert(0, []), "expected an object"),
    "no images": (lambda c: c.update(images=[]), "empty"),
    "images missing": (lambda c: c.pop("images"), '"images" is missing'),
    "annotations no list": (lambda c: c.update(annotations={}), '"annotations"'),
    "no categories": (lambda c: c.update(categories=[]), "at least one class"),
    "isthing missing": (drop("categories", "isthing"), "isthing is missing"),
    "isthing text": (category(isthing="no"), "isthing"),
    "category id twice": (category(id=5), "used twice"),
    "category name twice": (category(name="cow"), "used twice"),
    "category name empty": (category(name=" "), "expected a word"),
    "category id text": (category(id="30"), "integer"),
    "category color": (category(color=[0, 0, 256]), "color"),
    "category no object": (lambda c: c["categories"].insert(0, "sky"), "expected an object"),
    "too many classes": (
        lambda c: c.update(
            categories=[{"id": i, "name": str(i), "isthing": 0} for i in range(256)]
        ),
        "at most 255",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_records_are_named(root, case):
    change, expected = BAD[case]
    content = copy.deepcopy(GOOD)
    change(content)
    with pytest.raises(InputError, match=expected) as error:
        load(root, content)
    message = str(error.value)
    assert message.startswith(str(root / "weak.json")) and "\n" not in message
    assert len(message) < 500


def test_boxes_of_0_to_1_are_no_pixels(root):
    content = copy.deepcopy(GOOD)
    for annotation in content["annotations"]:
        annotation["bbox"] = [0.25, 0.5, 0.25, 0.5]
    with pytest.raises(InputError, match=r"weak\.json: all 3 boxes lie within 0 to 1"):
        load(root, content)
    content["annotations"][0]["bbox"] = [0.25, 0.5, 9, 9]  # a small box among others is one
    assert load(root, content)


@pytest.mark.parametrize(
    "text", ["", "{", '{"images": [{"id": 1,', "[" * 100000, "\x00\x01", "null", "[]", "3"]
)
def test_broken_files_are_named(root, text):
    with pytest.raises(InputError, match=r"weak\.json"):
        load(root, text)


def test_unreadable_paths_are_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.json: no such file"):
        read_json(tmp_path / "none.json")
    with pytest.raises(InputError, match=str(tmp_path)):
        read_json(tmp_path)
    (tmp_path / "latin.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(InputError, match=r"latin\.json"):
        read_json(tmp_path / "latin.json")


def test_many_annotations(root):
    """100 000 annotations load; a bad one among them is still named by its number."""
    content = copy.deepcopy(GOOD)
    content["annotations"] = [
        {"id": k, "image_id": 7, "category_id": 5, "bbox": [k % 50, 0, 5, 5]} for k in range(100000)
    ]
    assert len(load(root, content)[0]["annotations"]) == 100000
    content["annotations"][99999]["bbox"][2] = 0
    with pytest.raises(InputError, match=r"annotations\[99999\]"):
        load(root, content)
