# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Kill an iterative run with signal 9 at random moments: it ends with the same labels."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.iterative_data import label_bytes, make_run

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 2
KILLS = 10


def start(config: Path, output: Path, log: Path, *arguments: str) -> subprocess.Popen:
    command = [
        sys.executable, str(ROOT / "tools/train_iterative.py"), "--config-file", str(config),
        "--rounds", str(ROUNDS), *arguments, "OUTPUT_DIR", str(output), "SOLVER.MAX_ITER", "12",
        "SOLVER.CHECKPOINT_PERIOD", "3", "REFINE.ENABLED", "True", "REFINE.ITERATIONS", "2",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with open(log, "wb") as file:
        return subprocess.Popen(
            command, stdout=file, stderr=file, env=environment, start_new_session=True
        )


def checkpoint_iteration(folder: Path) -> int:
    """Iterations that the last checkpoint of a round's folder holds; 0 without one."""
    try:
        name = (folder / "last_checkpoint").read_text().strip()
    except FileNotFoundError:
        return 0
    if name == "model_final.pth":
        return 12
    found = re.fullmatch(r"model_(\d+)\.pth", name)
    return int(found[1]) + 1 if found else 0


@pytest.mark.long
@pytest.mark.parametrize("processes", ["1", "2"])
def test_ten_kills_change_no_byte_of_the_labels(tmp_path, processes):
    config = make_run(tmp_path, "iterative_kill_test", images=6)
    began = time.monotonic()
    log = tmp_path / "whole.log"
    many = ("--num-gpus", processes)
    whole = start(config, tmp_path / "whole", log, *many)
    assert whole.wait(timeout=900) == 0, log.read_text()[-3000:]
    pace = Pace(time.monotonic() - began)
    expected = label_bytes(tmp_path / "whole")
    assert len(expected) >= ROUNDS * (3 * 6 + 2)
    generator = random.Random(0)
    stages: list[str] = []  # where each kill hit
    run = 0
    while len(stages) < KILLS:  # a run that ends early is followed by another
        run += 1
        killed = tmp_path / f"killed_{run}"
        finish_under_kills(config, killed, many, pace, generator, stages)
        found = label_bytes(killed)
        assert found.keys() == expected.keys()
        assert [path for path in expected if found[path] != expected[path]] == [], stages


def finish_under_kills(
    config: Path,
    run: Path,
    many: tuple[str, ...],
    pace: "Pace",
    generator: random.Random,
    stages: list[str],
) -> None:
    """Start a run again and again, killing it until there are enough kills; return at its end."""
    while True:
        state = read_state(run)
        before = {n: checkpoint_iteration(run / f"round_{n}") for n in range(ROUNDS)}
        log = run.with_suffix(".log")
        process = start(config, run, log, "--resume", *many)
        limit = 900.0
        if len(stages) < KILLS:
            wait_for_work(process, log)  # starting Python takes a good part of a short run
            limit = pace.seconds * generator.random()
        try:
            status = process.wait(timeout=limit)
            pace.seconds *= 0.8  # too fast for us: the machine has become less busy
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
            process.wait()
            status = None
        text = log.read_text(errors="replace")
        begun = re.search(r"Starting training from iteration (\d+)", text)
        if begun and state is not None and state["stage"] == "train":
            # It goes on at the last checkpoint, so no more than the period is done again.
            assert int(begun[1]) >= before[state["round"]], text[-2000:]
        if status is not None:
            assert status == 0, text[-3000:]
            return
        after = read_state(run) or {"round": 0, "stage": "start"}
        stages.append(f"{after['round']}:{after['stage']}")


class Pace:
    """About how long a run works, in seconds; adapted as a busy machine's speed changes."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


def wait_for_work(process: subprocess.Popen, log: Path) -> None:
    """Wait until a run says which stage it is at, or has ended."""
    while process.poll() is None and b"relabeling.rounds]: round" not in log.read_bytes():
        time.sleep(0.05)


def read_state(run: Path) -> dict | None:
    """The state that a run left, None before its first."""
    try:
        return json.loads((run / "state.json").read_text())
    except FileNotFoundError:
        return None
