# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Verdicts of a review, applied to a label store."""

import json

import numpy as np
import pytest
from helpers.load_tool import load_tool

from wsis_d2.utils.errors import InputError
from wsis_d2.weak_labels.review import read_review
from wsis_d2.weak_labels.store import LabelStore

CATEGORIES = [{"id": 1, "name": "cow", "isthing": 1}]
RECORDS = [
    {"image_id": i, "file_name": f"{i}.png", "height": 4, "width": 5, "annotations": []}
    for i in (1, 2, "c")
]


@pytest.fixture
def store(tmp_path):
    made = LabelStore.create(tmp_path / "store", {"made": "by hand"}, CATEGORIES)
    for record in RECORDS:
        semantic = np.zeros((4, 5), np.uint8)
        instance = np.ones((4, 5), np.int32)
        made.write(record, semantic, instance, [{"id": 1, "category_id": 0}], {"boxes": 1})
    made.finish()
    return made


def write(path, recipe, **verdicts):
    images = [{"image_id": int(k[1:]) if k[1:].isdigit() else k[1:], "verdict": v}
              for k, v in verdicts.items()]  # fmt: skip
    path.write_text(json.dumps({"kind": "wsis_d2 review", "recipe": recipe, "images": images}))
    return str(path)


def review(path, store, *options):
    tool = load_tool("make_weak_labels")
    return tool.main(["review", "--review", path, "--output", str(store.path), *options])


def test_refused_images_become_ignore_and_may_come_back(store, tmp_path):
    path = write(tmp_path / "r.json", store.recipe_hash, i1="refuse", i2="accept", ic="full")
    assert review(path, store, "--dry-run") == 0
    assert (LabelStore.open(store.path).semantic(1) == 0).all()
    assert review(path, store) == 0
    after = LabelStore.open(store.path)
    assert (after.semantic(1) == 255).all() and (after.instance(1)[0] == -1).all()
    assert after.instance(1)[1] == [] and after.counters(1)["refused"] == 1
    assert after.done(1, RECORDS[0])  # so no run makes it again
    for kept in (2, "c"):
        assert (after.semantic(kept) == 0).all() and "refused" not in after.counters(kept)
    panoptic = json.loads((store.path / "panoptic.json").read_text())["annotations"]
    assert {a["image_id"]: len(a["segments_info"]) for a in panoptic} == {1: 0, 2: 1, "c": 1}
    path = write(tmp_path / "s.json", store.recipe_hash, i1="accept", i2="refuse")
    assert review(path, store) == 0
    after = LabelStore.open(store.path)
    assert not after.done(1) and (after.semantic(2) == 255).all()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"kind": "other"}, "no review"),
        ({"kind": "wsis_d2 review", "images": [{"image_id": 1, "verdict": "x"}]}, "accept"),
        ({"kind": "wsis_d2 review", "images": [{"verdict": "full"}]}, "image_id"),
        (
            {"kind": "wsis_d2 review", "images": [{"verdict": "full", "image_id": "a" * 300}]},
            "image_id",
        ),
        ({"kind": "wsis_d2 review", "images": [{"image_id": 1, "verdict": "full"}] * 2}, "twice"),
    ],
)
def test_what_is_no_review_is_named(tmp_path, content, expected):
    (tmp_path / "r.json").write_text(json.dumps(content))
    with pytest.raises(InputError) as error:
        read_review(tmp_path / "r.json")
    assert expected in str(error.value) and "r.json" in str(error.value)


def test_a_review_of_other_labels_is_refused(store, tmp_path):
    with pytest.raises(InputError, match="recipe"):
        review(write(tmp_path / "r.json", "0" * 64, i1="refuse"), store)
    with pytest.raises(InputError, match="9"):
        review(write(tmp_path / "r.json", store.recipe_hash, i9="refuse"), store)


def test_a_review_of_another_data_set_of_the_recipe_is_refused(store, tmp_path):
    path = tmp_path / "r.json"
    write(path, store.recipe_hash, i1="refuse", i2="accept")
    content = json.loads(path.read_text())
    for entry, name in zip(content["images"], ("1.png", "other.png"), strict=True):
        entry["name"] = name
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"image 2 is other\.png, in .* it is 2\.png"):
        review(str(path), store)
    assert (LabelStore.open(store.path).semantic(1) == 0).all()
    content["images"][1]["name"] = "2.png"
    path.write_text(json.dumps(content))
    assert review(str(path), store) == 0
