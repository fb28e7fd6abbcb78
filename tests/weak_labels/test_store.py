# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The label store: round trip, atomic, resumable, refuses another recipe."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from wsis_d2.utils.errors import InputError
from wsis_d2.utils.files import atomic_write, remove_dead_temporaries
from wsis_d2.weak_labels import store as store_module
from wsis_d2.weak_labels.recipe import annotation_digest
from wsis_d2.weak_labels.store import LabelStore

CATEGORIES = [
    {"id": 7, "name": "dog", "isthing": 1},
    {"id": 3, "name": "grass", "isthing": 0},
    {"id": 9, "name": "cat", "isthing": 1},
]
RECIPE = {"kind": "boxes", "grabcut": {"size": 160}}


def make_record(image_id, height=6, width=8):
    return {
        "image_id": image_id,
        "file_name": f"somewhere/{image_id}.jpg",
        "height": height,
        "width": width,
        "annotations": [{"bbox": [1, 1, 4, 4], "bbox_mode": 0, "category_id": 1, "iscrowd": 0}],
        "image_tags": [0],
        "supervision": "weak",
    }


def make_labels():
    semantic = np.full((6, 8), 255, np.uint8)
    semantic[1:4, 1:4] = 1
    semantic[4:, :] = 0
    instance = np.full((6, 8), -1, np.int32)
    instance[1:4, 1:4] = 70000
    instance[4:, :] = 2
    instance[0, 0] = 0
    segments = [
        {"id": 70000, "category_id": 1},
        {"id": 2, "category_id": 0},
        {"id": 5, "category_id": 2},
    ]
    return semantic, instance, segments


def test_round_trip_and_coco_panoptic_files(tmp_path):
    store = LabelStore.create(tmp_path / "s", RECIPE, CATEGORIES)
    semantic, instance, segments = make_labels()
    for image_id in (12, "town_0/1"):
        store.write(make_record(image_id), semantic, instance, segments, {"boxes": 2, "tiny": 1})
    summary = store.finish()
    assert summary == {"images": 2, "failed": 0, "counters": {"boxes": 4, "tiny": 2}}

    read = LabelStore.open(tmp_path / "s")
    assert sorted(map(str, read.image_ids())) == ["12", "town_0/1"]
    for image_id in (12, "town_0/1"):
        assert read.semantic(image_id).dtype == np.uint8
        np.testing.assert_array_equal(read.semantic(image_id), semantic)
        got, got_segments = read.instance(image_id)
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, np.where(instance == 0, -1, instance))
        assert got_segments == segments[:2]  # id 5 has no pixel
    assert read.counters(12) == {"boxes": 2, "tiny": 1}
    # panoptic.json keeps the file's category ids (classes sorted by id: grass 3, dog 7, cat 9) and
    # is read here the way panopticapi reads it.
    panoptic = json.loads((tmp_path / "s" / "panoptic.json").read_text())
    by_image = {a["image_id"]: a for a in panoptic["annotations"]}
    infos = {s["id"]: s for s in by_image[12]["segments_info"]}
    assert {i: s["category_id"] for i, s in infos.items()} == {70000: 7, 2: 3}
    assert infos[70000]["area"] == 9 and infos[70000]["bbox"] == [1, 1, 3, 3]
    png = np.array(Image.open(tmp_path / "s" / "panoptic" / by_image[12]["file_name"]), np.uint32)
    ids = png[..., 0] + 256 * png[..., 1] + 65536 * png[..., 2]
    np.testing.assert_array_equal(ids, np.maximum(instance, 0))
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    assert manifest["images"]["12"]["status"] == "done"
    assert manifest["recipe"] == RECIPE and manifest["versions"]["numpy"] == np.__version__
    assert not list((tmp_path / "s").rglob("*~*.tmp"))


