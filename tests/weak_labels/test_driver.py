# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The driver: same bytes for any number of workers, bad images skipped, deaths survived."""

import errno
import functools
import hashlib
import os
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
from helpers.refused import refused
from PIL import Image
from test_store import CATEGORIES, RECIPE, make_record

from wsis_d2.utils.cli import error_line
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.image_io import read_record
from wsis_d2.weak_labels import workers as processes
from wsis_d2.weak_labels.driver import plain_record, run, run_share
from wsis_d2.weak_labels.store import LabelStore
from wsis_d2.weak_labels.workers import Labels, describe_error


def label(record, bad=(), deadly=(), endless=(), slow=0.0):
    """Labels that depend on the image id alone."""
    assert "torch" not in sys.modules or "pytest" in sys.modules
    assert set(record) <= {
        "file_name", "image_id", "height", "width", "annotations", "image_tags", "crop_tags",
        "supervision",
    }  # fmt: skip
    time.sleep(slow)
    if record["image_id"] in bad:
        raise InputError(f"{record['file_name']}: cannot be read")
    if record["image_id"] in deadly:
        os.kill(os.getpid(), signal.SIGKILL)
    if record["image_id"] in endless:
        time.sleep(3600)
    rng = np.random.default_rng(record["image_id"])
    semantic = rng.integers(0, 3, (record["height"], record["width"])).astype(np.uint8)
    segments = [{"id": 1, "category_id": 1}, {"id": 2, "category_id": 2}]
    return Labels(semantic, semantic.astype(np.int32), segments, {"boxes": 1})


def make_worker(**kwargs):
    return functools.partial(label, **kwargs)


class Together:
    """Labels several records at once; notes which."""

    def __init__(self, notes, **kwargs):
        self.notes, self.alone = notes, functools.partial(label, **kwargs)

    def __call__(self, record):
        return self.alone(record)

    def batch(self, records):
        with open(self.notes, "a") as file:
            print(*(record["image_id"] for record in records), file=file)
        return [self.alone(record) for record in records]


def broken_worker():
    raise InputError("weights.pth: no such file")


def digest(path):
    files = sorted(
        p for part in ("panoptic", "semantic", "status") for p in (path / part).iterdir()
    )
    files.append(path / "panoptic.json")
    return [(p.name, hashlib.sha256(p.read_bytes()).hexdigest()) for p in files]


def create(path):
    return LabelStore.create(path, RECIPE, CATEGORIES)


def test_same_bytes_for_any_number_of_workers(tmp_path):
    records = [make_record(i) for i in range(6)]
    for workers in (1, 2):
        result = run(make_worker, records, create(tmp_path / str(workers)), workers=workers)
        assert (result.made, result.kept, result.failed) == (6, 0, {}) and result.exit_status == 0
    assert digest(tmp_path / "1") == digest(tmp_path / "2")


def test_processes_that_share_leave_the_bytes_of_one(tmp_path):
    records = [make_record(i) for i in range(7)]
    run(make_worker, records, create(tmp_path / "one"), workers=1)
    store = create(tmp_path / "shared")
    order = []

    def noting():
        return lambda record: order.append(record["image_id"]) or label(record)

    run_share(noting, records[:3], store, 1, 2)  # begins with its own, helps with the others
    assert order == [1, 0, 2]
    joined = LabelStore.open(tmp_path / "shared", writable=True)
    bad = functools.partial(make_worker, bad=(5,))
    run_share(bad, records, joined, 0, 2)
    assert [i for i in range(7) if joined.done(i)] == [0, 1, 2, 3, 4, 6]
    result = run(make_worker, records, joined, workers=1)
    assert (result.made, result.kept) == (1, 6)  # what failed is tried again, and then all is whole
    assert digest(tmp_path / "shared") == digest(tmp_path / "one")


def test_continues_and_redoes_what_changed(tmp_path):
    records = [make_record(i) for i in range(5)]
    assert run(make_worker, records, create(tmp_path), workers=1, limit=2).made == 2
    result = run(make_worker, records, create(tmp_path), workers=1)
    assert (result.made, result.kept) == (3, 2)
    records[4]["annotations"][0]["bbox"] = [0, 0, 2, 2]
    result = run(make_worker, records, create(tmp_path), workers=1)
    assert (result.made, result.kept) == (1, 4)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_image_is_named_counted_and_skipped(tmp_path, workers):
    records = [make_record(i) for i in range(4)]
    bad = functools.partial(make_worker, bad=(2,))
    store = create(tmp_path)
    result = run(bad, records, store, workers=workers)
    assert result.made == 3 and result.exit_status == 1
    assert result.failed == {2: "somewhere/2.jpg: cannot be read"} == store.failed
    assert LabelStore.open(tmp_path).manifest["summary"]["failed"] == 1
    result = run(make_worker, records, create(tmp_path), workers=workers)
    assert (result.made, result.kept, result.exit_status) == (1, 3, 0)


