# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""results.json: layout, merging, ratios, and what is refused."""

import json
import math
import subprocess
from pathlib import Path

import pytest

from wsis_d2.evaluation import (
    copy_paste_rows,
    make_meta,
    merge_results_json,
    read_results_json,
    write_results_json,
)
from wsis_d2.evaluation import results as results_module
from wsis_d2.utils.errors import InputError


def results(pq: float) -> dict:
    return {
        "panoptic_seg": {"PQ": pq, "PQ_th": math.nan, "PQ-car": 1.0},
        "apr": {"APr_vol": 2 * pq},
        "sem_seg": {"mIoU": 80.0},
    }


def meta(supervision: str) -> dict:
    return make_meta(supervision=supervision, dataset="sample_val_full", seed=1, seconds=2.5)


def test_layout_merging_and_ratios(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_results_json(path, "weak", results(40.0), meta("weak"))
    assert json.loads(path.read_text())["ratios"] == {}
    write_results_json(path, "full", results(50.0), meta("full"))
    data = json.loads(path.read_text())
    assert data["schema"] == 1
    assert set(data["runs"]) == {"weak", "full"}
    run = data["runs"]["weak"]
    assert run["panoptic_seg"] == {"PQ": 40.0, "PQ_th": None, "PQ-car": 1.0}
    assert run["meta"] == {
        "supervision": "weak", "dataset": "sample_val_full", "variant": "main", "seed": 1,
        "config": None, "commit": None, "device": "cpu", "seconds": 2.5,
    }  # fmt: skip
    assert data["ratios"] == {"PQ": 80.0, "APr_vol": 80.0, "mIoU": 100.0}
    # A run of the same name is replaced, the other stays.
    write_results_json(path, "weak", results(45.0), meta("weak"))
    assert read_results_json(path)["ratios"]["PQ"] == pytest.approx(90.0)
    assert list(tmp_path.iterdir()) == [path]


def test_a_ratio_of_two_data_sets_is_told(tmp_path: Path, caplog) -> None:
    path = tmp_path / "results.json"
    twin = make_meta(supervision="weak", dataset="sample_val_weak")
    write_results_json(path, "full", results(50.0), meta("full"))
    write_results_json(path, "weak", results(40.0), twin)
    assert not caplog.records
    write_results_json(path, "weak", results(40.0), {**twin, "dataset": "sample_train"})
    assert "run weak on sample_train with run full on sample_val" in caplog.text


def test_merging_files(tmp_path: Path) -> None:
    for name, pq in (("weak", 40.0), ("full", 50.0)):
        write_results_json(tmp_path / f"{name}.json", name, results(pq), meta(name))
    merged = merge_results_json(
        [tmp_path / "weak.json", tmp_path / "full.json"], tmp_path / "all.json"
    )
    assert set(merged["runs"]) == {"weak", "full"} and merged["ratios"]["PQ"] == 80.0
    assert read_results_json(tmp_path / "all.json") == merged


def test_a_run_that_replaces_another_is_told(tmp_path: Path, caplog) -> None:
    for file, pq in (("a", 40.0), ("same", 40.0), ("b", 50.0)):
        write_results_json(tmp_path / f"{file}.json", "weak", results(pq), meta("weak"))
    paths = [tmp_path / f"{file}.json" for file in ("a", "same", "b")]
    merged = merge_results_json(paths, tmp_path / "all.json")
    assert merged["runs"]["weak"]["panoptic_seg"]["PQ"] == 50.0
    (line,) = caplog.messages
    assert line.endswith("b.json: run weak replaces another of that name")


@pytest.mark.parametrize("text, message", [
    ("{", "no valid JSON"),
    ("[]", "schema 'list'"),
    ('{"schema": 2, "runs": {}}', "schema 2, expected 1"),
    ('{"schema": 1}', "no 'runs'"),
    ('{"schema": 1, "runs": {"weak": {"panoptic_seg": {}}}}', "run 'weak' has no 'apr'"),
])  # fmt: skip
def test_other_files_are_refused_and_left_alone(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        write_results_json(path, "weak", results(1.0), meta("weak"))
    assert path.read_text() == text


def test_meta_is_checked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'none'"):
        make_meta(supervision="none", dataset="x")
    with pytest.raises(InputError, match="lacks commit, device"):
        lacking = {k: v for k, v in meta("weak").items() if k not in ("commit", "device")}
        write_results_json(tmp_path / "r.json", "weak", results(1.0), lacking)


def test_copy_paste_rows_leave_classes_out() -> None:
    assert copy_paste_rows(results(40.0))[:2] == [
        "copypaste: panoptic_seg: PQ,PQ_th",
        "copypaste: panoptic_seg: 40.0000,",
    ]


def test_the_commit_is_that_of_the_package_alone(tmp_path: Path, monkeypatch) -> None:
    """Installed in the .venv of somebody's own checkout, the package is at none of its commits."""

    def git(*arguments: str) -> str:
        name = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", "-C", str(tmp_path), *name, *arguments], check=True,
                              capture_output=True, text=True).stdout.strip()  # fmt: skip

    module = tmp_path / ".venv" / "wsis_d2" / "evaluation" / "results.py"
    module.parent.mkdir(parents=True)
    module.touch()
    (tmp_path / "mine.py").touch()
    git("init", "-q")
    git("add", "mine.py")
    git("commit", "-qm", "Mine")
    monkeypatch.setattr(results_module, "__file__", str(module))
    assert results_module.git_commit() is None
    git("add", "-f", str(module))
    git("commit", "-qm", "The package too")
    assert results_module.git_commit() == git("rev-parse", "HEAD")