def test_panoptic_files_load_with_panopticapi(tmp_path):
    utils = pytest.importorskip("panopticapi.utils")
    store = LabelStore.create(tmp_path / "s", RECIPE, CATEGORIES)
    store.write(make_record(1), *make_labels())
    store.finish()
    annotation = json.loads((tmp_path / "s" / "panoptic.json").read_text())["annotations"][0]
    ids = utils.rgb2id(np.array(Image.open(tmp_path / "s" / "panoptic" / annotation["file_name"])))
    assert set(np.unique(ids)) - {0} == {s["id"] for s in annotation["segments_info"]}


def test_continues_and_tells_stale_labels(tmp_path):
    store = LabelStore.create(tmp_path, RECIPE, CATEGORIES)
    record = make_record(1)
    store.write(record, *make_labels())
    again = LabelStore.create(tmp_path, RECIPE, CATEGORIES)
    assert again.done(1) and again.done(1, record) and not again.done(2)
    again.check(dict(record, file_name="moved/1.jpg"))
    moved_box = dict(record, annotations=[dict(record["annotations"][0], bbox=[1, 1, 4, 5])])
    assert again.done(1) and not again.done(1, moved_box)
    with pytest.raises(InputError, match="image 1 .* stale.*make_weak_labels"):
        again.check(moved_box)
    with pytest.raises(InputError, match="image 2 .* missing.*make_weak_labels"):
        again.check(make_record(2))
    of_round = LabelStore.create(tmp_path / "round", {"kind": "round"}, CATEGORIES)
    with pytest.raises(InputError, match="begin the rounds anew: tools/train_iterative.py"):
        of_round.check(record)
    with pytest.raises(InputError, match="no label of image 2"):
        again.semantic(2)


def test_labels_of_another_picture_with_the_same_id_are_stale(tmp_path):
    """An import of a larger folder numbers its images anew; tags and size may well be the same."""
    store = LabelStore.create(tmp_path, RECIPE, CATEGORIES)
    store.write(make_record(1), *make_labels())
    renumbered = dict(make_record(1), file_name="somewhere/2.jpg")
    assert not store.done(1, renumbered)
    with pytest.raises(InputError, match=r"image 1 \(somewhere/2.jpg\) is that of another.*1.jpg;"):
        store.check(renumbered)
    store.check(dict(make_record(1), file_name="elsewhere/1.PNG"))  # converted


def test_labels_of_a_file_that_was_replaced_are_stale(tmp_path):
    """Turned, exported anew, or the frame of another clip: name, size and tags stay the same."""
    record = dict(make_record(1), file_name=str(tmp_path / "1.jpg"))
    picture = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(picture).save(record["file_name"])
    store = LabelStore.create(tmp_path / "s", RECIPE, CATEGORIES)
    store.write(record, *make_labels())
    (tmp_path / "moved").mkdir()
    moved = dict(record, file_name=str(tmp_path / "moved" / "1.jpg"))
    shutil.copyfile(record["file_name"], moved["file_name"])
    assert store.has(moved) and not store.has(make_record(2))
    Image.fromarray(picture[::-1]).save(moved["file_name"])
    assert store.done(1, record) and not store.done(1, moved)
    with pytest.raises(InputError, match="image 1 .* was made when the file had other content"):
        store.has(moved)


@pytest.mark.parametrize("change", ["bbox", "category_id", "image_tags", "crop_tags", "iscrowd"])
def test_digest_sees_every_part_of_the_annotation(change):
    record = make_record(1)
    changed = make_record(1)
    if change == "image_tags":
        changed["image_tags"] = [0, 2]
    elif change == "crop_tags":
        changed["crop_tags"] = [{"box": [0, 0, 4, 4], "tags": [0]}]
    else:
        value = {"bbox": [1, 1, 4, 4.5], "category_id": 2, "iscrowd": 1}[change]
        changed["annotations"][0][change] = value
    assert annotation_digest(record) != annotation_digest(changed)