def test_a_record_that_kills_its_process_is_skipped(tmp_path):
    records = [make_record(i) for i in range(5)]
    deadly = functools.partial(make_worker, deadly=(1,))
    result = run(deadly, records, create(tmp_path), workers=2)
    assert list(result.failed) == [1] and "process died" in result.failed[1]
    assert result.made == 4


def test_a_record_that_never_ends_is_named_and_its_process_replaced(tmp_path):
    records = [make_record(i) for i in range(5)]
    endless = functools.partial(make_worker, endless=(1,))
    result = run(endless, records, create(tmp_path), workers=2, image_seconds=5)
    assert list(result.failed) == [1] and "longer than 5 seconds" in result.failed[1]
    assert "somewhere/1.jpg" in result.failed[1] and result.made == 4


def test_a_process_that_dies_between_two_records_costs_none(tmp_path, monkeypatch):
    made = []

    class Pool:
        """Its first one loses a process at work, its second one before it is given work."""

        def __init__(self, *_, **__):
            made.append(self)

        def submit(self, function, *args):
            future = Future()
            if function is processes._is_ready:
                future.set_result(True)
            elif len(made) == 1:
                future.set_exception(BrokenProcessPool())
            elif len(made) == 2:
                raise BrokenProcessPool
            else:
                future.set_result([None] * len(args[0]))
            return future

        def shutdown(self, **_):
            pass

    monkeypatch.setattr(processes, "ProcessPoolExecutor", Pool)
    store = LabelStore.create(tmp_path / "store", RECIPE, CATEGORIES)
    groups = [[make_record(1)], [make_record(2)]]
    found = [(r["image_id"], told) for r, told in processes.map_pool(None, groups, store, 2, 60)]
    assert sorted(found) == [(1, None), (2, None)] and len(made) == 3


def test_a_line_of_hostile_names_is_one_line_without_control_characters():
    error = InputError("a\x1b]0;title\x07\n.jpg: bad")
    line = describe_error({"image_id": 1, "file_name": "a\x1b]0;title\x07\n.jpg"}, error)
    assert line.isprintable() and "a\\x1b]0;title\\x07" in line


@pytest.mark.parametrize("workers", [1, 2])
def test_records_in_batches(tmp_path, workers):
    """A bad or deadly image of a batch is named, and the others keep their labels."""
    records = [make_record(i) for i in range(7)]
    run(make_worker, records, create(tmp_path / "alone"), workers=1)
    make = functools.partial(Together, tmp_path / "notes", bad=(2,))
    deadly = {"deadly": (4,)} if workers > 1 else {}
    result = run(
        functools.partial(make, **deadly), records, create(tmp_path / "b"), workers=workers, batch=3
    )
    notes = (tmp_path / "notes").read_text().split("\n")
    assert {"0 1 2", "3 4 5"} <= set(notes) and "6" not in notes
    assert set(result.failed) == ({2, 4} if deadly else {2})
    make = functools.partial(Together, tmp_path / "notes")
    result = run(make, records, create(tmp_path / "b"), workers=workers, batch=3)
    assert result.made == (2 if deadly else 1)
    assert digest(tmp_path / "b") == digest(tmp_path / "alone")
    shared = create(tmp_path / "shared")
    (tmp_path / "notes").unlink()
    run_share(make, records, shared, 1, 2, batch=3)
    assert (tmp_path / "notes").read_text().split("\n") == ["1 3 5", "2 0 6", ""]
    run(make, records, shared, workers=1, batch=3)
    assert digest(tmp_path / "shared") == digest(tmp_path / "alone")


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_that_cannot_start_stop_the_run(tmp_path, workers):
    with pytest.raises(InputError, match="weights.pth"):
        run(broken_worker, [make_record(i) for i in range(3)], create(tmp_path), workers=workers)


