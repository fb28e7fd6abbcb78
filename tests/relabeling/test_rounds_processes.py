# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Rounds in several processes and on several machines: the labels and figures of one process."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.iterative_data import label_bytes, make_run
from PIL import Image

from wsis_d2.data.datasets import set_label_store
from wsis_d2.data.datasets.own.custom import unregister
from wsis_d2.engine import load_cfg
from wsis_d2.relabeling.rounds import IterativeRun, train_iterative
from wsis_d2.relabeling.run_state import write_state
from wsis_d2.utils.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
NAME, TRUTH = "processes_test", "processes_test_truth"


@pytest.fixture
def prepared(tmp_path):
    yield tmp_path, make_run(tmp_path, NAME, images=5)
    unregister(NAME)
    unregister(TRUTH)


def config(prepared, output, *opts):
    root, path = prepared
    data = {"json": f"{root}/data/weak_train.json", "images": f"{root}/data/images/train"}
    truth = {"panoptic_json": f"{root}/data/panoptic_train.json",
             "panoptic_dir": f"{root}/data/panoptic_train"}  # fmt: skip
    own = [
        {"name": NAME, **data, "labels": f"{root}/labels"},
        {"name": TRUTH, **data, **truth, "supervision": "full"},
    ]
    cfg = load_cfg(
        str(path), ["OUTPUT_DIR", str(root / output), "DATASETS.OWN", own,
                    "DATASETS.TEST", (TRUTH,), *opts],
    )  # fmt: skip
    set_label_store(NAME, root / "labels")
    cfg.freeze()
    return cfg


def test_two_processes_label_and_measure_as_one(prepared):
    root, _ = prepared
    train_iterative(config(prepared, "first", "SOLVER.MAX_ITER", 1), 1)
    first = ("ITERATIVE.FIRST_WEIGHTS", str(root / "first" / "round_0" / "model_final.pth"))
    train_iterative(config(prepared, "one", *first), 1)
    train_iterative(config(prepared, "two", *first), 1, num_processes=2)
    expected, found = label_bytes(root / "one"), label_bytes(root / "two")
    assert len(expected) == 3 * 5 + 2 and found == expected
    one, two = (json.loads((root / run / "rounds.json").read_text()) for run in ("one", "two"))
    assert one["rounds"][0]["sem_seg"]["mIoU"] > 0 and two == one
    with pytest.raises(InputError, match="ITERATIVE.WORKERS is 2 with 2 processes"):
        train_iterative(config(prepared, "three", "ITERATIVE.WORKERS", 2), 1, num_processes=2)


@pytest.mark.long
def test_two_machines_end_with_the_labels_of_two_processes(prepared):
    """Each machine is a command of its own; they meet at an address."""
    root, path = prepared
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"

    def command(output, *options):
        return [
            sys.executable, str(ROOT / "tools/train_iterative.py"), "--config-file", str(path),
            "--rounds", "2", *options, "OUTPUT_DIR", str(root / output), "SOLVER.MAX_ITER", "3",
            "SOLVER.IMS_PER_BATCH", "4",
        ]  # fmt: skip

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(command("processes", "--num-gpus", "2"), env=environment, check=True)
    machines = [
        subprocess.Popen(
            command("machines", "--num-machines", "2", "--machine-rank", str(rank),
                    "--dist-url", address), env=environment,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        assert [machine.wait(timeout=900) for machine in machines] == [0, 0]
    finally:
        for machine in machines:
            machine.kill()
    expected = label_bytes(root / "processes")
    assert len(expected) == 2 * (3 * 5 + 2) and label_bytes(root / "machines") == expected


def test_rounds_are_measured_on_one_truth(prepared):
    """No round has begun; what was noted is compared before anything is trained."""
    root, _ = prepared
    cfg = config(prepared, "measured")
    run = IterativeRun(cfg, 1)
    write_state(run.folder, run.state)
    IterativeRun(cfg, 1, resume=True)
    truth = sorted((root / "data/panoptic_train").glob("*.png"))[1]
    ids = np.array(Image.open(truth))
    ids[:3] = ids[-1]
    Image.fromarray(ids).save(truth)
    with pytest.raises(InputError, match=f"begun with other masks of '{TRUTH}'"):
        IterativeRun(cfg, 1, resume=True)