def test_another_recipe_is_refused_until_forced(tmp_path):
    LabelStore.create(tmp_path, RECIPE, CATEGORIES).write(make_record(1), *make_labels())
    other = {"kind": "boxes", "grabcut": {"size": 256}}
    with pytest.raises(InputError) as error:
        LabelStore.create(tmp_path, other, CATEGORIES)
    held = LabelStore.open(tmp_path)
    assert held.recipe_hash[:12] in str(error.value) and "--force" in str(error.value)
    assert "grabcut.size: 160 there, 256 asked for" in str(error.value)
    assert held.done(1)
    forced = LabelStore.create(tmp_path, other, CATEGORIES, force=True)
    assert not forced.done(1) and forced.recipe == other
    with pytest.raises(InputError, match="classes"):
        LabelStore.create(tmp_path, other, CATEGORIES[:2])


@pytest.mark.parametrize("other", [RECIPE, {"kind": "other"}])
def test_two_processes_that_begin_at_once_share_a_store_or_one_is_refused(
    tmp_path, monkeypatch, other
):
    check = store_module.check_recipe
    begun = []

    def slow_check(*args, **kwargs):
        found = check(*args, **kwargs)
        if not begun:  # the other process comes between this check and the manifest
            begun.append(True)
            LabelStore.create(tmp_path / "s", other, CATEGORIES)
        return found

    monkeypatch.setattr(store_module, "check_recipe", slow_check)
    if other is RECIPE:
        LabelStore.create(tmp_path / "s", RECIPE, CATEGORIES)
    else:
        with pytest.raises(InputError, match="holds labels of recipe"):
            LabelStore.create(tmp_path / "s", RECIPE, CATEGORIES)
    assert LabelStore.open(tmp_path / "s").recipe == other


def test_a_file_that_must_not_be_replaced_stays(tmp_path):
    with atomic_write(tmp_path / "f", replace=False) as file:
        file.write(b"1")
    with pytest.raises(FileExistsError), atomic_write(tmp_path / "f", replace=False) as file:
        file.write(b"2")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("f", b"1")]


