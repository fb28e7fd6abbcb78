# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The demo's own model of photographs, as a newcomer meets it: no model, data or training named."""

import json

import numpy as np
import pytest
from helpers.load_tool import load_tool
from helpers.shared_data import shared_data
from PIL import Image

from wsis_d2.utils.errors import InputError


def predict(tmp_path, *pictures):
    arguments = ["--input", *map(str, pictures), "--output", str(tmp_path / "out")]
    assert load_tool("demo").main([*arguments, "--device", "cpu"]) == 0
    content = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    names = {c["id"]: c["name"] for c in content["categories"]}
    return content, names, tmp_path / "out" / "panoptic"


def test_photographs_need_no_model(tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    content, names, _ = predict(tmp_path, tmp_path / "a.png")
    assert set(names.values()) == {"cat", "dog", "horse", "cow", "sheep", "person", "background"}
    assert sum(s["area"] for s in content["annotations"][0]["segments_info"]) == 60 * 80


def test_scenes_and_photographs_together_need_a_model(tmp_path):
    with pytest.raises(InputError, match="name one with --model"):
        load_tool("demo").main(["--input", "a.png", "--sample", "1", "--output", str(tmp_path)])


def test_it_finds_animals_that_it_never_saw(tmp_path):
    data = shared_data("voc_animals")
    truth = json.loads((data / "panoptic_val.json").read_text())
    chosen = truth["annotations"][::49]
    names = {c["id"]: c["name"] for c in truth["categories"]}
    files = {i["id"]: i["file_name"] for i in truth["images"]}
    content, found_names, folder = predict(
        tmp_path, *(data / "images" / files[a["image_id"]] for a in chosen)
    )
    right = known = 0
    for annotation, own in zip(chosen, content["annotations"], strict=True):
        maps = []
        for entry, place, classes in (
            (annotation, data / "panoptic_val", names),
            (own, folder, found_names),
        ):
            pixels = np.asarray(Image.open(place / entry["file_name"]).convert("RGB"))
            ids = pixels.astype(int) @ [1, 256, 65536]
            labels = np.full(ids.shape, "", dtype="<U10")
            for segment in entry["segments_info"]:
                labels[ids == segment["id"]] = classes[segment["category_id"]]
            maps.append(labels)
        right += np.count_nonzero((maps[0] == maps[1]) & (maps[0] != ""))
        known += np.count_nonzero(maps[0] != "")
    assert right / known > 0.85
