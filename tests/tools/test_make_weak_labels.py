# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The boxes subcommand and evaluate_labels from the command line's view."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
from helpers.load_tool import ROOT, load_tool
from PIL import Image

from wsis_d2.utils.errors import InputError
from wsis_d2.weak_labels.store import LabelStore

CATEGORIES = [{"id": 5, "name": "disc", "isthing": 1}, {"id": 6, "name": "ground", "isthing": 0}]


@pytest.fixture
def own(tmp_path):
    """Three images with a disc each, one of them damaged."""
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    y, x = np.mgrid[:48, :64]
    for k in range(3):
        disc = (x - 30 - k) ** 2 + (y - 24) ** 2 < 144
        image = np.where(disc[..., None], (30, 40, 200), (60, 150, 70)).astype(np.uint8)
        cv2.imwrite(str(tmp_path / "images" / f"{k}.png"), image)
        images.append({"id": k, "file_name": f"{k}.png", "height": 48, "width": 64})
        box = [18 + k, 12, 25, 25]
        annotations.append({"id": k, "image_id": k, "category_id": 5, "bbox": box})
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (tmp_path / "a.json").write_text(json.dumps(content))
    return tmp_path


def call(own, *more, output="store", command="boxes"):
    return load_tool("make_weak_labels").main(
        [command, "--annotations", str(own / "a.json"), "--images", str(own / "images"),
         "--output", str(own / output), "--workers", "1", *more]
    )  # fmt: skip


def test_boxes_of_own_data(own):
    assert call(own, "--dry-run") == 0 and not (own / "store").exists()
    assert call(own, "--limit", "1") == 0
    assert LabelStore.open(own / "store").image_ids() == [0]
    assert call(own) == 0
    store = LabelStore.open(own / "store")
    y, x = np.mgrid[:48, :64]
    for k in range(3):
        disc = (x - 30 - k) ** 2 + (y - 24) ** 2 < 144
        found = store.semantic(k) == 0
        assert (found & disc).sum() / (found | disc).sum() > 0.85
    assert store.manifest["summary"]["counters"]["boxes"] == 3
    with pytest.raises(InputError, match="--force"):
        call(own, "--masks", "box")
    assert call(own, "--masks", "box", "--force") == 0
    assert (LabelStore.open(own / "store").semantic(0) == 0).sum() == 625


def test_one_stuff_class_outside_all_boxes(own, capsys):
    """Own data with one stuff class: what no box holds is that class, where one says so."""
    outside = np.ones((48, 64), bool)
    outside[12:37, 18:43] = False  # the box of image 0
    assert call(own, "--masks", "box", output="ignored") == 0
    said = capsys.readouterr().err
    assert "pixels outside all boxes stay ignore" in said
    assert "--outside-boxes NAME labels them (of ground)" in said
    assert (LabelStore.open(own / "ignored").semantic(0)[outside] == 255).all()
    assert call(own, "--masks", "box", "--outside-boxes", "ground") == 0
    said = capsys.readouterr().err
    assert 'pixels outside all boxes become "ground"' in said and "outside_boxes: ground" in said
    semantic = LabelStore.open(own / "store").semantic(0)
    assert (semantic[outside] == 1).all() and (semantic[~outside] == 0).all()
    with pytest.raises(InputError, match="--force"):  # other labels, so another store
        call(own, "--masks", "box")
    for name, expected in (("disc", "no stuff class"), ("sky", "expected one of ground")):
        with pytest.raises(InputError, match=expected):
            call(own, "--outside-boxes", name, output="other")
    with pytest.raises(InputError, match="is for --annotations; .* in DATASETS.OWN"):
        load_tool("make_weak_labels").main(
            ["boxes", "--dataset", "sample_train_weak", "--output", str(own / "other"),
             "--outside-boxes", "ground"]
        )  # fmt: skip
    assert not (own / "other").exists()


@pytest.mark.long
def test_same_bytes_whatever_the_number_of_workers(own):
    for workers in ("1", "2", "3"):
        assert call(own, "--workers", workers, output=workers) == 0
    files = {
        workers: {
            p.relative_to(own / workers): p.read_bytes()
            for part in ("semantic", "panoptic", "status")
            for p in (own / workers / part).iterdir()
        }
        for workers in ("1", "2", "3")
    }
    assert len(files["1"]) == 9 and files["1"] == files["2"] == files["3"]


def test_a_damaged_image_is_named_and_the_status_says_so(own, caplog):
    (own / "images" / "1.png").write_bytes(b"\x89PNG damaged")
    with caplog.at_level("ERROR"):
        assert call(own, "--masks", "grabcut") == 1
    store = LabelStore.open(own / "store")
    assert list(store.failed) == [1] and "1.png" in store.failed[1]
    assert store.image_ids() == [0, 2]


