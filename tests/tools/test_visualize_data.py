# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Every source is drawn, at the asked size, and what is missing is named."""

import json

import cv2
import pytest
from helpers.load_tool import load_tool
from helpers.tiny_panoptic import renumber

from wsis_d2.utils.errors import InputError


def data_arguments(tiny, split):
    return [
        "--annotations", str(tiny.data / f"weak_{split}.json"),
        "--images", str(tiny.data / "images" / split),
    ]  # fmt: skip


def truth_arguments(tiny, split):
    return [
        "--gt-json", str(tiny.data / f"panoptic_{split}.json"),
        "--gt-dir", str(tiny.data / f"panoptic_{split}"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "split", "panels"),
    [("annotation", "train", 2), ("pseudo", "train", 4), ("prediction", "val", 4),
     ("proposal", "train", 7)],
)  # fmt: skip
def test_every_source_is_drawn(tiny, tmp_path, source, split, panels):
    arguments = ["--source", source, *data_arguments(tiny, split), "--limit", "2"]
    if source in ("pseudo", "prediction"):
        arguments += truth_arguments(tiny, split)
        arguments += ["--store", str(tiny.store), "--run", str(tiny.run)]
    load_tool("visualize_data").main([*arguments, "--output", str(tmp_path), "--height", "128"])
    files = sorted(tmp_path.glob(f"*_{source}.png"))
    assert len(files) == 2
    picture = cv2.imread(str(files[0]))
    # Scenes are 128 x 160; panels stand beside each other, 6 pixels apart, 28 for their names.
    assert picture.shape[:2] == (128 + 28, panels * 160 + (panels - 1) * 6)
    first, second = picture[28:, :160], picture[28:, 166:326]
    assert (first != second).any()


@pytest.mark.parametrize(("source", "split"), [("pseudo", "train"), ("prediction", "val")])
def test_classes_are_drawn_by_name(tiny, tmp_path, source, split):
    """The same picture of own data that numbers its classes the other way round."""
    weak = tiny.data / f"weak_{split}.json"
    names = [c["name"] for c in json.loads(weak.read_text())["categories"]]
    other = renumber(weak, tmp_path / "other.json", {n: 99 - k for k, n in enumerate(names)})
    for file in (weak, other):
        load_tool("visualize_data").main(
            ["--source", source, "--annotations", str(file), "--images",
             str(tiny.data / "images" / split), *truth_arguments(tiny, split), "--limit", "1",
             "--store", str(tiny.store), "--run", str(tiny.run),
             "--output", str(tmp_path / file.stem), "--height", "128"]
        )  # fmt: skip
    one, two = (cv2.imread(str(next((tmp_path / f.stem).iterdir()))) for f in (weak, other))
    # The panels after image and annotation, whose captions follow the order of the ids.
    assert one.shape == two.shape and (one[:, 332:] == two[:, 332:]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "pseudo"], "--store"),
        (["--source", "prediction"], "--run"),
        (["--source", "prediction", "--run", "nowhere"], "nowhere"),
        (["--source", "dataloader"], "--config-file"),
        (["--source", "annotation", "--limit", "-1"], "--limit"),
    ],
)
def test_what_is_missing_is_named(tiny, tmp_path, arguments, message):
    arguments = [*arguments, *data_arguments(tiny, "train"), "--output", str(tmp_path / "out")]
    with pytest.raises(InputError, match=message):
        load_tool("visualize_data").main(arguments)
    assert not (tmp_path / "out").exists()


def test_labels_and_predictions_of_other_pictures_are_refused(tiny, tmp_path):
    """The images of a larger folder, numbered anew; sizes are all the same."""
    for source, split, message in (("pseudo", "train", "is stale|another picture"),
                                   ("prediction", "val", "whose id in")):  # fmt: skip
        content = json.loads((tiny.data / f"weak_{split}.json").read_text())
        names = [image["file_name"] for image in content["images"]]
        for image, name in zip(content["images"], [*names[1:], names[0]], strict=True):
            image["file_name"] = name
        (tmp_path / "shifted.json").write_text(json.dumps(content))
        arguments = ["--annotations", str(tmp_path / "shifted.json"), "--images",
                     str(tiny.data / "images" / split), "--store", str(tiny.store),
                     "--run", str(tiny.run), "--output", str(tmp_path / "out")]  # fmt: skip
        with pytest.raises(InputError, match=message):
            load_tool("visualize_data").main(["--source", source, *arguments])
