# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""What the system refuses is told with its name and what helps, and is never taken for nothing."""

import errno
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from helpers.load_tool import load_tool
from helpers.refused import refused
from PIL import Image
from torch._utils import ExceptionWrapper

from wsis_d2.checkpoint.checkpointer import RunCheckpointer
from wsis_d2.data.importers.files import annotation_files
from wsis_d2.data.importers.image_index import ImageIndex
from wsis_d2.engine.jobs import Job, run_jobs
from wsis_d2.utils.cli import error_line, main_with_errors
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.files import check_writable, list_files
from wsis_d2.utils.image_io import read_label_png, read_picture
from wsis_d2.utils.json_io import read_json
from wsis_d2.utils.matlab import read_matlab


@pytest.fixture
def tree(tmp_path):
    for name in ("a.png", "b.txt", "x/c.png", "x/y/d.png", "x/y/z/e.png", "w/f.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / name, format="PNG")
    (tmp_path / "link").symlink_to(tmp_path / "x")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    return tmp_path


@pytest.mark.parametrize("pattern", ["*.png", "*/*.png", "x/*/*.png", "no/*", "b.txt/*"])
def test_files_are_those_that_pathlib_finds(tree, pattern):
    assert list_files(tree, pattern) == sorted(p for p in tree.glob(pattern) if p.is_file())


def test_files_at_any_depth(tree):
    found = [os.path.join(folder, n) for folder, _, names in os.walk(tree) for n in names]
    wanted = [f for f in found if f.endswith(".png") and os.path.isfile(f)]
    assert list(map(str, list_files(tree, "**/*.png"))) == sorted(wanted)


READERS = {
    "a folder": (lambda p: list_files(p, "**/*.png"), "x/y"),
    "annotation files": (lambda p: [*annotation_files(p, ".png")], "x/y"),
    "images": (ImageIndex, "x/y"),
    "picture": (lambda p: read_picture(p / "x" / "c.png"), "x/c.png"),
    "labels": (lambda p: read_label_png(p / "x" / "c.png"), "x/c.png"),
    "json": (lambda p: read_json(p / "b.txt"), "b.txt"),
    "matlab": (lambda p: read_matlab(p / "b.txt", ["a"]), "b.txt"),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE, errno.EMFILE])
def test_what_cannot_be_read_is_not_taken_for_missing_or_broken(tree, name, code):
    read, where = READERS[name]
    with refused(code, "read list", tree / where), pytest.raises((OSError, InputError)) as error:
        read(tree)
    line = error_line(error.value)
    assert where in line and os.strerror(code) in line and "then run the same command" in line
    assert "delete" not in line and "copy" not in line


def test_a_folder_of_the_file_system_itself_is_passed_over(tree):
    (tree / "lost+found").mkdir()
    with refused(errno.EACCES, "list", "lost+found"):
        assert len(list_files(tree, "**/*.png")) == 5  # the link that leads nowhere is no file
        assert len(ImageIndex(tree).paths) == 6


def test_an_unreadable_checkpoint_is_not_passed_over_for_an_older_one(tmp_path):
    checkpointer = RunCheckpointer(torch.nn.Linear(2, 2), str(tmp_path))
    for name, time in (("model_0000001", 1), ("model_0000002", 2)):
        checkpointer.save(name, trainer={})
        os.utime(tmp_path / f"{name}.pth", (time, time))
    (tmp_path / "last_checkpoint").unlink()
    assert checkpointer.find_last()[0].name == "model_0000002.pth"
    with refused(errno.EACCES, "read", "model_0000002"), pytest.raises(OSError) as error:
        checkpointer.find_last()
    assert "model_0000002.pth: Permission denied; " in error_line(error.value)
    with refused(errno.EACCES, "list", tmp_path), pytest.raises(PermissionError):
        checkpointer.find_last()  # a run that is not seen would start over


def test_a_job_of_which_the_stamp_cannot_be_read_is_not_done_again(tmp_path, monkeypatch):
    job = Job("a", [sys.executable, "-c", "open('ran', 'a').write('x')"])
    monkeypatch.chdir(tmp_path)
    run_jobs([job], tmp_path, workers=1, say=str)
    with refused(errno.EACCES, "read", "a.done"), pytest.raises(PermissionError):
        run_jobs([job], tmp_path, workers=1, say=str)
    run_jobs([job], tmp_path, workers=1, say=str)
    assert (tmp_path / "ran").read_text() == "x"


