# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The embedded sample: deterministic, as hard as promised, its truth and its tags consistent."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from wsis_d2.data.datasets.own.custom import unregister
from wsis_d2.data.datasets.sample import dataset as sample
from wsis_d2.data.datasets.sample.scenes import STUFF, THINGS, draw_scene
from wsis_d2.utils.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def tree_hash(folder):
    digest = hashlib.sha256()
    for path in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "wsis_sample"
    assert sample.prepare_sample(folder, train=8, val=4, seed=0)
    return folder


def read(folder, name):
    return json.loads((folder / name).read_text())


def test_same_seed_same_bytes_and_rerun_touches_nothing(small, tmp_path):
    before = {p: p.stat().st_mtime_ns for p in small.rglob("*")}
    assert not sample.prepare_sample(small, train=8, val=4, seed=0)
    assert {p: p.stat().st_mtime_ns for p in small.rglob("*")} == before
    sample.prepare_sample(tmp_path / "again", train=8, val=4, seed=0)
    assert tree_hash(small) == tree_hash(tmp_path / "again")
    sample.prepare_sample(tmp_path / "other", train=2, val=1, seed=1)
    first, other = (f / "images/train/0001.png" for f in (small, tmp_path / "other"))
    assert first.read_bytes() != other.read_bytes()


def test_larger_sample_begins_with_the_smaller(small, tmp_path):
    sample.prepare_sample(tmp_path / "s", train=3, val=1, seed=0)
    for name in ("images/train/0003.png", "panoptic_train/0003.png", "images/val/0001.png"):
        assert (tmp_path / "s" / name).read_bytes() == (small / name).read_bytes()


def test_damage_is_found_and_mended(small, tmp_path):
    folder = tmp_path / "s"
    sample.prepare_sample(folder, train=2, val=1)
    healthy = tree_hash(folder)
    victim = folder / "panoptic_val" / "0001.png"
    victim.write_bytes(victim.read_bytes()[:50])
    assert "panoptic_val/0001.png" in sample.check_sample(folder)
    assert sample.prepare_sample(folder, train=2, val=1)
    assert tree_hash(folder) == healthy
    (folder / "keep.txt").write_text("mine")
    sample.prepare_sample(folder, train=1, val=1)  # another recipe: old pictures go, others stay
    assert sorted(p.name for p in (folder / "images/train").iterdir()) == ["0001.png"]
    assert (folder / "keep.txt").read_text() == "mine"


def test_foreign_files_are_not_overwritten(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match="--output"):
        sample.prepare_sample(tmp_path, train=1, val=1)
    assert (tmp_path / "images" / "holiday.jpg").exists()


@pytest.mark.long
def test_killed_halfway_leaves_no_sample_that_looks_complete(tmp_path):
    code = (
        "import os, sys\n"
        "from wsis_d2.data.datasets.sample import dataset as sample\n"
        "old = os.replace; n = [0]\n"
        "def replace(*a):\n"
        "    n[0] += 1\n"
        "    if n[0] == 4: os._exit(9)\n"
        "    old(*a)\n"
        "os.replace = replace\n"
        "sample.prepare_sample(sys.argv[1], 2, 1)\n"
    )
    folder = tmp_path / "s"
    run = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT)
    assert run.returncode == 9
    assert sample.check_sample(folder) is not None
    assert sample.prepare_sample(folder, 2, 1)
    assert sample.check_sample(folder) is None


def test_weak_files_hold_no_mask(small):
    for name in ("weak_train.json", "weak_val.json"):
        text = (small / name).read_text()
        assert "segment" not in text and "panoptic" not in text and "counts" not in text


