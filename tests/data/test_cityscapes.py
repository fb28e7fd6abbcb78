# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Cityscapes: against cityscapesscripts' own conversion, annotation order, groups, crops, extra."""

import json
from itertools import pairwise

import numpy as np
import pytest
from helpers.official_trees import (
    assert_round_trip,
    cityscapes_ids,
    make_cityscapes,
    panoptic_pairs,
    run_prepare,
)
from PIL import Image

from wsis_d2.data.datasets.builtin import cityscapes
from wsis_d2.data.datasets.builtin.metadata import CITYSCAPES_CATEGORIES
from wsis_d2.data.datasets.builtin.segments import crop_starts
from wsis_d2.utils.errors import InputError


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("cityscapes")
    make_cityscapes(root)
    prepare(root)
    return root


def prepare(root, *arguments):
    run_prepare("prepare_cityscapes", "--root", root, "--workers", 1, "--allow-partial", *arguments)


def weak(root, split):
    return json.loads((root / "wsis_cityscapes" / f"weak_{split}.json").read_text())


def test_categories_are_those_of_cityscapesscripts():
    from cityscapesscripts.helpers.labels import labels

    known = sorted((label for label in labels if 0 <= label.trainId < 255), key=lambda x: x.trainId)
    ours = [(c["name"], c["id"], c["isthing"], tuple(c["color"])) for c in CITYSCAPES_CATEGORIES]
    assert ours == [(x.name, x.id, int(x.hasInstances), x.color) for x in known]


@pytest.mark.parametrize("split, count", [("train", 2), ("val", 1)])
def test_fine_truth_equals_cityscapesscripts(tree, tmp_path, split, count):
    from cityscapesscripts.preparation.createPanopticImgs import convert2panoptic

    convert2panoptic(str(tree / "cityscapes" / "gtFine"), str(tmp_path), setNames=[split])
    content = json.loads((tmp_path / f"cityscapes_panoptic_{split}.json").read_text())
    ours = panoptic_pairs(tree / "wsis_cityscapes", split, f"panoptic_{split}")
    assert len(content["annotations"]) == len(ours) == count
    for annotation in content["annotations"]:
        path = tmp_path / f"cityscapes_panoptic_{split}" / annotation["file_name"]
        rgb = np.asarray(Image.open(path)).astype(int)
        ids, segments = ours[annotation["image_id"]]
        assert (ids == rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]).all()
        assert segments == {
            s["id"]: {key: s[key] for key in ("id", "category_id", "iscrowd", "area", "bbox")}
            for s in annotation["segments_info"]
        }


def test_boxes_in_the_order_of_instance_ids(tree):
    boxes = weak(tree, "val")["annotations"]
    assert [(b["category_id"], b["iscrowd"], b["bbox"]) for b in boxes] == [
        (24, 1, [50, 30, 10, 10]),  # the group first
        (26, 0, [20, 41, 13, 9]),  # 26000
        (26, 0, [10, 41, 10, 9]),  # 26001
        (33, 0, [70, 52, 10, 8]),
    ]


def test_tags_name_stuff_alone(tree):
    image = weak(tree, "val")["images"][0]
    assert image["image_tags"] == [7, 21, 23]
    assert image["crop_tags"] == [{"box": [0, 0, 96, 64], "tags": [7, 21, 23]}]


def test_crops_of_a_full_image():
    assert crop_starts(2048, 500) == [0, 387, 774, 1161, 1548]
    assert crop_starts(1024, 400) == [0, 312, 624]
    assert crop_starts(300, 400) == [0]
    for length in range(1, 400, 7):
        starts = crop_starts(length, 50)
        assert all(b - a <= 50 for a, b in pairwise(starts))
        assert starts[-1] + 50 <= max(length, 50) and length - starts[-1] - 50 < len(starts)