def test_an_error_out_of_a_data_loader_is_told_like_any_other():
    try:
        raise PermissionError(errno.EACCES, "Permission denied", "/data/a.png")
    except PermissionError as error:
        wanted = error_line(error)
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(OSError) as error:
        wrapped.reraise()
    assert error_line(error.value) == wanted and wanted.startswith("/data/a.png: Permission denied")


@pytest.mark.parametrize(
    "error,told",
    [
        (FileNotFoundError(errno.ENOENT, "No usable temporary directory"), "No usable temporary"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "fewer --workers"),
        (MemoryError("Unable to allocate 9 GiB"), "Unable to allocate 9 GiB; use fewer --workers"),
        (PermissionError(errno.EACCES, "Permission denied", b"events.1"), "events.1: Permission"),
    ],
)
def test_other_refusals_are_one_line(capsys, error, told):
    def main(argv):
        raise error

    with pytest.raises(SystemExit) as left:
        main_with_errors(main, [])
    said = capsys.readouterr().err
    assert left.value.code == 2 and said.count("\n") == 1 and told in said


def test_a_thread_that_the_system_refuses_something_leaves_no_traceback(capsys, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)

    def main(argv):
        for error in (OSError(errno.EROFS, "Read-only file system", "events"), KeyError("a bug")):
            thread = threading.Thread(target=fails, args=(error,))
            thread.start()
            thread.join()

    def fails(error):
        raise error

    with pytest.raises(SystemExit):
        main_with_errors(main, [])
    first, rest = capsys.readouterr().err.split("\n", 1)
    assert first.startswith("warning: events: Read-only file system; ")
    assert rest.count("Traceback") == 1 and "a bug" in rest


def test_what_is_written_last_is_tried_first(tmp_path, capsys):
    """Nothing is computed for a file that cannot be written; inputs that are missing show that."""
    (tmp_path / "file").write_text("in the way")
    there = {p.name for p in tmp_path.iterdir()}
    gone = tmp_path / "gone"
    for name, arguments in {
        "evaluate_panoptic": ["--pred-json", gone, "--pred-dir", gone, "--gt-json", gone,
                              "--gt-dir", gone],
        "evaluate_labels": ["--store", gone, "--gt-json", gone, "--gt-dir", gone],
        "export_model": ["--model", gone],
        "train_contours": ["--photographs", gone],
        "benchmark": ["--config-file", gone],
        "import_annotations": ["coco", "--annotations", gone, "--images", gone],
    }.items():  # fmt: skip
        output = tmp_path / "file" / "result.pt2"
        with pytest.raises(SystemExit) as left:
            main_with_errors(load_tool(name).main, [*map(str, arguments), "--output", str(output)])
        lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
        assert left.value.code == 2 and len(lines) == 1 and "file" in lines[0], (name, lines)
        assert "gone" not in lines[0], (name, lines)
    with pytest.raises(IsADirectoryError):
        check_writable(tmp_path)
    check_writable(tmp_path / "a.json")
    assert {p.name for p in tmp_path.iterdir()} == there


def test_compiled_code_needs_no_folder_to_be_kept_in():
    """As in a container without a home folder, with the package installed by root."""
    nowhere = {"HOME": os.devnull, "XDG_CACHE_HOME": f"{os.devnull}/cache", "TMPDIR": os.devnull}
    code = (
        "import numpy as np; from wsis_d2.weak_labels.proposals.grouping import _children;"
        "print(_children(np.array([3, 3, 4, 4]), 3).tolist())"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], text=True, capture_output=True, check=False,
        env={**os.environ, **nowhere, "WSIS_D2_NO_REGISTER": "1",
             "NUMBA_CACHE_LOCATOR_CLASSES": "UserWideCacheLocator"},
    )  # fmt: skip
    assert found.stdout == "[[0, 1], [2, 3]]\n", found.stderr


def test_a_cache_of_compiled_code_that_is_refused_or_cut_off_costs_nothing(tmp_path, monkeypatch):
    numba = pytest.importorskip("numba")
    from wsis_d2.weak_labels.proposals.compiled import njit

    monkeypatch.setattr(numba.core.config, "CACHE_DIR", str(tmp_path))

    def twice(x):
        return 2 * x

    with refused(errno.EDQUOT, "write", ".nbi"):
        assert njit()(twice)(3) == 6
    assert njit()(twice)(3) == 6
    (index,) = tmp_path.rglob("*.nbi")
    with refused(errno.EACCES, "read", ".nbi"):
        assert njit()(twice)(3) == 6
    index.write_bytes(index.read_bytes()[:-9])
    assert njit()(twice)(3) == 6