@pytest.mark.parametrize("split", ["train", "val"])
def test_boxes_and_masks_agree_with_truth(small, split):
    """Every box is the tight box of a segment, recomputed here from the PNG alone."""
    weak, panoptic = read(small, f"weak_{split}.json"), read(small, f"panoptic_{split}.json")
    things = {c["id"] for c in weak["categories"] if c["isthing"]}
    for entry, truth in zip(weak["images"], panoptic["annotations"], strict=True):
        assert entry["id"] == truth["image_id"]
        rgb = np.asarray(Image.open(small / f"panoptic_{split}" / truth["file_name"])).astype(int)
        ids = rgb @ [1, 256, 65536]
        assert set(np.unique(ids)) == {s["id"] for s in truth["segments_info"]}
        expected = []
        for segment in truth["segments_info"]:
            ys, xs = np.nonzero(ids == segment["id"])
            box = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
            assert segment["bbox"] == box and segment["area"] == len(xs)
            if segment["category_id"] in things:
                expected.append((segment["category_id"], box))
        found = [
            (a["category_id"], a["bbox"])
            for a in weak["annotations"]
            if a["image_id"] == entry["id"]
        ]
        assert found == expected and found


def test_masks_of_the_full_file_are_the_truth(small):
    full = read(small, "full_train.json")
    names = {e["id"]: e["file_name"] for e in full["images"]}
    for a in full["annotations"][:10]:
        size = a["segmentation"]["size"]
        mask = mask_util.decode(mask_util.frPyObjects(a["segmentation"], *size))
        rgb = np.asarray(Image.open(small / "panoptic_train" / names[a["image_id"]])).astype(int)
        ids = rgb @ [1, 256, 65536]
        sid = ids[mask > 0]
        assert len(set(sid)) == 1 and (ids == sid[0]).sum() == mask.sum() == a["area"]


def test_tags_tell_what_can_be_seen(small):
    weak, panoptic = read(small, "weak_train.json"), read(small, "panoptic_train.json")
    things = {c["id"] for c in weak["categories"] if c["isthing"]}
    for entry, truth in zip(weak["images"], panoptic["annotations"], strict=True):
        rgb = np.asarray(Image.open(small / "panoptic_train" / truth["file_name"])).astype(int)
        ids = rgb @ [1, 256, 65536]
        covered = np.zeros(ids.shape, bool)
        assert len(entry["crop_tags"]) == 6
        for crop in entry["crop_tags"]:
            x, y, w, h = crop["box"]
            covered[y : y + h, x : x + w] = True
            window = ids[y : y + h, x : x + w]
            for s in truth["segments_info"]:
                if s["category_id"] not in things:
                    seen = (window == s["id"]).sum() >= sample.MIN_TAG_PIXELS
                    assert seen == (s["category_id"] in crop["tags"])
        assert covered.all()
        assert entry["image_tags"] == sorted({t for c in entry["crop_tags"] for t in c["tags"]})


def test_scenes_are_varied():
    scenes = [draw_scene(np.random.default_rng([5, k])) for k in range(40)]
    stuff = [tuple(np.unique(s.stuff)) for s in scenes]
    assert {len(s) for s in stuff} == {2, 3} and len(set(stuff)) >= 8
    assert {t for s in scenes for t in s.things} == set(range(len(THINGS)))
    assert {k for s in stuff for k in s} == set(range(len(STUFF)))
    top = {int(np.bincount(s.stuff[0]).argmax()) for s in scenes}
    assert len(top) == len(STUFF)  # any stuff may be on top: place alone tells nothing
    touching = 0
    for scene in scenes:
        for a in range(1, len(scene.things) + 1):
            near = cv2.dilate((scene.instance == a).astype(np.uint8), np.ones((3, 3))) > 0
            others = set(np.unique(scene.instance[near])) - {0, a}
            touching += any(scene.things[b - 1] == scene.things[a - 1] for b in others)
    assert touching >= 10
    areas = [(s.instance == k + 1).sum() for s in scenes for k in range(len(s.things))]
    assert np.percentile(areas, 90) > 4 * np.percentile(areas, 10)


