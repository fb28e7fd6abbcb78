# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Files that cannot be written or read: what was there stays, nothing half is left, one line tells.

A limit on the size of files makes every write fail that goes on above it, as on a full disk; other
errors come from a hook.
"""

import contextlib
import errno
import resource

import numpy as np
import pytest
import torch
from helpers.refused import refused

from wsis_d2.checkpoint.checkpointer import RunCheckpointer
from wsis_d2.data.datasets.builtin.preparation import Converted, ImageJob, Preparation
from wsis_d2.data.panoptic_format import write_panoptic_png
from wsis_d2.evaluation.results import make_meta, write_results_json
from wsis_d2.report.html import write_report
from wsis_d2.utils.cli import error_line
from wsis_d2.utils.files import write_bytes
from wsis_d2.utils.json_io import write_json
from wsis_d2.weak_labels.store import LabelStore

LIMIT = 4096
CATEGORIES = [{"id": 1, "name": "cow", "isthing": 1, "color": [1, 2, 3]}]


@contextlib.contextmanager
def full_disk():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def checkpoint(folder, seed):
    torch.manual_seed(seed)
    RunCheckpointer(torch.nn.Linear(90, 90), str(folder)).save("model_0000001")


def store(folder, seed):
    record = {"image_id": 1, "file_name": "a.png", "height": 90, "width": 90, "annotations": []}
    found = LabelStore.create(folder / "store", {"kind": "boxes"}, CATEGORIES)
    semantic = np.where(noise(seed, 90, 90) > 128, 255, 0).astype(np.uint8)
    ids = noise(seed, 90, 90).astype(np.int32)
    segments = [{"id": k, "category_id": 0} for k in range(1, 256)]
    found.write(record, semantic, ids, segments)
    found.finish()


def report(folder, seed):
    layers = {"image": noise(seed, 90, 90, 3)}
    write_report(folder / "page.html", f"page {seed}", [{"name": "a", "layers": layers}])


def results(folder, seed):
    meta = make_meta(supervision="weak", dataset="a", seed=seed)
    values = {f"IoU-{k}": seed + k / 7 for k in range(300)}
    write_results_json(folder / "results.json", "weak", {"sem_seg": values}, meta)


def convert(job):
    entry = {"id": job.image_id, "file_name": "a.png", "height": 90, "width": 90}
    segments = [{"id": k, "category_id": 1, "iscrowd": 0} for k in range(1, 256)]
    return Converted(entry, [], [], segment_ids=noise(job.data, 90, 90).astype(int),
                     segments=segments)  # fmt: skip


def preparation(folder, seed):
    made = Preparation(folder, categories=CATEGORIES, recipe={"seed": seed}, command="prepare")
    lines = made.convert([ImageJob("a", (), seed)], convert, folder="panoptic", desc="a")
    made.write_split("train", list(lines.values()), folder="panoptic")


WRITERS = {
    "bytes": lambda folder, seed: write_bytes(folder / "a", noise(seed, 9000).tobytes()),
    "json": lambda folder, seed: write_json(folder / "a.json", noise(seed, 9000).tolist()),
    "png": lambda folder, seed: write_panoptic_png(
        folder / "a.png", noise(seed, 90, 90).astype(int)
    ),
    "checkpoint": checkpoint,
    "label store": store,
    "report": report,
    "results": results,
    "preparation": preparation,
}


def content(folder):
    return {
        p.relative_to(folder): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.name != ".lock"
    }


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("earlier", [False, True])
def test_a_full_disk_leaves_what_was_there_and_tells_in_one_line(tmp_path, name, earlier):
    folder, other = tmp_path / "a", tmp_path / "b"
    folder.mkdir()
    other.mkdir()
    if earlier and name not in ("label store", "preparation"):  # which continue, not replace
        WRITERS[name](folder, 1)
    before = content(folder)
    with full_disk(), pytest.raises((OSError, ValueError)) as error:
        WRITERS[name](folder, 2)
    line = error_line(error.value)
    assert line and line.isprintable(), error.value
    after = content(folder)
    assert not [p for p in after if p.suffix == ".tmp"]
    assert {p: after.get(p) for p in before} == before
    WRITERS[name](folder, 2)
    WRITERS[name](other, 2)
    found, wanted = content(folder), content(other)
    assert found.keys() == wanted.keys()
    if name != "checkpoint":  # which also holds where it lies
        assert found == wanted


CODES = (errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EMFILE)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("earlier", [False, True])
def test_permission_lost_at_any_moment(tmp_path, name, earlier):
    replaces = earlier and name not in ("label store", "preparation")
    kinds = "write rename mkdir"
    (tmp_path / "whole").mkdir()
    if replaces:
        WRITERS[name](tmp_path / "whole", 1)
    with refused(0, kinds, tmp_path) as asked:
        WRITERS[name](tmp_path / "whole", 2)
    wanted = content(tmp_path / "whole")
    made, ended = set(), 0
    for begin, (kind, path) in enumerate(asked):
        if kind == "mkdir" and path in made:
            continue  # is there: whether it could be made does not matter
        made.add(path)
        folder = tmp_path / f"from_{begin}"
        folder.mkdir()
        if replaces:
            WRITERS[name](folder, 1)
        before = content(folder)
        code = CODES[begin % len(CODES)]
        # Pictures and page of a report are two renames: what is refused for ever cannot be undone.
        times = 1 if name == "report" else len(asked)
        try:
            with refused(code, kinds, folder, begin, times):
                WRITERS[name](folder, 2)
        except (OSError, ValueError) as error:
            line, ended = error_line(error), ended + 1
            assert line and line.isprintable() and str(folder) in line and "~" not in line, error
            assert "; " in line and "then run the same command again" in line
            after = content(folder)
            assert not [p for p in after if p.suffix == ".tmp"]
            if name != "checkpoint":  # whose two files are each whole
                assert {p: after.get(p) for p in before} == before
        WRITERS[name](folder, 2)
        found = content(folder)
        assert found.keys() == wanted.keys()
        if name != "checkpoint":  # which also holds where it lies
            assert found == wanted
    assert ended > 1


def test_a_write_that_names_no_file_is_told_too():
    line = error_line(OSError(errno.ENOSPC, "No space left on device"))
    assert line.startswith("No space left on device; ") and "same command" in line
    assert error_line(OSError("a bug")) is None
