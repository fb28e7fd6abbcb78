# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Commands ended by signals at random moments: run again, they leave what others leave.

Iterative training, the preparation of VOC and label processes have tests of their own.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers.load_tool import ROOT

KILLS = int(os.environ.get("WSIS_D2_TEST_KILLS", 10))

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def experiment(tiny, tmp_path_factory):
    """The folder of an experiment: labels of boxes, a network, one that goes on from it."""
    folder = tmp_path_factory.mktemp("experiments") / "Kills"
    folder.mkdir()
    (folder / "semantic.yaml").write_text(
        f'_BASE_: "{ROOT}/configs/Sample-Panoptic/tiny_semantic.yaml"\n'
        'DATASETS: {TRAIN: ["kills"], TEST: []}\n'
        "SOLVER: {MAX_ITER: 4, IMS_PER_BATCH: 2, CHECKPOINT_PERIOD: 1}\n"
        "DATALOADER: {NUM_WORKERS: 1}\n"
    )
    network = {"tool": "train_net", "recipe": "semantic.yaml"}
    stores = "[['kills', '{labels}']]"
    content = {
        "data": str(tiny.data),
        "datasets": {"kills": {"json": "weak_train.json", "images": "images/train"}},
        "runs": {
            "labels": {"tool": "make_weak_labels", "recipe": "semantic.yaml", "shared": True,
                       "arguments": ["boxes", "--dataset", "kills", "--output", "{output}"]},
            "first": {**network, "set": {"DATASETS.LABEL_STORES": stores}},
            "second": {**network, "set": {
                "DATASETS.LABEL_STORES": stores,
                "MODEL.WSIS.SEMANTIC_WEIGHTS": "{first}/model_final.pth"}},
        },
    }  # fmt: skip
    (folder / "experiment.yaml").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def classifier(tiny, tmp_path_factory):
    """A tag classifier of a few steps."""
    folder = tmp_path_factory.mktemp("classifier")
    own = [{"name": "kills", "json": str(tiny.data / "weak_train.json"),
            "images": str(tiny.data / "images" / "train")}]  # fmt: skip
    recipe = folder / "tags.yaml"
    recipe.write_text(
        f'_BASE_: "{ROOT}/configs/Sample-TagClassifier/tag_classifier_R_18.yaml"\n'
        f'DATASETS: {{OWN: {json.dumps(own)}, TRAIN: ["kills"], TEST: []}}\n'
        f"SOLVER: {{MAX_ITER: 3, IMS_PER_BATCH: 2}}\nSEED: 1\nOUTPUT_DIR: {folder}\n"
    )
    process = start(["tools/train_net.py", "--config-file", recipe])
    text, _ = process.communicate(timeout=1800)
    assert process.returncode == 0, text[-2000:]
    return recipe, folder / "model_final.pth"


def commands(tiny, out, experiment, classifier):
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
        "all_weak_labels": ["tools/make_weak_labels.py", "all", "--config-file", classifier[0],
                            "--dataset", "kills", "--classifier", classifier[1], "--workers", 2,
                            "--output", out],
        "run_experiment": ["tools/run_experiment.py", experiment, "--output", out / "runs",
                           "--workers", 2],
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


def members(group, out):
    """Processes of a command's group that still run, and jobs that write to its folder."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = open(f"/proc/{entry}/stat").read().rpartition(")")[2].split()
                command = open(f"/proc/{entry}/cmdline", "rb").read()
            except OSError:
                continue
            if fields[0] != "Z" and (int(fields[2]) == group or os.fsencode(out) in command):
                found.append(int(entry))
    return found


def parameters(run):
    state = torch.load(run / "model_final.pth", weights_only=True)["model"]
    return {key: value.numpy().tobytes() for key, value in state.items()}


def result(name, out):
    """The bytes of what a command is for."""
    if name == "train_net":
        return parameters(out)
    if name == "run_experiment":
        labels, *runs = (
            out / "runs" / "kills" / run for run in ("labels", "first_seed1", "second_seed1")
        )
        return {
            **result("labels", labels),
            "first": parameters(runs[0]),
            "second": parameters(runs[1]),
        }
    found = {}
    for path in out.rglob("*"):
        relative = str(path.relative_to(out))
        if path.is_file() and not relative.startswith((".lock", ".tmp", ".cache")):
            found[relative] = path.read_bytes()
    if name == "evaluate_panoptic":  # but for the time that it took
        found["results.json"] = re.sub(rb'"seconds": [\d.e-]+', b"", found["results.json"])
    return found


@pytest.mark.parametrize("name", [
    "make_weak_labels", "all_weak_labels", "evaluate_panoptic", "report", "prepare_sample",
    "train_net", "run_experiment",
])  # fmt: skip
def test_a_command_ended_at_any_moment_ends_with_the_same_bytes(
    tiny, experiment, classifier, tmp_path, name
):
    def command(out):
        return commands(tiny, out, experiment, classifier)[name]

    began = time.monotonic()
    whole = start(command(tmp_path / "whole"))
    text, _ = whole.communicate(timeout=1800)
    assert whole.returncode == 0, text[-2000:]
    usual = time.monotonic() - began
    generator = random.Random(name)
    ended, run = 0, 0
    while ended < KILLS:  # a run that is done is followed by another, in a folder of its own
        out = tmp_path / f"run_{run}" / "out"
        out.parent.mkdir(exist_ok=True)
        process = start(command(out))
        try:
            text, _ = process.communicate(timeout=usual * generator.uniform(0.2, 1.0))
        except subprocess.TimeoutExpired:
            # The command alone: its workers must notice by themselves.
            process.send_signal(generator.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT)))
            process.wait(timeout=600)
            ended += 1
            deadline = time.monotonic() + 120
            while members(process.pid, out) and time.monotonic() < deadline:
                time.sleep(0.2)
            assert not members(process.pid, out), "a worker outlived its command"
            process.stdout.close()
            continue
        assert process.returncode == 0, text[-2000:]
        assert result(name, out) == result(name, tmp_path / "whole")
        usual, run = usual * 0.9, run + 1
    process = start(command(out))
    text, _ = process.communicate(timeout=1800)
    assert process.returncode == 0, text[-2000:]
    found, wanted = result(name, out), result(name, tmp_path / "whole")
    assert found.keys() == wanted.keys()
    assert [key for key in wanted if found[key] != wanted[key]] == []
