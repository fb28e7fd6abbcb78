# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Processes of a pool that die, as on a machine out of memory, end their command in one line.

Label making goes on without the image instead (tests/weak_labels/test_driver.py).
"""

import errno
import json
import os
import signal

import numpy as np
import pytest
from helpers.refused import refused

from wsis_d2.data.datasets.builtin.preparation import Converted, ImageJob, Preparation
from wsis_d2.data.panoptic_format import write_panoptic_png
from wsis_d2.evaluation import from_files
from wsis_d2.evaluation.from_files import FileOptions, evaluate_files
from wsis_d2.utils.cli import error_line
from wsis_d2.utils.errors import InputError

CATEGORIES = [{"id": 1, "name": "cow", "isthing": 1}]


def convert(job):
    if job.data == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
    entry = {"id": job.image_id, "file_name": f"{job.image_id}.png", "height": 1, "width": 1}
    if job.data == "segments":
        segments = [{"id": 1, "category_id": 1, "iscrowd": 0}]
        return Converted(entry, [], [], segment_ids=np.ones((1, 1), int), segments=segments)
    return Converted(entry, [], [])


def test_preparation_ends_and_keeps_what_is_done(tmp_path):
    jobs = [ImageJob(k, (), "deadly" if k == 9 else None) for k in range(12)]

    def prepare():
        made = Preparation(tmp_path, categories=[], recipe={}, command="prepare", workers=2)
        return made.convert(jobs, convert, folder="panoptic", desc="a")

    with pytest.raises(InputError, match="a process that converted images has died"):
        prepare()
    jobs[9] = ImageJob(9, ())
    assert list(prepare()) == list(range(12))


def test_what_is_refused_in_a_process_is_told_by_name(tmp_path):
    jobs = [ImageJob(k, (), "segments") for k in range(12)]

    def prepare(folder):
        made = Preparation(folder, categories=[], recipe={}, command="prepare", workers=2)
        lines = made.convert(jobs, convert, folder="panoptic", desc="a")
        made.write_split("train", list(lines.values()), folder="panoptic")
        return {p.name: p.read_bytes() for p in folder.rglob("*.*") if p.is_file()}

    with refused(errno.EROFS, "write", tmp_path / "a" / "panoptic"), pytest.raises(OSError) as told:
        prepare(tmp_path / "a")
    line = error_line(told.value)
    assert "a/panoptic/" in line and ".png: Read-only file system; mount it" in line
    found, wanted = prepare(tmp_path / "a"), prepare(tmp_path / "b")
    assert found.keys() == wanted.keys() and len(found) > 12
    assert all(found[n] == wanted[n] for n in wanted if n != ".journal_panoptic.jsonl")  # an order


def _die(keys):
    os.kill(os.getpid(), signal.SIGKILL)


def test_evaluation_ends(tmp_path, monkeypatch):
    entries = []
    for index in range(20):  # more than one process is given at a time
        write_panoptic_png(tmp_path / "png" / f"{index}.png", np.ones((2, 2), np.int32))
        segments = [{"id": 1, "category_id": 1, "iscrowd": 0, "area": 4, "bbox": [0, 0, 2, 2]}]
        entries.append({"image_id": index, "file_name": f"{index}.png", "segments_info": segments})
    path = tmp_path / "truth.json"
    path.write_text(json.dumps({"images": [], "annotations": entries, "categories": CATEGORIES}))
    files = (path, tmp_path / "png", path, tmp_path / "png", FileOptions(workers=2))
    assert evaluate_files(*files)["panoptic_seg"]["PQ"] == 100.0
    with (
        refused(errno.EIO, "read", "png/17.png"),
        pytest.raises(InputError, match="png/17.png: cannot be read: Input/output error; check"),
    ):
        evaluate_files(*files)
    monkeypatch.setattr(from_files, "_run_worker", _die)
    with pytest.raises(InputError, match="has died.*--workers"):
        evaluate_files(*files)
