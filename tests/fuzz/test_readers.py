# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""No damaged file ends a reader in a traceback: the quick part, and a minute for each reader."""

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, seed, settings
from hypothesis import strategies as st

from fuzz.readers import IN_C, READERS, attempt

HERE = Path(__file__).parent
# What once ended in a traceback, took gigabytes or did not end: bytes for the harness. They mean
# something else when its sound file changes: what was found before has a test of the reader then.
FINDINGS: dict[str, list[str]] = {
    "checkpoint_pkl": ["4fcdfb022106758565f269bc4209"],
    "panoptic_picture": ["93fb39ca126b5ed9f1d9d76edd6fd8"],
    "checkpoint_pth": ["d03c49", "4a58b791df6af1d8cd"],
    "store_files": ["e68276e4dc7563d4d8936315da215f04188f97", "6d0489d2bdf912ec717c47ca2260"],
    "round_state": ["def88d860e06d4c7d5da38322d094c0e8792"],
    "results": ["d3261c3e25b50b069c"],
    "tags_csv": ["573a1ca8c8164eb2059316e00ed13e9992239d6391bff936329eac921f8bddf7c261f1e936"],
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(READERS))
def test_a_sound_file_is_taken(name):
    if name not in IN_C:
        assert attempt(name, b"")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(FINDINGS))
def test_findings_stay_corrected(name):
    for data in FINDINGS[name]:
        attempt(name, bytes.fromhex(data))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(READERS.keys() - set(IN_C)))
def test_damaged_files_are_refused_in_one_line(name):
    @seed(0)
    @settings(
        max_examples=60, deadline=None, database=None, derandomize=False,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.binary(min_size=1, max_size=32))
    @example(b"\0")
    def check(data):
        attempt(name, data)

    check()


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(READERS))
def test_a_minute_of_damaged_files(name):
    """In a process of its own, whose memory and time are watched."""
    command = [sys.executable, str(HERE / "run.py"), name, "--seconds", "60"]
    if importlib.util.find_spec("atheris") is not None:
        command.append("--atheris")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path])}
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:  # atheris leaves what it has made
        environment["TMPDIR"] = folder
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if name in IN_C and done.returncode < 0:
        pytest.skip(f"it ended by signal {-done.returncode}: see SECURITY.md")
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