def worker_on_a_full_disk():
    """Of a limit for this process, so that it reaches those of a pool too."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    return label


@pytest.mark.parametrize("workers", [1, 2])
def test_a_store_that_cannot_be_written_stops_the_run(tmp_path, workers):
    """Else each of thousands of images would be computed and thrown away."""
    records = [make_record(i) for i in range(4)]
    store = create(tmp_path / "store")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(OSError) as error:
            run(worker_on_a_full_disk, records, store, workers=workers)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    line = error_line(error.value)
    assert "store/semantic/0000000000" in line and "File too large; free some space" in line
    assert not any(store.done(i) for i in range(4)) and store.failed == {}
    result = run(make_worker, records, create(tmp_path / "store"), workers=1)
    assert (result.made, result.failed) == (4, {})
    run(make_worker, records, create(tmp_path / "whole"), workers=1)
    assert digest(tmp_path / "store") == digest(tmp_path / "whole")


def reads_with_little_memory():
    used = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20),) * 2)
    return lambda record: read_record(record) is None or label(record)


def test_an_image_too_large_for_the_memory_is_named_and_the_others_are_made(tmp_path):
    records = []
    for image_id, side in enumerate((8, 9000, 8)):
        path = tmp_path / f"{image_id}.png"
        Image.new("1", (side, side)).save(path)
        records.append({**make_record(image_id), "file_name": str(path), "height": side,
                        "width": side})  # fmt: skip
    result = run(reads_with_little_memory, records, create(tmp_path / "store"), workers=2)
    assert result.made == 2 and list(result.failed) == [1]
    assert "1.png: cannot be read: Cannot allocate memory; use fewer --workers" in result.failed[1]


def test_a_picture_that_cannot_be_read_leaves_no_label_without_its_digest(tmp_path):
    """As labels merged of others', for which no pixel of it is needed."""
    path = tmp_path / "a.png"
    path.write_bytes(b"a picture")
    record = {**make_record(1), "file_name": str(path)}
    store = create(tmp_path / "store")
    with refused(errno.EACCES, "read", path):
        result = run(make_worker, [record], store, workers=1)
        assert str(path) in result.failed[1] and not store.done(1)
    assert run(make_worker, [record], create(tmp_path / "store"), workers=1).made == 1
    with refused(errno.EACCES, "read", path):
        assert store.done(1, record)  # nothing says that it is another
    path.write_bytes(b"another picture")
    assert not store.done(1, record)


def test_workers_must_be_positive(tmp_path):
    with pytest.raises(InputError, match="--workers 0"):
        run(make_worker, [make_record(1)], create(tmp_path), workers=0)


def test_no_field_of_a_mask_reaches_a_worker():
    record = make_record(1) | {"pan_seg_file_name": "truth.png", "segments_info": [{"id": 1}]}
    record["annotations"][0]["segmentation"] = [[0, 0, 1, 1, 2, 2]]
    plain = plain_record(record)
    assert "pan_seg_file_name" not in plain and "segments_info" not in plain
    assert set(plain["annotations"][0]) == {"bbox", "bbox_mode", "category_id", "iscrowd"}


_IMPORTED_FROM = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
_RUN = """
import sys, functools
sys.path[:0] = {tests!r}
from test_driver import *
if __name__ == "__main__":
    run(functools.partial(make_worker, slow=0.1), [make_record(i) for i in range(12)],
        create({path!r}), workers=2)
"""


@pytest.mark.long
def test_kill_and_continue_gives_the_same_bytes(tmp_path):
    script = tmp_path / "run.py"
    path = tmp_path / "killed"
    script.write_text(_RUN.format(tests=_IMPORTED_FROM, path=str(path)))
    process = subprocess.Popen([sys.executable, str(script)], start_new_session=True)
    deadline = time.monotonic() + 120
    while len(list(path.glob("status/*.json"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run([sys.executable, str(script)], check=True)
    records = [make_record(i) for i in range(12)]
    run(make_worker, records, create(tmp_path / "whole"), workers=1)
    assert digest(path) == digest(tmp_path / "whole")


@pytest.mark.long
def test_two_ray_nodes_give_the_same_bytes(tmp_path):
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    try:
        cluster.wait_for_nodes()
        records = [make_record(i) for i in range(6)]
        bad = functools.partial(make_worker, bad=(2,))
        ray.init(
            address=cluster.address,
            runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(_IMPORTED_FROM)}},
        )
        result = run(bad, records, create(tmp_path / "ray"), ray_address=cluster.address)
        assert result.made == 5 and list(result.failed) == [2]
        run(bad, records, create(tmp_path / "here"), workers=1)
        assert digest(tmp_path / "ray") == digest(tmp_path / "here")
    finally:
        ray.shutdown()
        cluster.shutdown()
