# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""COCO's images with VOC classes: choice, boxes, drawing order, crowds, both years' layouts."""

import json

import numpy as np
import pytest
from helpers.official_trees import assert_round_trip, make_coco, panoptic_pairs, run_prepare

from wsis_d2.data.datasets.builtin import coco
from wsis_d2.data.datasets.builtin.metadata import VOC_CATEGORIES
from wsis_d2.utils.errors import InputError


@pytest.fixture(params=["2014", "2017"])
def year(request):
    return request.param


@pytest.fixture
def folder(tmp_path, year):
    make_coco(tmp_path, year)
    prepare(tmp_path, year)
    return tmp_path / f"wsis_coco_{year}_vocclasses"


def prepare(root, year, *arguments):
    partial = ("--root", root, "--year", year, "--workers", 1, "--allow-partial")
    run_prepare("prepare_coco", *partial, *arguments)


def test_images_with_a_voc_class(folder, year):
    names = {}
    for split in ("train", "val", "trainval"):
        content = json.loads((folder / f"weak_{split}.json").read_text())
        names[split] = [image["file_name"] for image in content["images"]]
    start = {"2014": "COCO_{}2014_", "2017": ""}[year]
    train = f"train{year}/{start.format('train')}000000000009.jpg"
    val = f"val{year}/{start.format('val')}000000000042.jpg"
    assert names == {"train": [train], "val": [val], "trainval": [train, val]}


def test_boxes_are_the_released_ones(folder):
    content = json.loads((folder / "weak_trainval.json").read_text())
    boxes = [(a["category_id"], a["iscrowd"], a["bbox"]) for a in content["annotations"]]
    assert boxes == [
        (18, 0, [5.0, 10.0, 30.0, 20.0]),
        (8, 0, [10.0, 12.0, 10.0, 10.0]),
        (15, 1, [40.0, 0.0, 10.0, 10.0]),
        (20, 0, [4.5, 4.5, 26.0, 34.5]),
    ]
    assert "segment" not in (folder / "weak_trainval.json").read_text()


def test_smaller_objects_lie_on_top(folder):
    ids, segments = panoptic_pairs(folder, "train", "panoptic")[9]
    classes = np.zeros(ids.shape, int)
    for i, segment in segments.items():
        classes[ids == i] = segment["category_id"]
    expected = np.zeros((40, 50), int)
    expected[0:10, 40:50] = 15
    expected[10:30, 5:35] = 18
    expected[12:22, 10:20] = 8
    assert (classes == expected).all()  # the cup is background
    assert {s["category_id"]: s["iscrowd"] for s in segments.values()} == {0: 0, 8: 0, 15: 1, 18: 0}


@pytest.mark.parametrize("split", ["train", "val", "trainval"])
def test_round_trip_gives_pq_100(folder, split):
    assert_round_trip(folder, split, "panoptic", least_classes=2)


def test_min_area_raises_the_bar(tmp_path):
    make_coco(tmp_path, "2017")
    jobs, total = coco.make_jobs(tmp_path / "coco", "2017", "train", min_area=600)
    assert (jobs, total) == ([], 2)


def test_changed_annotations_are_converted_again(tmp_path):
    """The pictures stay as they are, of which the journal keeps size and time."""
    make_coco(tmp_path, "2017")
    prepare(tmp_path, "2017")
    path = tmp_path / "coco/annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    assert content["annotations"][1]["category_id"] == 17
    content["annotations"][1]["category_id"] = 18  # the cat is a dog
    path.write_text(json.dumps(content))
    prepare(tmp_path, "2017")
    folder = tmp_path / "wsis_coco_2017_vocclasses"
    weak = json.loads((folder / "weak_train.json").read_text())
    assert [a["category_id"] for a in weak["annotations"]] == [18, 12, 15]
    segments = panoptic_pairs(folder, "train", "panoptic")[9][1]
    assert {s["category_id"] for s in segments.values()} == {0, 12, 15, 18}


def test_every_voc_class_has_its_coco_name():
    from helpers.official_trees import coco_category_table

    names = {c["id"]: c["name"] for c in coco_category_table()}
    to_voc = coco.voc_category_ids(coco_category_table(), "x")
    assert sorted(to_voc.values()) == list(range(1, 21)) and len(to_voc) == 20
    voc = {c["id"]: c["name"] for c in VOC_CATEGORIES}
    same = {names[i]: voc[j] for i, j in to_voc.items() if names[i] != voc[j]}
    assert same == {
        "airplane": "aeroplane", "motorcycle": "motorbike", "couch": "sofa",
        "potted plant": "pottedplant", "dining table": "diningtable", "tv": "tvmonitor",
    }  # fmt: skip
    with pytest.raises(InputError, match="category 'tv' missing"):
        coco.voc_category_ids([c for c in coco_category_table() if c["name"] != "tv"], "x")


def test_errors(tmp_path):
    with pytest.raises(InputError, match="instances_train2014.json: missing; unpack annotations_"):
        prepare(tmp_path, "2014")
    make_coco(tmp_path, "2014")
    with pytest.raises(InputError, match="COCO 2014 train: found 2 images, .* gives 82783"):
        run_prepare("prepare_coco", "--root", tmp_path)
    (tmp_path / "coco" / "val2014" / "COCO_val2014_000000000042.jpg").unlink()
    with pytest.raises(
        InputError, match="COCO_val2014_000000000042.jpg: .*unpack the official archive"
    ):
        prepare(tmp_path, "2014")


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("categories", {"name": None}, "category 'person' missing"),
        ("categories", {"name": ["person"]}, "not an instance file of COCO"),
        ("annotations", {"bbox": None}, "not an instance file of COCO .*NoneType"),
        ("annotations", {"bbox": [1, 2, 3]}, "annotation [0-9]+: bbox or area"),
        ("annotations", {"bbox": [1, 2, 3, float("nan")]}, "annotation [0-9]+: bbox or area"),
        ("annotations", {"bbox": [1, 2, 3, 10**400]}, "not an instance file of COCO .*Overflow"),
        ("annotations", {"segmentation": [[0, 0, 1e9, 0, 1e9, 1e9]]}, "far outside"),
        ("annotations", {"segmentation": [[1, 1, 5, 5, 1]]}, "half a point"),
        ("annotations", {"segmentation": []}, "half a point"),
        ("images", {"file_name": "../../secret.jpg"}, "image [0-9]+: file_name, height or width"),
        ("images", {"height": 10**9}, "image [0-9]+: file_name, height or width"),
        ("images", {"height": 1}, "pixels, its annotation says [0-9]+ x 1;"),
    ],
    ids=range(12),
)
def test_a_broken_instance_file_is_named(tmp_path, section, change, message):
    make_coco(tmp_path, "2014")
    path = tmp_path / "coco" / "annotations" / "instances_val2014.json"
    content = json.loads(path.read_text())
    for entry in content[section]:
        if section != "categories" or entry["name"] == "person":
            entry.update(change)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        prepare(tmp_path, "2014")


def test_parts_of_two_points_draw_nothing():
    square = [1, 1, 8, 1, 8, 8, 1, 8]
    drawn = coco.decode([square, [2, 2, 3, 3]], 10, 12, "x")
    assert np.array_equal(drawn, coco.decode([square], 10, 12, "x")) and drawn.sum() == 49
    assert not coco.decode([[2, 2, 3, 3]], 10, 12, "x").any()