def test_mean_colour_does_not_tell_the_class():
    """Nearest mean colour, with truth to learn from, must fail on many stuff regions."""

    def regions(seed):
        for k in range(40):
            scene = draw_scene(np.random.default_rng([seed, k]))
            for c in np.unique(scene.stuff):
                yield c, scene.image[(scene.stuff == c) & (scene.instance == 0)].mean(0)

    classes, colours = map(np.array, zip(*regions(11), strict=True))
    hits = [classes[((colours - colour) ** 2).sum(1).argmin()] == c for c, colour in regions(12)]
    assert 0.3 < np.mean(hits) < 0.85


def test_grabcut_masks_are_middling():
    """GrabCut from a box and a central seed: neither useless nor as good as truth."""
    ious = []
    for k in range(30):
        scene = draw_scene(np.random.default_rng([0, 0, k]))
        for thing in range(1, len(scene.things) + 1):
            truth = scene.instance == thing
            ys, xs = np.nonzero(truth)
            labels = np.full(truth.shape, cv2.GC_BGD, np.uint8)
            labels[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1] = cv2.GC_PR_FGD
            cy, cx = (ys.min() + ys.max()) / 2, (xs.min() + xs.max()) / 2
            v, u = np.mgrid[: truth.shape[0], : truth.shape[1]]
            rx, ry = 0.165 * (np.ptp(xs) + 1), 0.165 * (np.ptp(ys) + 1)
            labels[((u - cx) / rx) ** 2 + ((v - cy) / ry) ** 2 <= 1] = cv2.GC_FGD
            cv2.setRNGSeed(0)
            model = np.zeros((2, 1, 65))
            cv2.grabCut(scene.image, labels, None, model[0], model[1], 5, cv2.GC_INIT_WITH_MASK)
            mask = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
            ious.append((mask & truth).sum() / (mask | truth).sum())
    assert 0.55 <= np.mean(ious) <= 0.85


def test_registered_and_loaded(small):
    names = ["sample_train_weak", "sample_train_full", "sample_val_full"]
    for name in names:
        unregister(name)
    sample.register_all_sample(small.parent)
    try:
        weak, full, val = (DatasetCatalog.get(n) for n in names)
        assert (len(weak), len(full), len(val)) == (8, 8, 4)
        metadata = MetadataCatalog.get("sample_train_weak")
        assert metadata.thing_classes == list(THINGS + STUFF) == metadata.stuff_classes
        assert metadata.thing_ids == [0, 1, 2] and metadata.stuff_ids == [3, 4, 5, 6]
        assert [r["file_name"] for r in weak] == [r["file_name"] for r in full]
        assert weak[0]["annotations"] == full[0]["annotations"]
    finally:
        for name in names:
            unregister(name)
        sample.register_all_sample(os.environ.get("DETECTRON2_DATASETS", "datasets"))


def test_missing_sample_names_the_command(tmp_path):
    for name in ("sample_train_weak", "sample_train_full", "sample_val_full"):
        unregister(name)
    sample.register_all_sample(tmp_path)
    try:
        with pytest.raises(InputError, match=r"python datasets/prepare_sample\.py"):
            DatasetCatalog.get("sample_train_weak")
    finally:
        for name in ("sample_train_weak", "sample_train_full", "sample_val_full"):
            unregister(name)
        sample.register_all_sample(os.environ.get("DETECTRON2_DATASETS", "datasets"))


def test_command(tmp_path, capsys):
    script = ROOT / "datasets" / "prepare_sample.py"
    spec = importlib.util.spec_from_file_location("prepare_sample", script)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    folder = ["--output", str(tmp_path / "s")]
    assert tool.main([*folder, "--train", "1", "--val", "1"]) == 0
    assert tool.main([*folder, "--check"]) == 0
    assert "complete and unchanged" in capsys.readouterr().out
    (tmp_path / "s" / "weak_train.json").write_text("{}")
    with pytest.raises(InputError, match=r"weak_train\.json"):
        tool.main([*folder, "--check"])
    with pytest.raises(InputError, match="--train 0"):
        tool.main([*folder, "--train", "0"])
