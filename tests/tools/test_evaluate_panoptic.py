# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""tools/evaluate_panoptic.py: results, and one clear line for every kind of bad input."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "evaluate_panoptic.py"
sys.path.insert(0, str(ROOT / "tools"))
sys.path.insert(0, str(ROOT / "tests" / "evaluation"))

import evaluate_panoptic  # noqa: E402
from helpers.panoptic_scenes import random_image, write_files  # noqa: E402

from wsis_d2.utils.cli import main_with_errors  # noqa: E402


@pytest.fixture
def files(tmp_path: Path) -> dict:
    rng = np.random.default_rng(3)
    return write_files(tmp_path, [random_image(rng) for _ in range(3)])


def arguments(files: dict, *more: str) -> list[str]:
    result = ["--workers", "1"]
    for name, path in files.items():
        result += ["--" + name.replace("_", "-"), str(path)]
    return [*result, *more]


def run(argv: list[str]) -> int:
    with pytest.raises(SystemExit) as end:
        main_with_errors(evaluate_panoptic.main, argv)
    return end.value.code


def test_writes_the_contracts_file(files, tmp_path, capsys) -> None:
    out = tmp_path / "out" / "results.json"
    argv = arguments(files, "--output", str(out), "--name", "weak", "--supervision", "weak",
                     "--apr-thresholds", "0.5:0.95:0.05", "--dataset", "scenes")  # fmt: skip
    assert run(argv) == 0
    data = json.loads(out.read_text())
    weak = data["runs"]["weak"]
    assert weak["meta"]["dataset"] == "scenes" and weak["meta"]["supervision"] == "weak"
    for task, keys in (
        ("panoptic_seg", ["PQ", "SQ", "DQ", "PQ_th", "PQ_st", "SQ_th", "DQ_st"]),
        ("apr", ["APr_vol", "APr_50", "APr_95", "APr_vol_th", "APr_95_st"]),
        ("sem_seg", ["mIoU", "IoU-car", "IoU-sky"]),
    ):
        assert set(keys) <= set(weak[task])
    text = capsys.readouterr().out
    assert "copypaste: panoptic_seg: PQ,SQ,DQ,PQ_th" in text
    assert f"{weak['panoptic_seg']['PQ']:.2f}" in text
    # A second run goes beside the first.
    assert run(arguments(files, "--output", str(out), "--name", "full")) == 0
    assert set(json.loads(out.read_text())["runs"]) == {"weak", "full"}


def test_perfect_prediction_is_100(files, tmp_path, capsys) -> None:
    data = json.loads(files["gt_json"].read_text())
    for annotation in data["annotations"]:
        for segment in annotation["segments_info"]:
            segment["iscrowd"] = 0
    files["gt_json"].write_text(json.dumps(data))
    files = {**files, "pred_json": files["gt_json"], "pred_dir": files["gt_dir"]}
    out = tmp_path / "results.json"
    assert run(arguments(files, "--output", str(out))) == 0
    found = json.loads(out.read_text())["runs"]["run"]
    for task, key in (("panoptic_seg", "PQ"), ("apr", "APr_vol"), ("sem_seg", "mIoU")):
        assert found[task][key] == 100.0


def edit(path: Path, change) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def first(data: dict) -> dict:
    return data["annotations"][0]["segments_info"][0]


