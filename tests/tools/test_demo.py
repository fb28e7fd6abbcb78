# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The demo on pictures, folders, globs and videos, with models that were not trained."""

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.load_tool import ROOT, load_tool

from wsis_d2.data.panoptic_format import PanopticFile
from wsis_d2.inference.media import find_media, picture_names
from wsis_d2.utils.errors import InputError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """OUTPUT_DIR of an instance model with random weights."""
    import torch
    from detectron2.modeling import build_model

    from wsis_d2.engine import load_cfg, write_metadata

    folder = tmp_path_factory.mktemp("run")
    cfg = load_cfg(
        str(ROOT / "configs" / "Sample-Panoptic" / "tiny_instance.yaml"),
        ["OUTPUT_DIR", str(folder), "MODEL.WSIS.DETECTION_SCORE_THRESH", "0.0",
         "MODEL.INSTANCE_HEAD.MIN_AREAS", "[0, 0]"],
    )  # fmt: skip
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    write_metadata(cfg)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (40, 60)), ("b.jpg", (33, 47)), ("c.png", (70, 31))):
        cv2.imwrite(str(folder / name), rng.integers(0, 255, (*size, 3), np.uint8))
    (folder / "notes.txt").write_text("no picture")
    writer = cv2.VideoWriter(
        str(folder / "film.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10.0, (48, 36)
    )
    for _ in range(3):
        writer.write(rng.integers(0, 255, (36, 48, 3), np.uint8))
    writer.release()
    return folder


def test_pictures_folders_globs_and_videos(run, pictures, tmp_path):
    output = tmp_path / "out"
    arguments = [
        "--model", str(run), "--input", str(pictures), str(pictures / "*.png"),
        "--output", str(output), "--device", "cpu", "--report", str(tmp_path / "page.html"),
    ]  # fmt: skip
    assert load_tool("demo").main(arguments) == 0
    file = PanopticFile(output / "panoptic.json", output / "panoptic")  # checks the format
    content = json.loads((output / "panoptic.json").read_text())
    found = [image["file_name"] for image in content["images"]]
    assert found == ["a", "b", "c", "film_000000", "film_000001", "film_000002"]
    for image in content["images"]:
        ids = file.ids(str(image["id"]))
        assert ids.shape == (image["height"], image["width"])
        segments = file.segments(str(image["id"]))
        # Every pixel is in exactly one segment, and areas and boxes are those of the PNG.
        assert sorted(np.unique(ids).tolist()) == sorted(s["id"] for s in segments)
        for segment in segments:
            mask = ids == segment["id"]
            x, y, w, h = segment["bbox"]
            assert mask.sum() == segment["area"] == mask[y : y + h, x : x + w].sum()
            assert 0 <= segment["score"] <= 1
    for name in ("a", "b", "c"):
        assert (output / "overlays" / f"{name}.png").is_file()
    video = cv2.VideoCapture(str(output / "overlays" / "film.mp4"))
    frames = 0
    while video.read()[0]:
        frames += 1
    assert frames == 3
    assert (tmp_path / "page.html").is_file()


def test_pictures_and_frames_in_batches(run, pictures, tmp_path, monkeypatch):
    """Of one size together; the result is that of each alone, and a bad one loses nothing else."""
    from wsis_d2.modeling.semantic import SemanticSubnetwork

    passes, logits = [], SemanticSubnetwork.logits

    def noting(self, images, *rest):
        passes.append(len(images))
        return logits(self, images, *rest)

    monkeypatch.setattr(SemanticSubnetwork, "logits", noting)
    folder = tmp_path / "pictures"
    folder.mkdir()
    image = cv2.imread(str(pictures / "a.png"))
    for name, own in (("a", image), ("b", image[::-1]), ("d", image[:30]), ("e", image[:, ::-1])):
        cv2.imwrite(str(folder / f"{name}.png"), own)
    (folder / "c.png").write_bytes(b"no picture")
    shutil.copy(pictures / "film.avi", folder)
    found = {}
    for batch in ("1", "3"):
        passes.clear()
        arguments = ["--model", str(run), "--input", str(folder), "--batch", batch]
        assert load_tool("demo").main([*arguments, "--output", str(tmp_path / batch)]) == 1
        assert sorted(passes) == ([1] * 7 if batch == "1" else [1, 1, 2, 3])
        found[batch] = PanopticFile(
            tmp_path / batch / "panoptic.json", tmp_path / batch / "panoptic"
        )
        names = [i["file_name"] for i in json.loads(
            (tmp_path / batch / "panoptic.json").read_text())["images"]]  # fmt: skip
        assert names == ["a", "b", "d", "e", "film_000000", "film_000001", "film_000002"]
    for number in range(1, 8):
        ids = [file.ids(str(number)) for file in found.values()]
        assert ids[0].shape == ids[1].shape and (ids[0] == ids[1]).mean() > 0.999


def test_names_do_not_collide_and_one_bad_picture_loses_nothing(run, pictures, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(pictures / "a.png", other / "a.png")
    (other / "broken.png").write_bytes((pictures / "a.png").read_bytes()[:200])
    output = tmp_path / "out"
    arguments = ["--model", str(run), "--input", str(other), str(pictures / "a.png")]
    assert load_tool("demo").main([*arguments, "--output", str(output)]) == 1
    found = json.loads((output / "panoptic.json").read_text())["images"]
    above = os.path.commonpath([other, pictures])  # which is which can be told
    names = [(folder / "a.png").relative_to(above).as_posix() for folder in (other, pictures)]
    assert [image["file_name"] for image in found] == names
    assert all((output / "overlays" / f"{name}.png").is_file() for name in names)
    assert "broken.png" in capsys.readouterr().err


def test_a_picture_that_is_named_twice_is_predicted_once(pictures, monkeypatch):
    monkeypatch.chdir(pictures)
    named = ["a.png", "./a.png", str(pictures / "a.png"), "../" + pictures.name + "/*.png"]
    assert find_media(named) == [Path("a.png"), Path("..", pictures.name, "c.png")]


@pytest.mark.parametrize("full_size", [False, True])
def test_large_pictures_are_given_back_in_their_own_size(run, full_size):
    """Network and CRF work at most at --max-side, the CRF on all pixels only where asked to."""
    from wsis_d2.inference.predictor import PanopticPredictor

    predictor = PanopticPredictor(str(run), "cpu", max_side=64, full_size=full_size)
    sizes, model = {}, predictor.model
    classify = model.semantic.probabilities

    def probabilities(images):
        (image,) = images
        sizes["network"] = tuple(image.shape[-2:])
        return classify(images)

    def note(head, inputs):
        sizes["crf"] = tuple(inputs[1].shape[-2:])

    model.semantic.probabilities = probabilities
    model.instance.register_forward_pre_hook(note)
    image = np.random.default_rng(0).integers(0, 255, (90, 200, 3), np.uint8)
    prediction = predictor(image)
    assert sizes == {"network": (29, 64), "crf": (90, 200) if full_size else (29, 64)}
    assert prediction.ids.shape == (90, 200) and prediction.ids.dtype == np.int32
    areas = {s["id"]: s["area"] for s in prediction.segments}
    ids, counts = np.unique(prediction.ids, return_counts=True)
    assert areas == dict(zip(ids.tolist(), counts.tolist(), strict=True))


def test_full_size_is_an_option_of_the_tool(run, pictures, tmp_path):
    found = {}
    for name, more in (("bounded", []), ("full", ["--full-size"]), ("unscaled", [])):
        side = "0" if name == "unscaled" else "16"
        arguments = ["--model", str(run), "--input", str(pictures / "a.png"), "--max-side", side]
        output = tmp_path / name
        assert load_tool("demo").main([*arguments, "--output", str(output), *more]) == 0
        found[name] = PanopticFile(output / "panoptic.json", output / "panoptic").ids("1")
    assert {ids.shape for ids in found.values()} == {(40, 60)}
    assert (found["bounded"] != found["full"]).any()


def test_without_data_or_download(run, tmp_path, monkeypatch):
    monkeypatch.setenv("WSIS_D2_OFFLINE", "1")
    assert (
        load_tool("demo").main(["--model", str(run), "--sample", "1", "--output", str(tmp_path)])
        == 0
    )
    assert cv2.imread(str(tmp_path / "overlays" / "sample_0000.png")) is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--input"),
        (["--input", "nothing.png"], "nothing.png"),
        (["--input", "no*.png"], "matches no"),
        (["--sample", "1", "--model", "./nowhere"], "nowhere"),
        (["--sample", "1", "--model", "No-Such/model"], "not? .*released"),
        (["--sample", "1", "--score-threshold", "2"], "--score-threshold"),
        (["--sample", "1", "--max-side", "-1"], "--max-side"),
        (["--sample", "1", "--batch", "0"], "--batch"),
    ],
)
def test_bad_arguments_are_named(arguments, message, tmp_path):
    with pytest.raises(InputError, match=message):
        load_tool("demo").main([*arguments, "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_what_a_picture_is_called_tells_it_from_others():
    paths = [Path(p) for p in ("x/a.jpg", "x/a.png", "x/a_2.jpg", "x/d1/b.jpg", "x/d2/b.jpg")]
    names = ["a.jpg", "a.png", "a_2", "d1/b.jpg", "d2/b.jpg"]
    assert picture_names(paths) == dict(zip(paths, names, strict=True))


def test_files_that_are_no_pictures_are_told(tmp_path, caplog):
    for name in ("a.jpg", "b.HEIC", "c.heic", "notes.txt", "._a.jpg"):
        (tmp_path / name).touch()
    assert find_media([str(tmp_path)]) == [tmp_path / "a.jpg"]
    assert "left out what is neither picture nor video here: 2 .heic, 1 .txt" in caplog.text