def test_key_value_pairs_and_wrong_ones(own):
    assert call(own, "--masks", "grabcut", "WEAK_LABELS.GRABCUT.SEED_RADIUS", "0.5") == 0
    assert LabelStore.open(own / "store").recipe["grabcut"]["seed_radius"] == 0.5
    with pytest.raises(InputError, match="WEAK_LABELS.GRABCUT.INIT"):
        call(own, "WEAK_LABELS.GRABCUT.INIT", "circle", output="other")
    with pytest.raises(InputError, match="config"):
        call(own, "WEAK_LABELS.NOTHING", "1", output="other")
    assert not (own / "other").exists()


def test_what_to_label_must_be_clear(own):
    tool = load_tool("make_weak_labels")
    with pytest.raises(InputError, match="--dataset NAME or --annotations"):
        tool.main(["boxes", "--output", str(own / "s")])
    with pytest.raises(InputError, match="belong together"):
        tool.main(["boxes", "--annotations", str(own / "a.json"), "--output", str(own / "s")])
    with pytest.raises(InputError, match="not registered"):
        tool.main(["boxes", "--dataset", "moon", "--output", str(own / "s")])


def test_a_wrong_call_is_one_line_and_status_2(own):
    run = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "make_weak_labels.py"), "boxes", "--annotations",
         str(own / "none.json"), "--images", str(own), "--output", str(own / "s")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 2
    lines = [line for line in run.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and "none.json" in lines[0] and "Traceback" not in run.stderr


def write_truth(own):
    """Write panoptic truth of the three images; return its JSON and folder."""
    (own / "truth").mkdir()
    annotations = []
    y, x = np.mgrid[:48, :64]
    for k in range(3):
        ids = np.where((x - 30 - k) ** 2 + (y - 24) ** 2 < 144, 1, 2).astype(np.uint8)
        Image.fromarray(np.stack([ids, 0 * ids, 0 * ids], axis=-1)).save(own / f"truth/{k}.png")
        segments = [{"id": 1, "category_id": 5}, {"id": 2, "category_id": 6}]
        annotations.append({"image_id": k, "file_name": f"{k}.png", "segments_info": segments})
    content = {"images": [], "annotations": annotations, "categories": CATEGORIES}
    (own / "truth.json").write_text(json.dumps(content))
    return own / "truth.json", own / "truth"


def test_evaluate_labels_measures_the_best_proposals(own, capsys):
    truth_json, truth_dir = write_truth(own)
    config = own / "own.yaml"
    config.write_text(
        f"DATASETS:\n  OWN:\n    - {{name: discs_of_a_test, json: {own}/a.json, "
        f"images: {own}/images, panoptic_json: {truth_json}, panoptic_dir: {truth_dir}}}\n"
    )
    status = load_tool("evaluate_labels").main(
        ["--proposals", "--dataset", "discs_of_a_test", "--config-file", str(config),
         "--output", str(own / "q.json")]
    )  # fmt: skip
    assert status == 0 and "J_i of 3 objects in 3 images" in capsys.readouterr().out
    found = json.loads((own / "q.json").read_text())["proposals"]
    curve = list(found["J_i"].values())
    assert curve == sorted(curve) and curve[-1] > 90
    assert found["J_i not small"]["all"] is None  # a disc of 441 pixels is small


def test_evaluate_labels_puts_stores_side_by_side(own, capsys):
    truth_json, truth_dir = write_truth(own)
    for masks in ("grabcut", "box"):
        call(own, "--masks", masks, output=masks)
    tool = load_tool("evaluate_labels")
    truth = ["--gt-json", str(truth_json), "--gt-dir", str(truth_dir)]
    stores = [str(own / "grabcut"), str(own / "box")]
    assert tool.main(["--store", *stores, *truth, "--output", str(own / "q.json")]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in stores)
    found = json.loads((own / "q.json").read_text())["stores"]
    assert found[stores[0]]["summary"]["precision"] > 90
    assert found[stores[1]]["summary"]["recall"] == 100
    assert found[stores[1]]["summary"]["precision"] == pytest.approx(100 * 441 / 625, abs=1)
    assert "do not compare" not in text
    images = found[stores[0]]["images"]
    next((own / "box" / "status").iterdir()).unlink()  # one store is not whole
    tool.main(["--store", *stores, *truth])
    head, *lines = (line.split() for line in capsys.readouterr().out.splitlines())
    assert [line[head.index("images")] for line in lines[:2]] == [str(images), str(images - 1)]
    assert "do not compare" in " ".join(lines[2])
    held = {path.name for path in (own / "box" / "status").iterdir()}
    (own / "grabcut" / "status" / min(held)).unlink()  # as many images, and others
    tool.main(["--store", *stores, *truth])
    assert "do not compare" in capsys.readouterr().out
    with pytest.raises(InputError, match="name the truth"):
        tool.main(["--store", stores[0]])
    with pytest.raises(InputError, match="belong together"):
        tool.main(["--store", stores[0], "--gt-json", "x"])