def repaint(files: dict, change) -> None:
    path = files["pred_dir"] / "0.png"
    Image.fromarray(change(np.array(Image.open(path)))).save(path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def paint(picture: np.ndarray) -> np.ndarray:
    picture[0, 0] = (1, 2, 3)
    return picture


def pred_json(change):
    return lambda files: edit(files["pred_json"], change)


# What is done to good files, and what the one line must name.
FAULTS = {
    "json missing": (lambda f: f["pred_json"].unlink(), ["pred.json", "no such file"]),
    "json truncated": (lambda f: truncate(f["pred_json"]), ["pred.json", "no valid JSON"]),
    "json a list": (lambda f: f["pred_json"].write_text("[]"), ["pred.json", "'annotations'"]),
    "json binary": (lambda f: f["gt_json"].write_bytes(b"\x89PNG\xff"), ["gt.json", "JSON"]),
    "folder missing": (lambda f: f.update(gt_dir=f["gt_dir"] / "no"), ["gt/no", "no such folder"]),
    "no categories": (
        lambda f: edit(f["gt_json"], lambda d: d.pop("categories")), ["gt.json", "categories"],
    ),
    "png missing": (lambda f: (f["pred_dir"] / "1.png").unlink(), ["pred/1.png", "no such file"]),
    "png truncated": (lambda f: truncate(f["gt_dir"] / "1.png"), ["gt/1.png", "cannot be read"]),
    "png is text": (
        lambda f: (f["gt_dir"] / "1.png").write_text("hello"), ["gt/1.png", "cannot be read"],
    ),
    "png gray": (lambda f: repaint(f, lambda p: p[..., 0]), ["pred/0.png", "mode L"]),
    "png of another size": (
        lambda f: repaint(f, lambda p: p[:-3]), ["pred/0.png", "21 x 32", "24 x 32"],
    ),
    "unlisted id": (lambda f: repaint(f, paint), ["pred/0.png", "segment id 197121"]),
    "listed id without pixel": (
        pred_json(lambda d: d["annotations"][0]["segments_info"].append(
            {"id": 5, "category_id": 7})), ["pred/0.png", "segment id 5", "no pixel"],
    ),
    "NaN score": (
        pred_json(lambda d: first(d).update(score=float("nan"))), ["pred/0.png", "score nan"],
    ),
    "text score": (
        pred_json(lambda d: first(d).update(score="high")), ["pred/0.png", "score 'high'"],
    ),
    "infinite other score": (
        pred_json(lambda d: first(d)["scores"].update(detection=float("inf"))),
        ["pred/0.png", "scores.detection inf"],
    ),
    "unknown category": (
        pred_json(lambda d: first(d).update(category_id=99)), ["pred.json", "category_id 99"],
    ),
    "segment id twice": (
        pred_json(lambda d: d["annotations"][0]["segments_info"].append(first(d))),
        ["pred.json", "given twice"],
    ),
    "segment id a text": (pred_json(lambda d: first(d).update(id="7")), ["pred.json", "'id'"]),
    "image predicted twice": (
        pred_json(lambda d: d["annotations"].append(d["annotations"][0])),
        ["pred.json", "image_id 100", "two annotations"],
    ),
    "image unknown": (
        pred_json(lambda d: d["annotations"][0].update(image_id=5)), ["pred.json", "image_id 5"],
    ),
    "image not predicted": (
        pred_json(lambda d: d["annotations"].pop()),
        ["pred.json", "image_id 102", "--allow-missing"],
    ),
    "path leaves the folder": (
        pred_json(lambda d: d["annotations"][0].update(file_name="../gt/0.png")),
        ["pred.json", "leaves the folder"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_bad_input_gives_one_line_that_names_it(name, files, tmp_path, capsys) -> None:
    damage, words = FAULTS[name]
    damage(files)
    out = tmp_path / "results.json"
    assert run(arguments(files, "--output", str(out))) == 2
    lines = [x for x in capsys.readouterr().err.splitlines() if x]
    assert len(lines) == 1 and lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]
    assert not out.exists()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_fault_in_a_worker_ends_the_tool_the_same_way(workers, tmp_path, capsys) -> None:
    rng = np.random.default_rng(4)
    files = write_files(tmp_path, [random_image(rng, 12, 16) for _ in range(40)])
    truncate(files["pred_dir"] / "30.png")
    assert run([*arguments(files)[2:], "--workers", workers]) == 2
    assert "pred/30.png: cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("more, words", [
    (["--apr-thresholds", "0.9:0.1:0.1"], ["0.9:0.1:0.1", "A:B:STEP"]),
    (["--workers", "-1"], ["workers -1"]),
    (["--semantic-dir", "nowhere"], ["nowhere/0.png", "no such file"]),
])  # fmt: skip
def test_bad_options_are_named(more, words, files, capsys) -> None:
    assert run([*arguments(files)[2:], *more]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words)


def test_score_mode_that_the_file_lacks_is_named(files, capsys) -> None:
    edit(files["pred_json"], lambda d: first(d).pop("scores"))
    assert run(arguments(files, "--score-mode", "mean_confidence")) == 2
    assert "score mode 'mean_confidence'" in capsys.readouterr().err


def test_missing_images_and_scores_may_be_allowed(files, tmp_path, caplog) -> None:
    def change(data: dict) -> None:
        data["annotations"].pop()
        first(data).pop("score")

    edit(files["pred_json"], change)
    out = tmp_path / "results.json"
    assert run(arguments(files, "--allow-missing", "--output", str(out))) == 0
    assert out.exists()
    assert "1 images have no prediction" in caplog.text
    assert "1 segments have no 'score'" in caplog.text


def test_as_a_command(files) -> None:
    done = subprocess.run(
        [sys.executable, str(TOOL), "-h"], capture_output=True, text=True, check=True
    )
    assert "examples:" in done.stdout and "--score-mode" in done.stdout
