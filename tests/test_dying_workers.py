# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Processes of a pool that die, as on a machine out of memory, end their command in one line.

Label making goes on without the image instead (tests/weak_labels/test_driver.py).
"""

import json
import os
import signal

import numpy as np
import pytest

from wsis_d2.data.datasets.builtin.preparation import Converted, ImageJob, Preparation
from wsis_d2.data.panoptic_format import write_panoptic_png
from wsis_d2.evaluation import from_files
from wsis_d2.evaluation.from_files import FileOptions, evaluate_files
from wsis_d2.utils.errors import InputError

CATEGORIES = [{"id": 1, "name": "cow", "isthing": 1}]


def convert(job):
    if job.data == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
    entry = {"id": job.image_id, "file_name": f"{job.image_id}.png", "height": 1, "width": 1}
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
    monkeypatch.setattr(from_files, "_run_worker", _die)
    with pytest.raises(InputError, match="has died.*--workers"):
        evaluate_files(*files)
