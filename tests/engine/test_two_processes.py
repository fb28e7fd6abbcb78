# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Training in two processes: what one cannot do ends both, and the run goes on from there."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from helpers.load_tool import ROOT
from helpers.tiny_panoptic import TinyData, tiny_cfg

from wsis_d2.data.sampling import TrainingStream
from wsis_d2.engine import WSISTrainer
from wsis_d2.engine.launch import launch
from wsis_d2.utils.errors import InputError

IMAGES, SEED, BATCH = 8, 3, 4


@pytest.fixture
def data(tmp_path):
    tiny = TinyData(tmp_path / "data", IMAGES)
    yield tiny
    tiny.close()


def raising(trainer, iteration):
    """Make a trainer's step fail at an iteration, after a batch was drawn."""
    step = trainer.run_step

    def run_step():
        if trainer.iter == iteration:
            raise InputError("loss is nan")
        step()

    trainer.run_step = run_step


def test_a_training_that_fails_in_its_last_iteration_is_not_evaluated(data, tmp_path, monkeypatch):
    """The other process would wait for an evaluation, this one for its gradients."""
    cfg = tiny_cfg(
        tmp_path / "out", "MODEL.WSIS.STAGE", "semantic", "SOLVER.MAX_ITER", 1,
        "DATASETS.TEST", "('tiny_full',)",
    )  # fmt: skip
    evaluated = []
    monkeypatch.setattr(WSISTrainer, "test", lambda *args, **kwargs: evaluated.append(1) or {})
    trainer = WSISTrainer(cfg)
    raising(trainer, 0)
    with pytest.raises(InputError, match="loss is nan"):
        trainer.train()
    assert not evaluated
    WSISTrainer(cfg).train()
    assert evaluated


def _loses_the_other() -> None:
    from detectron2.utils import comm

    if comm.get_rank() == 1:
        os._exit(7)
    comm.synchronize()


@pytest.mark.long
def test_a_process_that_vanishes_ends_the_others(capfd):
    with pytest.raises((InputError, SystemExit)):
        launch(_loses_the_other, 2)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.long
def test_a_bad_image_ends_both_and_the_run_goes_on_to_the_same_weights(data, tmp_path):
    """What one process cannot read ends both in seconds; --resume gives the undisturbed run."""
    config = tmp_path / "cfg.yaml"
    config.write_text(
        tiny_cfg(
            tmp_path / "none", "MODEL.WSIS.STAGE", "semantic", "SOLVER.MAX_ITER", 4,
            "SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.IMS_PER_BATCH", BATCH, "SEED", SEED,
            "DATALOADER.NUM_WORKERS", 0,
        ).dump()
    )  # fmt: skip
    own = [{"name": "tiny_weak", "json": str(data.folder / "weak.json"),
            "images": str(data.folder / "images"), "labels": str(data.store)}]  # fmt: skip

    def train(output, *options):
        command = [sys.executable, str(ROOT / "tools/train_net.py"), "--config-file", str(config),
                   "--num-gpus", "2", *options, "DATASETS.OWN", repr(own), "OUTPUT_DIR",
                   str(tmp_path / output)]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        # Half of what a collective operation waits for a process that does not come.
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)

    done = train("whole")
    assert done.returncode == 0, done.stderr[-3000:]
    # The second process has it in the second iteration, when there is a checkpoint.
    stream = TrainingStream([False] * IMAGES, seed=SEED)
    picture = sorted((data.folder / "images").glob("*.png"))[stream.index_at(BATCH + 1)]
    content = picture.read_bytes()
    picture.write_bytes(content[:200])
    # Labels that know their picture's content would tell before the training.
    for status in (data.store / "status").glob("*.json"):
        known = json.loads(status.read_text())
        status.write_text(json.dumps({k: v for k, v in known.items() if k != "picture"}))
    done = train("broken")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr + done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert picture.name in line and "cannot be read as a picture" in line
    assert (tmp_path / "broken" / "model_0000000.pth").is_file()
    picture.write_bytes(content)
    done = train("broken", "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"Starting training from iteration 1\b", done.stdout + done.stderr)
    whole, resumed = (
        torch.load(tmp_path / run / "model_final.pth", weights_only=True)["model"]
        for run in ("whole", "broken")
    )
    assert whole.keys() == resumed.keys() and len(whole) > 20
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
