# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Submission files, read back by cityscapesscripts and by VOC's rules."""

import contextlib
import io
import json
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from PIL import Image

from wsis_d2.config import add_wsis_config
from wsis_d2.data.datasets.builtin.metadata import CITYSCAPES_CATEGORIES, VOC_CATEGORIES
from wsis_d2.evaluation import InstanceAP, Matcher, SemanticIoU, build_evaluator
from wsis_d2.evaluation.submission import voc_palette, write_submission
from wsis_d2.structures.classes import parse_categories
from wsis_d2.utils.cli import main_with_errors
from wsis_d2.utils.errors import InputError

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import make_submission

CITY = parse_categories(CITYSCAPES_CATEGORIES, "Cityscapes")


def write_predictions(folder: Path, categories: list[dict], images: dict[str, tuple]) -> Path:
    """Run the evaluator of a set without truth on a model's outputs.

    Args:
        images: file name to (panoptic ids with -1 for void, {id: unified class, score}, semantic).
    """
    name = "submission_test"
    if name in MetadataCatalog.list():
        MetadataCatalog.remove(name)
    MetadataCatalog.get(name).set(
        categories=categories, image_root=str(folder / "images"), evaluator_type="wsis_panoptic"
    )
    cfg = get_cfg()
    add_wsis_config(cfg)
    evaluator = build_evaluator(cfg, name, folder / "inference")
    evaluator.reset()
    for number, (file_name, (ids, segments, semantic)) in enumerate(images.items()):
        logits = torch.nn.functional.one_hot(torch.from_numpy(semantic), len(categories))
        record = {"image_id": number, "file_name": str(folder / "images" / file_name)}
        output = {"panoptic_seg": (torch.from_numpy(ids), segments),
                  "sem_seg": logits.permute(2, 0, 1).float()}  # fmt: skip
        evaluator.process([record], [output])
    assert evaluator.evaluate() == {}
    return folder / "inference"


def city_scene(rng: np.random.Generator, height: int = 96, width: int = 192) -> tuple:
    """Return (instanceIds picture as in gtFine, predicted instanceIds)."""
    truth = np.full((height, width), 7, np.int64)
    truth[:30] = 23
    truth[-8:] = 3
    for label in (24, 26, 33):
        for number in range(2):
            y, x = rng.integers(20, height - 40), rng.integers(0, width - 50)
            truth[y : y + rng.integers(12, 36), x : x + rng.integers(12, 48)] = (
                label * 1000 + number
            )
    truth[40:60, 5:30] = 26
    predicted = np.roll(truth, rng.integers(-4, 5, size=2), axis=(0, 1))
    return truth, np.where(predicted == 3, 7, predicted)


