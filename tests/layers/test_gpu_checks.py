# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""What tests/gpu/run_checks.py does apart from the GPU's work: each minute on one is scarce."""

import argparse
import json
import sys
import time
from pathlib import Path

import pytest
from gpu import run_checks

from wsis_d2.layers._extension import extension_error


@pytest.mark.skipif(extension_error() is not None, reason="operators are not built")
def test_the_benchmark_runs_as_far_as_a_cpu_goes(tmp_path):
    report = run_checks.Report(tmp_path / "benchmark.json")
    run_checks.benchmark(report, argparse.Namespace(dry_run=True, image=[]))
    assert len(report.rows) == 2
    assert all(outcome == "ok" for _, outcome, _ in report.rows), report.rows


def test_rows_are_kept_as_they_come(tmp_path):
    report = run_checks.Report(tmp_path / "phase.json")
    report.check("one", lambda: "fine")
    assert json.loads((tmp_path / "phase.json").read_text())[0][:2] == ["one", "ok"]
    report.check("two", lambda: 1 / 0)
    assert json.loads((tmp_path / "phase.json").read_text())[1][:2] == ["two", "FAIL"]


def test_a_phase_that_takes_too_long_is_told(tmp_path):
    assert run_checks.run_limited(["sleep", "600"], tmp_path / "log", 0.05) is None
    assert run_checks.run_limited(["false"], tmp_path / "log", None) == 1


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_nothing_outlives_its_phase(tmp_path):
    number = tmp_path / "pid"
    command = ["sh", "-c", f"sleep 600 & echo $! > {number}"]
    assert run_checks.run_limited(command, tmp_path / "log", None) == 0
    stat = Path(f"/proc/{number.read_text().strip()}/stat")
    for _ in range(200):  # being ended takes a moment
        if not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("the phase's child still runs")


def test_a_phase_that_breaks_off_fails_and_keeps_its_rows(tmp_path, monkeypatch):
    broken = """
import json, sys
from pathlib import Path
folder = Path(sys.argv[sys.argv.index("--output") + 1])
(folder / "step.json").write_text(json.dumps([["one", "ok", ""]]))
sys.exit(3)
"""
    script = tmp_path / "broken.py"
    script.write_text(broken)
    monkeypatch.setattr(run_checks, "PHASES", {"step": 60})
    monkeypatch.setattr(run_checks, "__file__", str(script))
    monkeypatch.setattr(sys, "argv", ["run_checks.py", "--output", str(tmp_path)])
    args = argparse.Namespace(output=tmp_path, dry_run=True)
    assert run_checks.run_all(args) == 1
    table = (tmp_path / "table.md").read_text()
    assert "| step | one | ok |" in table and "did not end" in table
