# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Commands ended by signals at random moments: run again, they leave what others leave.

Iterative training, the preparation of VOC and label processes have tests of their own.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
from helpers.load_tool import ROOT

KILLS = int(os.environ.get("WSIS_D2_TEST_KILLS", 10))

pytestmark = pytest.mark.long


def commands(tiny, out):
    data, images = tiny.data / "weak_train.json", tiny.data / "images" / "train"
    own = ["--annotations", data, "--images", images]
    pred = tiny.run / "inference" / "sample_val_full" / "panoptic_pred.json"
    truth = tiny.data / "panoptic_val.json"
    overrides = [
        "DATASETS.OWN", [{"name": "kills", "json": str(data), "images": str(images),
                          "labels": str(tiny.store)}],
        "DATASETS.TRAIN", "('kills',)", "DATASETS.TEST", "()", "OUTPUT_DIR", out,
        "SOLVER.MAX_ITER", 6, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.CHECKPOINT_PERIOD", 1,
        "SEED", 1, "DATALOADER.NUM_WORKERS", 1,
    ]  # fmt: skip
    config = ROOT / "configs" / "Sample-Panoptic" / "tiny_semantic.yaml"
    return {
        "make_weak_labels": ["tools/make_weak_labels.py", "boxes", *own, "--workers", 2, "--output",
                             out],
        "evaluate_panoptic": ["tools/evaluate_panoptic.py", "--pred-json", pred, "--pred-dir",
                              pred.with_suffix(""), "--gt-json", truth, "--gt-dir",
                              truth.with_suffix(""), "--workers", 2, "--output",
                              out / "results.json"],
        "report": ["tools/report.py", "labels", *own, "--store", tiny.store, "--output",
                   out / "page.html"],
        "prepare_sample": ["datasets/prepare_sample.py", "--output", out, "--train", 12, "--val",
                           6],
        "train_net": ["tools/train_net.py", "--config-file", config, "--resume", *overrides],
    }  # fmt: skip


def start(command):
    return subprocess.Popen(
        [sys.executable, str(ROOT / command[0]), *map(str, command[1:])],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def group_members(group):
    """Processes of a command's group that still run."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = open(f"/proc/{entry}/stat").read().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(entry))
    return found


def result(name, out):
    """The bytes of what a command is for."""
    if name == "train_net":
        import torch

        state = torch.load(out / "model_final.pth", weights_only=True)["model"]
        return {key: value.numpy().tobytes() for key, value in state.items()}
    found = {}
    for path in out.rglob("*"):
        relative = str(path.relative_to(out))
        if path.is_file() and not relative.startswith((".lock", ".tmp", ".cache")):
            found[relative] = path.read_bytes()
    if name == "evaluate_panoptic":  # but for the time that it took
        found["results.json"] = re.sub(rb'"seconds": [\d.e-]+', b"", found["results.json"])
    return found


@pytest.mark.parametrize("name", [
    "make_weak_labels", "evaluate_panoptic", "report", "prepare_sample", "train_net",
])  # fmt: skip
def test_a_command_ended_at_any_moment_ends_with_the_same_bytes(tiny, tmp_path, name):
    began = time.monotonic()
    whole = start(commands(tiny, tmp_path / "whole")[name])
    text, _ = whole.communicate(timeout=1800)
    assert whole.returncode == 0, text[-2000:]
    usual = time.monotonic() - began
    generator = random.Random(name)
    ended, run = 0, 0
    while ended < KILLS:  # a run that is done is followed by another, in a folder of its own
        out = tmp_path / f"run_{run}" / "out"
        out.parent.mkdir(exist_ok=True)
        process = start(commands(tiny, out)[name])
        try:
            text, _ = process.communicate(timeout=usual * generator.uniform(0.2, 1.0))
        except subprocess.TimeoutExpired:
            # The command alone: its workers must notice by themselves.
            process.send_signal(generator.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT)))
            process.wait(timeout=600)
            ended += 1
            deadline = time.monotonic() + 120
            while group_members(process.pid) and time.monotonic() < deadline:
                time.sleep(0.2)
            assert not group_members(process.pid), "a worker outlived its command"
            process.stdout.close()
            continue
        assert process.returncode == 0, text[-2000:]
        assert result(name, out) == result(name, tmp_path / "whole")
        usual, run = usual * 0.9, run + 1
    process = start(commands(tiny, out)[name])
    text, _ = process.communicate(timeout=1800)
    assert process.returncode == 0, text[-2000:]
    found, wanted = result(name, out), result(name, tmp_path / "whole")
    assert found.keys() == wanted.keys()
    assert [key for key in wanted if found[key] != wanted[key]] == []
