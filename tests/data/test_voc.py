# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""VOC 2012 and SBD: the lists' rule, boxes, void, quirks of the .mat files, resuming, checking."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
from helpers.official_trees import (
    REPOSITORY,
    assert_round_trip,
    make_voc,
    panoptic_pairs,
    run_prepare,
    save_sbd,
    sbd_maps,
)
from PIL import Image
from scipy import sparse
from scipy.io import savemat

from wsis_d2.data.datasets.builtin import voc
from wsis_d2.utils.errors import InputError

SPLITS = ("train", "val", "trainaug")


@pytest.fixture
def tree(tmp_path):
    make_voc(tmp_path)
    return tmp_path


def prepare(tree, *arguments):
    run_prepare("prepare_voc", "--root", tree, "--workers", 1, "--allow-partial", *arguments)
    return tree / "wsis_voc_2012"


def derived_bytes(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    return {p.name: p.read_bytes() for p in files}


def weak(folder, split):
    content = json.loads((folder / f"weak_{split}.json").read_text())
    boxes = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        boxes[annotation["image_id"]].append((annotation["category_id"], annotation["bbox"]))
    return content, boxes


def test_official_lists_give_10582_images(tmp_path):
    # 1 464 + 1 449 VOC images, 11 355 SBD images; the overlap of 2 237 is that of the releases.
    train = [f"2007_{k:06d}" for k in range(1464)]
    val = [f"2008_{k:06d}" for k in range(1449)]
    both = train[:1133] + val[:1104]
    sbd = both + [f"2010_{k:06d}" for k in range(11355 - len(both))]
    lists, release = tmp_path / "ImageSets" / "Segmentation", tmp_path / "sbd"
    lists.mkdir(parents=True)
    release.mkdir()
    for path, names in (
        (lists / "train.txt", train), (lists / "val.txt", val),
        (release / "train.txt", sbd[:8498]), (release / "val.txt", sbd[8498:]),
    ):  # fmt: skip
        path.write_text("\n".join(names) + "\n")
    found = voc.split_lists(tmp_path, release, partial_tree=False)
    assert {k: len(v) for k, v in found.items()} == {"train": 1464, "val": 1449, "trainaug": 10582}
    assert not set(found["trainaug"]) & set(val) and set(train) <= set(found["trainaug"])
    (release / "val.txt").write_text("\n".join(sbd[8498:-1]) + "\n")
    with pytest.raises(InputError, match="SBD val: found 2856 images.*2857.*--allow-partial"):
        voc.split_lists(tmp_path, release, partial_tree=False)


def test_full_tree_with_other_counts_is_refused(tree):
    with pytest.raises(InputError, match="SBD train: found 2 images, the official release gives"):
        run_prepare("prepare_voc", "--root", tree)
    assert not (tree / "wsis_voc_2012").exists()


def test_voc_truth_is_taken_where_both_have_an_image(tree):
    _, boxes = weak(prepare(tree), "trainaug")
    assert list(boxes) == ["2007_000001", "2007_000002", "2008_000004", "2008_000005"]
    assert (
        boxes["2007_000001"]
        == boxes["2007_000002"]
        == [
            (15, [0, 4, 7, 8]),  # truncated by the left side; void border left out
            (7, [10, 14, 6, 6]),
            (7, [16, 14, 7, 6]),
        ]
    )
    # SBD: pixels of another class are taken off; the listed object without pixels is skipped
    assert boxes["2008_000004"] == [(12, [3, 2, 6, 8]), (1, [20, 12, 10, 6])]


def test_truth_has_void_where_voc_has_it(tree):
    ids, segments = panoptic_pairs(prepare(tree), "val", "panoptic")["2007_000003"]
    assert (ids[0:3, 26:31] == 0).all()  # the difficult object
    assert (ids[3, 0:8] == 0).all() and ids[3, 8] == 1
    assert {k: (s["category_id"], s["area"], s["bbox"]) for k, s in segments.items()} == {
        1: (0, 24 * 32 - 80 - 36 - 42 - 15, [0, 0, 32, 24]),
        2: (15, 56, [0, 4, 7, 8]),
        3: (7, 36, [10, 14, 6, 6]),
        4: (7, 42, [16, 14, 7, 6]),
    }


def test_sbd_disagreement_is_void_and_counted(tree):
    folder = prepare(tree)
    ids, _ = panoptic_pairs(folder, "trainaug", "panoptic")["2008_000004"]
    assert (ids[2, 3:5] == 0).all() and ids[2, 5] == 2 and ids[19, 0] == 0
    counts = json.loads((folder / "manifest_trainaug.json").read_text())["counts"]
    assert counts == {"sbd": 2, "voc": 2, "void_by_disagreement_pixels": 6}


def test_sbd_void_border(tree):
    ids, _ = panoptic_pairs(prepare(tree, "--sbd-void", 1), "trainaug", "panoptic")["2008_000004"]
    semantic, objects, _ = sbd_maps()
    edge = np.zeros(objects.shape, bool)
    for k in (1, 2):
        mask = np.pad(objects == k, 1)
        inner = mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
        edge |= mask[1:-1, 1:-1] & ~inner
    assert edge.any() and (ids[edge] == 0).all()
    assert (ids[(objects > 0) & ~edge & (semantic != 8)] > 1).all()


@pytest.mark.parametrize("categories", [[12, 1], [12, 0], [12, 99], [12]])
def test_sbd_category_out_of_range_falls_back_on_the_class_map(tmp_path, categories):
    semantic, objects, _ = sbd_maps()
    save_sbd(tmp_path, "x", semantic, objects, categories)
    objects, classes, _ = voc.read_sbd(str(tmp_path / "inst" / "x.mat"), "GTinst")
    counts = Counter()
    ids, found = voc.fuse(semantic.astype(np.int32), objects, classes, counts)
    assert found == [(2, 12), (3, 1)]


def test_weak_file_has_no_mask(tree):
    folder = prepare(tree)
    content, _ = weak(folder, "trainaug")
    text = (folder / "weak_trainaug.json").read_text()
    assert "segment" not in text and ".png" not in text
    for annotation in content["annotations"]:
        assert annotation["area"] == annotation["bbox"][2] * annotation["bbox"][3]
    assert all(image["image_tags"] == [0] for image in content["images"])


def test_all_tags_on_demand(tree):
    content, _ = weak(prepare(tree, "--tags", "all"), "val")
    assert content["images"][0]["image_tags"] == [0, 7, 15]


@pytest.mark.parametrize("split", SPLITS)
def test_round_trip_gives_pq_100(tree, split):
    assert_round_trip(prepare(tree), split, "panoptic", least_classes=3)


def test_workers_give_the_same_bytes(tree, tmp_path):
    folder = prepare(tree)
    one = derived_bytes(folder)
    shutil.rmtree(folder)
    run_prepare("prepare_voc", "--root", tree, "--workers", 2, "--allow-partial")
    two = derived_bytes(folder)
    assert one == two and len(one) == 5 + 12


def test_second_run_converts_nothing(tree, monkeypatch):
    folder = prepare(tree)
    before = {p: p.stat().st_mtime_ns for p in (folder / "panoptic").iterdir()}
    monkeypatch.setattr(voc, "fuse", None)  # calling it would fail
    prepare(tree)
    assert before == {p: p.stat().st_mtime_ns for p in (folder / "panoptic").iterdir()}


def test_interrupted_run_continues(tree, monkeypatch):
    whole = prepare(tree)
    wanted = {p.name: p.read_bytes() for p in whole.glob("*_trainaug.*")}
    shutil.rmtree(whole)
    real, calls = voc.fuse, []

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(voc, "fuse", failing)
    with pytest.raises(KeyboardInterrupt):
        prepare(tree)
    assert not list(whole.glob("*.json")) and len(list((whole / "panoptic").iterdir())) == 2
    with open(whole / ".journal_panoptic.jsonl", "a") as file:
        file.write('{"id": "2007_0000')  # what a kill leaves
    prepare(tree)
    assert len(calls) == 3 + 3  # two of five were done
    assert wanted == {p.name: p.read_bytes() for p in whole.glob("*_trainaug.*")}


def test_a_damaged_line_of_the_journal_is_converted_again(tree):
    """A flipped bit made a group of an object."""
    whole = prepare(tree)
    wanted = derived_bytes(whole)
    journal = whole / ".journal_panoptic.jsonl"
    damaged = journal.read_bytes().replace(b'"iscrowd":0', b'"iscrowd":1', 1)
    assert damaged != journal.read_bytes()
    journal.write_bytes(damaged)
    prepare(tree)
    assert derived_bytes(whole) == wanted


def test_changed_source_or_recipe_is_converted_again(tree, monkeypatch):
    prepare(tree)
    calls, real = [], voc.fuse
    monkeypatch.setattr(voc, "fuse", lambda *a: calls.append(1) or real(*a))
    path = tree / "VOCdevkit" / "VOC2012" / "SegmentationClass" / "2007_000001.png"
    image = Image.open(path)
    image.load()
    image.putpixel((31, 23), 255)
    image.save(path)
    prepare(tree)
    assert len(calls) == 1
    prepare(tree, "--tags", "all")
    assert len(calls) == 1 + 5


def test_check_finds_damage(tree):
    folder = prepare(tree)
    prepare(tree, "--check")
    path = folder / "panoptic" / "2008_000005.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(InputError, match="2008_000005.png: its SHA-256.*prepare_voc.py --force"):
        prepare(tree, "--check")
    path.unlink()
    with pytest.raises(InputError, match="2008_000005.png: missing.*prepare_voc.py"):
        prepare(tree, "--check")
    prepare(tree)  # a missing file is made again without --force
    prepare(tree, "--check")


@pytest.mark.parametrize(
    "part, message",
    [
        ("SegmentationObject/2007_000002.png", "2007_000002.png: missing"),
        ("JPEGImages/2008_000004.jpg", "2008_000004.jpg: no such file"),
        ("ImageSets/Segmentation/val.txt", "val.txt: list missing; unpack VOC 2012 trainval"),
    ],
)
def test_missing_source_is_named(tree, part, message):
    (tree / "VOCdevkit" / "VOC2012" / part).unlink()
    with pytest.raises(InputError, match=message):
        prepare(tree)


def test_bad_sources_are_named(tree):
    path = tree / "VOCdevkit" / "VOC2012" / "SegmentationClass" / "2007_000001.png"
    good = Image.open(path)
    good.load()
    good.convert("RGB").save(path)
    with pytest.raises(InputError, match="2007_000001.png: a picture with 3 channels"):
        prepare(tree)
    good.resize((16, 12)).save(path)
    with pytest.raises(InputError, match="2007_000001.png: 16x12 pixels, but .* has 32x24"):
        prepare(tree)
    good.save(path)
    mat = tree / "benchmark_RELEASE" / "dataset" / "inst" / "2008_000004.mat"
    mat.write_bytes(b"not a mat file")
    with pytest.raises(InputError, match="2008_000004.mat: no MATLAB file with GTinst"):
        prepare(tree)


def test_a_renumbered_palette_is_refused(tree):
    """As pngquant and others leave it: colours stay, and the person would be a bicycle."""
    path = tree / "VOCdevkit" / "VOC2012" / "SegmentationClass" / "2007_000001.png"
    labels = np.asarray(Image.open(path))
    colors = {0: [0, 0, 0], 7: [128, 128, 128], 15: [192, 128, 128], 255: [224, 224, 192]}
    assert set(np.unique(labels).tolist()) == colors.keys()
    for values, told in ((list(colors), "value 1 has the colour of value 7"), (None, "")):
        palette = [c for k in values or range(256) for c in colors.get(k, [0, 0, 0])]
        image = Image.fromarray(np.searchsorted(values or range(256), labels).astype(np.uint8), "P")
        image.putpalette(palette)
        image.save(path)
        if told:
            with pytest.raises(InputError, match=rf"2007_000001.png: {told} in VOC.*renumbered"):
                prepare(tree)
    prepare(tree)


def test_a_list_begins_with_its_first_name(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\r\n")  # as some editors save it
    assert voc.read_list(tmp_path / "list.txt", "x") == ["a", "b"]


def test_a_list_that_is_no_text_is_named(tmp_path):
    (tmp_path / "train.txt").write_bytes(b"2007_000032\n\xff\xfe\n")
    with pytest.raises(InputError, match=r"train\.txt: no list of names .*unpack VOC again"):
        voc.read_list(tmp_path / "train.txt", "VOC")


@pytest.mark.parametrize(
    ("sound", "broken"),
    [
        ([7, 8, 9], [1 << 20, 8, 9]),
        ([7, 8, 9], [7, 8, -5]),
        ([0, 1, 2, 3, 3], [0, 1, 2, 1 << 28, 3]),
        ([0, 1, 2, 3, 3], [0, 1, 2, 3, 1 << 28]),
        ([0, 1, 2, 3, 3], [0, 1 << 20, 2, 3, 0]),
        ([0, 1, 2, 3, 3], [-1, 1, 2, 3, 3]),
    ],
    ids=range(6),
)
def test_a_boundary_that_points_outside_its_image_is_refused(tmp_path, sound, broken):
    """scipy would write past the end of the picture's memory."""
    cells = np.empty((1, 1), object)
    cells[0, 0] = sparse.csc_matrix(np.eye(10, 4, -7))
    content = {"Segmentation": np.ones((10, 4), np.uint8), "Categories": [3], "Boundaries": cells}
    savemat(tmp_path / "a.mat", {"GTinst": content})
    read, written = (
        (tmp_path / "a.mat").read_bytes(),
        [np.int32(v).tobytes() for v in (sound, broken)],
    )
    assert read.count(written[0]) == 1
    (tmp_path / "a.mat").write_bytes(read.replace(*written))
    with pytest.raises(InputError, match=r"a\.mat: no (SBD|MATLAB) file"):
        voc.read_sbd(str(tmp_path / "a.mat"), "GTinst")


def test_boundaries_are_where_scipy_says(tmp_path):
    rng = np.random.default_rng(0)
    arrays = [rng.integers(-1, 2, (7, 5)) for _ in range(3)]
    cells = np.empty((3, 1), object)
    cells[:, 0] = [sparse.csc_matrix(a.astype(float)) for a in arrays]
    content = {"Segmentation": np.ones((7, 5), np.uint8), "Categories": [3], "Boundaries": cells}
    savemat(tmp_path / "a.mat", {"GTinst": content})
    found = voc.read_sbd(str(tmp_path / "a.mat"), "GTinst")[2]
    np.testing.assert_array_equal(found, np.max(arrays, 0) > 0)


def test_without_sbd(tree):
    shutil.rmtree(tree / "benchmark_RELEASE")
    with pytest.raises(InputError, match="benchmark_RELEASE.*missing; unpack SBD.*--no-sbd"):
        prepare(tree)
    assert not (prepare(tree, "--no-sbd") / "weak_trainaug.json").exists()


def test_command_ends_with_one_line_and_status_2(tmp_path):
    command = [sys.executable, str(REPOSITORY / "datasets" / "prepare_voc.py"), "--root"]
    done = subprocess.run([*command, tmp_path], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and last.startswith("error: ") and "unpack VOC 2012" in last


@pytest.mark.long
def test_killed_at_any_moment_it_ends_with_the_same_bytes(tmp_path):
    make_voc(tmp_path)
    voc_root = tmp_path / "VOCdevkit" / "VOC2012"
    names = [f"2009_{k:06d}" for k in range(1500)]
    for name in names:
        for part, suffix in (
            ("JPEGImages", "jpg"), ("SegmentationClass", "png"), ("SegmentationObject", "png"),
        ):  # fmt: skip
            (voc_root / part / f"{name}.{suffix}").symlink_to(
                voc_root / part / f"2007_000001.{suffix}"
            )
    with open(voc_root / "ImageSets" / "Segmentation" / "train.txt", "a") as file:
        file.write("\n".join(names) + "\n")
    folder = prepare(tmp_path)
    wanted = derived_bytes(folder)
    command = [sys.executable, str(REPOSITORY / "datasets" / "prepare_voc.py"), "--root"]
    command += [str(tmp_path), "--allow-partial", "--workers", "2"]
    journal = folder / ".journal_panoptic.jsonl"
    shutil.rmtree(folder)
    done = [0]
    for goal in (1, 300, 700, 1100):
        process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
        while process.poll() is None and (
            not journal.exists() or journal.read_bytes().count(b"\n") < goal + 1
        ):
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        done.append(journal.read_bytes().count(b"\n") - 1)
        assert not (folder / "weak_train.json").exists()
    assert done == sorted(done) and done[-1] >= 1100
    prepare(tmp_path, "--workers", 2)
    assert derived_bytes(folder) == wanted