def test_a_folder_with_other_files_is_never_taken(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for force in (False, True):
        with pytest.raises(InputError, match="no label store"):
            LabelStore.create(tmp_path, RECIPE, CATEGORIES, force=force)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    with pytest.raises(InputError, match="make_weak_labels"):
        LabelStore.open(tmp_path)


def test_failures_are_kept_and_tried_again(tmp_path):
    store = LabelStore.create(tmp_path, RECIPE, CATEGORIES)
    store.write_failure(make_record(3), "3.jpg: cannot be read")
    assert store.failed == {3: "3.jpg: cannot be read"} and not store.done(3)
    summary = store.finish()
    assert summary["failed"] == 1
    with pytest.raises(InputError, match="cannot be read"):
        store.instance(3)
    store.write(make_record(3), *make_labels())
    assert store.failed == {} and store.done(3)


def test_bad_labels_are_refused(tmp_path):
    store = LabelStore.create(tmp_path, RECIPE, CATEGORIES)
    semantic, instance, segments = make_labels()
    for bad in (
        (semantic[:5], instance, segments),
        (np.where(semantic == 1, 3, semantic), instance, segments),
        (semantic, instance, segments[1:]),
        (semantic, instance - 5, segments),
        (semantic, instance, [dict(segments[0], category_id=3), *segments[1:]]),
        (semantic.astype(float), instance, segments),
    ):
        with pytest.raises(ValueError):
            store.write(make_record(1), *bad)
    assert not store.done(1)


def test_a_broken_file_is_named(tmp_path):
    store = LabelStore.create(tmp_path, RECIPE, CATEGORIES)
    store.write(make_record(1), *make_labels())
    (tmp_path / "semantic" / "000000000001.png").write_bytes(b"\x89PNG cut off")
    with pytest.raises(InputError, match="000000000001.png.*cannot be read"):
        store.semantic(1)


@pytest.mark.parametrize(
    ("change", "told"),
    [(lambda a: a[:5], "shape"), (lambda a: a + 77, "class 7., expected 0 to 2")],
)
def test_a_map_that_another_program_has_written_is_named(tmp_path, change, told):
    store = LabelStore.create(tmp_path / "s", RECIPE, CATEGORIES)
    store.write(make_record(1), *make_labels(), {})
    path = tmp_path / "s/semantic/000000000001.png"
    Image.fromarray(change(np.asarray(Image.open(path)) // 255)).save(path)
    with pytest.raises(InputError, match=f"000000000001.png: .*{told}"):
        store.semantic(1)


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "x.json"
    target.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_write(target, tmp_path / ".tmp") as file:
        file.write(b"half")
        raise RuntimeError
    assert target.read_bytes() == b"old" and not list(tmp_path.rglob("*~*.tmp"))


_WRITER = """
import sys, numpy as np
sys.path.insert(0, {tests!r})
from test_store import CATEGORIES, RECIPE, make_record
from wsis_d2.weak_labels.store import LabelStore
store = LabelStore.create({path!r}, RECIPE, CATEGORIES)
noise = np.random.default_rng(0).integers(0, 3, (400, 400)).astype(np.uint8)
for image_id in range(10000):
    store.write(make_record(image_id, 400, 400), noise, noise.astype(np.int32),
                [{{"id": 1, "category_id": 1}}, {{"id": 2, "category_id": 0}}])
"""


def test_a_store_of_which_a_part_was_deleted_is_made_whole_again(tmp_path):
    store = LabelStore.create(tmp_path, RECIPE, CATEGORIES)
    record = make_record(1)
    store.write(record, *make_labels())
    assert store.done(1, record)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.png")}
    for part in ("semantic", "panoptic"):
        (tmp_path / part / "000000000001.png").unlink()
        assert not store.done(1, record)  # so the next run makes it
        with pytest.raises(InputError, match="image 1 .*lacks a file that was deleted"):
            store.check(record)
        store.write(record, *make_labels())
        assert {p: p.read_bytes() for p in tmp_path.rglob("*.png")} == before


@pytest.mark.parametrize(
    "damage", [{"segments": [{"id": 1}]}, {"counters": {"a": "b"}}, {"height": "9"}, {"status": 5}]
)
def test_a_damaged_status_file_is_named(tmp_path, damage):
    store = LabelStore.create(tmp_path, RECIPE, CATEGORIES)
    store.write(make_record(1), *make_labels())
    path = tmp_path / "status" / "000000000001.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **damage}))
    with pytest.raises(InputError, match="000000000001.json: is damaged; delete it"):
        store.finish()


def test_kill_leaves_only_whole_images(tmp_path):
    path = tmp_path / "s"
    code = _WRITER.format(tests=os.path.dirname(__file__), path=str(path))
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 300
    while len(list(path.glob("status/*.json"))) < 5:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    store = LabelStore.create(path, RECIPE, CATEGORIES)
    ids = store.image_ids()
    assert len(ids) >= 5
    for image_id in ids:
        assert set(np.unique(store.semantic(image_id))) == {0, 1, 2}
        assert len(store.instance(image_id)[1]) == 2
    for folder in ("semantic", "panoptic"):
        for file in (path / folder).iterdir():
            Image.open(file).load()  # whole, even where its image is not done
    assert not list(path.rglob("*~*.tmp"))


def test_temporaries_of_living_processes_stay(tmp_path):
    import socket

    living = tmp_path / f"{socket.gethostname()}~{os.getpid()}~1.tmp"
    foreign = tmp_path / "elsewhere~999999~1.tmp"
    for path in (living, foreign):
        path.write_bytes(b"")
    remove_dead_temporaries(tmp_path)
    assert living.exists() and foreign.exists()