def city_predictions(tmp_path: Path, count: int = 3) -> tuple[Path, dict[str, tuple]]:
    rng = np.random.default_rng(0)
    images, truths = {}, {}
    for number in range(count):
        truth, predicted = city_scene(rng)
        ids, segments, semantic = np.zeros(truth.shape, np.int32), [], np.zeros(truth.shape, int)
        for k, value in enumerate(np.unique(predicted).tolist(), start=1):
            unified = CITY.contiguous[value // 1000 if value >= 1000 else value]
            ids[predicted == value] = k
            semantic[predicted == value] = unified
            score = round(float(rng.uniform(0.1, 1)), 4)
            segments.append({"id": k, "category_id": unified, "score": score})
        stem = f"bad-honnef_00000{number}_000019"
        images[f"bad-honnef/{stem}_leftImg8bit.png"] = (ids, segments, semantic)
        truths[stem] = (truth, ids, segments)
    return write_predictions(tmp_path, CITYSCAPES_CATEGORIES, images), truths


def write_ground_truth(folder: Path, truths: dict[str, tuple]) -> None:
    """Write gtFine's instanceIds and labelIds."""
    folder.mkdir(parents=True)
    for stem, (truth, *_) in truths.items():
        Image.fromarray(truth.astype(np.uint16)).save(folder / f"{stem}_gtFine_instanceIds.png")
        labels = np.where(truth >= 1000, truth // 1000, truth).astype(np.uint8)
        Image.fromarray(labels).save(folder / f"{stem}_gtFine_labelIds.png")


def ours(truths: dict[str, tuple]) -> tuple[SemanticIoU, InstanceAP]:
    """Return our own IoU and AP of the same predictions."""
    matcher, iou, precision = Matcher(CITY), SemanticIoU(CITY), InstanceAP(CITY, "cityscapes")
    for key, (truth, ids, segments) in enumerate(truths.values()):
        gt = np.where(truth == 3, 0, truth)
        gt_segments = []
        for value in np.unique(gt[gt > 0]).tolist():
            label = value // 1000 if value >= 1000 else value
            crowd = int(value < 1000 and CITY.isthing[CITY.contiguous[label]])
            gt_segments.append({"id": value, "category_id": label, "iscrowd": crowd})
        named = [{**s, "category_id": CITY.ids[s["category_id"]]} for s in segments]
        match = matcher(gt, gt_segments, ids, named, key=key)
        iou.update_match(match)
        precision.update(match)
    return iou, precision


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    pytest.importorskip("cityscapesscripts")
    monkeypatch.setenv("CITYSCAPES_DATASET", str(tmp_path))
    if not hasattr(np, "in1d"):  # NumPy 2.4 dropped the name the scripts use.
        monkeypatch.setattr(np, "in1d", np.isin, raising=False)
    monkeypatch.chdir(tmp_path)


def _ready(args, folder: Path) -> None:
    args.predictionPath, args.predictionWalk = str(folder), None
    args.quiet, args.JSONOutput = True, False


@pytest.mark.parametrize("source", ["semantic", "panoptic"])
def test_cityscapesscripts_reads_the_semantic_files(source, scripts, tmp_path) -> None:
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official

    predictions, truths = city_predictions(tmp_path)
    archive, count = write_submission(
        predictions, tmp_path / "out", "cityscapes-semantic", source=source
    )
    assert count == 3
    write_ground_truth(tmp_path / "gt", truths)
    _ready(official.args, tmp_path / "out")
    truth_files = sorted(map(str, (tmp_path / "gt").glob("*_labelIds.png")))
    found = [official.getPrediction(official.args, file) for file in truth_files]
    with contextlib.redirect_stdout(io.StringIO()), np.errstate(all="ignore"):
        result = official.evaluateImgLists(found, truth_files, official.args)
    per_class = 100 * np.array([result["classScores"][name] for name in CITY.names])
    np.testing.assert_allclose(ours(truths)[0].per_class(), per_class, rtol=1e-9)
    assert np.isfinite(per_class).sum() >= 5
    with zipfile.ZipFile(archive) as packed:
        assert packed.testzip() is None
        assert sorted(packed.namelist()) == [f"semantic/{stem}.png" for stem in sorted(truths)]


def test_cityscapesscripts_reads_the_instance_files(scripts, tmp_path, monkeypatch) -> None:
    from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as official

    predictions, truths = city_predictions(tmp_path)
    archive, count = write_submission(predictions, tmp_path / "out", "cityscapes-instance")
    write_ground_truth(tmp_path / "gt", truths)
    _ready(official.args, tmp_path / "out")
    official.args.gtInstancesFile = str(tmp_path / "cache.json")
    monkeypatch.setattr(official, "writeDict2JSON", lambda *_: None)
    truth_files = sorted(map(str, (tmp_path / "gt").glob("*_instanceIds.png")))
    found = [official.getPrediction(file, official.args) for file in truth_files]
    with contextlib.redirect_stdout(io.StringIO()), np.errstate(all="ignore"):
        result = official.evaluateImgLists(found, truth_files, official.args)
    order = [official.args.instLabels.index(n)
             for n in np.array(CITY.names)[CITY.thing_mask]]  # fmt: skip
    theirs = np.array(result["resultApMatrix"])[0][order]
    np.testing.assert_allclose(ours(truths)[1].per_class(), theirs, rtol=1e-9)
    assert np.nanmax(theirs) > 0
    with zipfile.ZipFile(archive) as packed:
        names = set(packed.namelist())
    lines = (tmp_path / "out/instance/bad-honnef_000000_000019.txt").read_text().splitlines()
    assert lines and all(f"instance/{line.split()[0]}" in names for line in lines)


def test_voc_files_are_indexed_pictures_in_vocs_colours(tmp_path) -> None:
    rng = np.random.default_rng(1)
    semantic = rng.integers(0, 21, size=(20, 30))
    ids = np.ones((20, 30), np.int32)
    ids[:, 10:] = 2
    ids[0, 0] = 0
    segments = [{"id": 1, "category_id": 0, "score": 1.0}, {"id": 2, "category_id": 15}]
    predictions = write_predictions(
        tmp_path, VOC_CATEGORIES, {"2008_000009.jpg": (ids, segments, semantic)}
    )
    archive, _ = write_submission(predictions, tmp_path / "out", "voc")
    inside = "results/VOC2012/Segmentation/comp6_test_cls/2008_000009.png"
    with tarfile.open(archive) as packed:
        assert packed.getnames() == [inside]
        picture = Image.open(io.BytesIO(packed.extractfile(inside).read()))
    assert picture.mode == "P"
    np.testing.assert_array_equal(np.array(picture), semantic)
    colors = np.array([c["color"] for c in VOC_CATEGORIES])
    np.testing.assert_array_equal(np.array(picture.convert("RGB")), colors[semantic])
    # From the segments: the pixel of no segment is background.
    write_submission(predictions, tmp_path / "union", "voc", source="panoptic")
    union = np.array(Image.open(tmp_path / "union" / inside))
    np.testing.assert_array_equal(union, np.where(ids == 2, 15, 0))
    assert voc_palette()[:6] == [0, 0, 0, 128, 0, 0] and len(voc_palette()) == 768
    assert voc_palette()[-3:] == [224, 224, 192]  # the colour of VOC's 255, void


def renamed(folder: Path) -> Path:
    """Give a prediction another set's file name."""
    png = next((folder / "semantic_pred").rglob("*.png"))
    png.rename(png.with_name("2008_000009.png"))
    return folder


FAULTS = {
    "nothing there": (lambda f: f / "none", "voc", [], "semantic_pred: no PNGs"),
    "no panoptic file": (lambda f: f / "none", "voc", ["--source", "panoptic"], "no such file"),
    "another set's classes": (lambda f: f, "voc", ["--source", "panoptic"], "19 categories"),
    "another set's class numbers": (lambda f: f, "voc", [], "semantic_pred.json: its 19 categor"),
    "another set's names": (lambda f: renamed(f), "cityscapes-semantic", [], "not named like"),
    "another score": (
        lambda f: f, "cityscapes-instance", ["--score-mode", "detection"], "lacks scores.detection",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_bad_input_is_named_in_one_line(name, tmp_path, capsys) -> None:
    where, server, more, words = FAULTS[name]
    predictions, _ = city_predictions(tmp_path, 1)
    argv = [server, "--predictions", str(where(predictions)), "--output", str(tmp_path / "o")]
    with pytest.raises(SystemExit) as end:
        main_with_errors(make_submission.main, [*argv, *more])
    assert end.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and words in lines[0]
    assert not list(tmp_path.glob("o.*"))


def test_damaged_or_stale_files_are_refused(tmp_path) -> None:
    predictions, truths = city_predictions(tmp_path, 2)
    write_submission(predictions, tmp_path / "out", "cityscapes-semantic")
    with pytest.raises(InputError, match="not empty"):
        write_submission(predictions, tmp_path / "out", "cityscapes-semantic")
    png = next((predictions / "semantic_pred").rglob("*.png"))
    Image.fromarray(np.full((96, 192), 77, np.uint8)).save(png)
    with pytest.raises(InputError, match="class number 77"):
        write_submission(predictions, tmp_path / "b", "cityscapes-semantic")
    data = json.loads((predictions / "panoptic_pred.json").read_text())
    data["annotations"][0]["segments_info"][0]["score"] = float("nan")
    (predictions / "panoptic_pred.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match="score nan"):
        write_submission(predictions, tmp_path / "c", "cityscapes-instance")


def test_the_tool_says_when_the_number_of_images_is_not_the_test_sets(tmp_path, capsys) -> None:
    predictions, _ = city_predictions(tmp_path, 1)
    make_submission.main(
        ["cityscapes-semantic", "--predictions", str(predictions), "--output", str(tmp_path / "o")]
    )
    out = capsys.readouterr().out
    assert "1 images; upload" in out and "1525" in out


def test_maps_of_an_earlier_evaluation_are_not_submitted(tmp_path, caplog) -> None:
    """The set had an image more when it was evaluated into the same folder before."""
    semantic = np.zeros((8, 8), np.int64)
    output = (np.full((8, 8), 1, np.int32), [{"id": 1, "category_id": 0, "isthing": False,
              "score": 1.0}], semantic)  # fmt: skip
    names = ["2008_000001.jpg", "2008_000002.jpg"]
    for count in (2, 1):
        folder = write_predictions(tmp_path, VOC_CATEGORIES, dict.fromkeys(names[:count], output))
    assert len(list((folder / "semantic_pred").glob("*.png"))) == 2
    _, images = write_submission(folder, tmp_path / "sent", "voc")
    assert images == 1
    assert [path.stem for path in (tmp_path / "sent").rglob("*.png")] == ["2008_000001"]
    assert "1 PNGs are not of the last evaluation and are left out" in caplog.text
    (tmp_path / "elsewhere").mkdir()
    for name in ("semantic_pred.json", "semantic_pred"):
        (folder / name).rename(tmp_path / "elsewhere" / name)
    (folder / "semantic_pred").symlink_to(tmp_path / "elsewhere/semantic_pred")
    assert write_submission(folder, tmp_path / "linked", "voc")[1] == 1
    (tmp_path / "elsewhere/semantic_pred.json").unlink()  # another program's folder
    assert write_submission(folder, tmp_path / "all", "voc")[1] == 2