def test_crop_tags_are_those_of_the_crop(tmp_path):
    make_cityscapes(tmp_path)
    prepare(tmp_path, "--crop", 40, 50, "--splits", "val")
    image = weak(tmp_path, "val")["images"][0]
    ids = cityscapes_ids()
    assert [crop["box"] for crop in image["crop_tags"]] == [
        [0, 0, 50, 40], [0, 24, 50, 40], [46, 0, 50, 40], [46, 24, 50, 40],
    ]  # fmt: skip
    for crop in image["crop_tags"]:
        x, y, w, h = crop["box"]
        window = ids[y : y + h, x : x + w]
        assert crop["tags"] == [label for label in (7, 21, 23) if (window == label).any()]


def test_extra_has_the_boxes_and_tags_of_its_coarse_polygons(tree):
    content = weak(tree, "extra")
    first = [b for b in content["annotations"] if b["image_id"] == content["images"][0]["id"]]
    assert [(b["category_id"], b["iscrowd"], b["bbox"]) for b in first] == [
        (24, 1, [50, 30, 10, 10]), (26, 0, [20, 41, 13, 9]), (26, 0, [10, 41, 10, 9]),
        (33, 0, [70, 52, 10, 8]),
    ]  # fmt: skip
    assert len(content["images"]) == 2
    assert content["images"][0]["image_tags"] == [7, 21, 23]
    truth = panoptic_pairs(tree / "wsis_cityscapes", "extra", "panoptic_extra")
    for ids, segments in truth.values():
        assert sorted(segments) == [7, 21, 23, 24, 26, 33]
        assert {k: s["iscrowd"] for k, s in segments.items()} == {
            7: 0, 21: 0, 23: 0, 24: 1, 26: 1, 33: 1,
        }  # fmt: skip
        assert (ids == 26).sum() == 9 * 23


def test_test_split_has_images_alone(tree):
    content = weak(tree, "test")
    assert [image["file_name"] for image in content["images"]] == [
        "berlin/berlin_000000_000010_leftImg8bit.png"
    ]
    assert not (tree / "wsis_cityscapes" / "panoptic_test.json").exists()


@pytest.mark.parametrize("split", ["train", "val", "extra"])
def test_round_trip_gives_pq_100(tree, split):
    assert_round_trip(tree / "wsis_cityscapes", split, f"panoptic_{split}", least_classes=3)


def test_check_and_errors(tmp_path):
    make_cityscapes(tmp_path)
    with pytest.raises(InputError, match="Cityscapes val: found 1 images, .* gives 500"):
        run_prepare("prepare_cityscapes", "--root", tmp_path, "--splits", "val")
    path = next((tmp_path / "cityscapes" / "gtFine" / "val").rglob("*_instanceIds.png"))
    good = path.read_bytes()
    path.unlink()
    with pytest.raises(InputError, match="_gtFine_instanceIds.png: missing"):
        prepare(tmp_path, "--splits", "val")
    Image.fromarray(np.full((64, 96), 7001, np.uint16)).save(path)
    with pytest.raises(InputError, match="value 7001 is no instance id of Cityscapes"):
        prepare(tmp_path, "--splits", "val")
    path.write_bytes(good)
    prepare(tmp_path, "--splits", "val")
    prepare(tmp_path, "--splits", "val", "--check")
    (tmp_path / "wsis_cityscapes" / "weak_val.json").write_text("{}")
    with pytest.raises(InputError, match="weak_val.json: its SHA-256.*--splits val --force"):
        prepare(tmp_path, "--splits", "val", "--check")
    with pytest.raises(InputError, match="manifest_train.json: missing.*--splits train"):
        prepare(tmp_path, "--splits", "train", "--check")


def test_the_official_variable_is_named_where_it_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setenv("CITYSCAPES_DATASET", str(tmp_path / "official"))
    with pytest.raises(InputError, match=r"CITYSCAPES_DATASET=.*official is not read here: ln -s"):
        cityscapes.list_images(tmp_path / "cityscapes", "train")
    monkeypatch.setenv("CITYSCAPES_DATASET", str(tmp_path / "cityscapes"))
    with pytest.raises(InputError) as error:
        cityscapes.list_images(tmp_path / "cityscapes", "train")
    assert "CITYSCAPES_DATASET" not in str(error.value)
