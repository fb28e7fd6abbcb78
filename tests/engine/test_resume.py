# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""A run goes on as it was begun, or says in one line why it cannot."""

import json
import logging
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from helpers.load_tool import load_tool
from helpers.tiny_panoptic import TinyData, tiny_cfg
from PIL import Image

from wsis_d2.data.datasets import set_label_store
from wsis_d2.data.datasets.own.custom import unregister
from wsis_d2.engine import WSISTrainer
from wsis_d2.utils.cli import main_with_errors
from wsis_d2.utils.errors import InputError

SEMANTIC = ["MODEL.WSIS.STAGE", "semantic", "SOLVER.MAX_ITER", 2, "SOLVER.CHECKPOINT_PERIOD", 1]


@pytest.fixture
def data(tmp_path):
    tiny = TinyData(tmp_path / "data", 4)
    yield tiny
    tiny.close()


@pytest.fixture
def begun(data, tmp_path):
    """A run of two iterations, made by the tool; its config file and how to call the tool again."""
    config = tmp_path / "cfg.yaml"
    config.write_text(tiny_cfg(tmp_path / "out", *SEMANTIC).dump())

    def call(*argv):
        with pytest.raises(SystemExit) as end:
            main_with_errors(
                load_tool("train_net").main, ["--config-file", str(config), *map(str, argv)]
            )
        return end.value.code or 0

    assert call() == 0
    return tmp_path / "out", call


def error_of(capfd) -> str:
    """The one line on standard error; no traceback on either stream."""
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    return line


def trained(config_file) -> dict:
    return yaml.safe_load(config_file.read_text())["SOLVER"]


@pytest.mark.parametrize(
    "opts,told",
    [
        (["SOLVER.BASE_LR", 0.5], "SOLVER.BASE_LR 0.01, now it is 0.5"),
        (["SOLVER.OPTIMIZER", "SGD"], "SOLVER.OPTIMIZER 'AdamW', now it is 'SGD'"),
        (["MODEL.SEM_SEG_HEAD.CONVS_DIM", 12], "MODEL.SEM_SEG_HEAD.CONVS_DIM 8, now it is 12"),
        (["MODEL.WEIGHTS", "a.pth"], "MODEL.WEIGHTS '', now it is 'a.pth'"),
        (["SOLVER.IMS_PER_BATCH", 1, "SEED", 4], "SEED 3, now it is 4 (2 keys differ)"),
    ],
)
def test_other_settings_are_refused_and_not_written_down(begun, capfd, opts, told):
    out, call = begun
    before = (out / "config.yaml").read_bytes()
    assert call("--resume", "SOLVER.MAX_ITER", 3, *opts) == 2
    line = error_of(capfd)
    assert f"model_final.pth: the run was begun with {told}" in line
    assert "name another OUTPUT_DIR" in line
    assert (out / "config.yaml").read_bytes() == before


def test_a_training_that_is_refused_leaves_the_config_of_the_one_that_was_not(begun, capfd):
    out, call = begun
    before = [(out / name).read_bytes() for name in ("config.yaml", "metadata.json")]
    assert call("SOLVER.MAX_ITER", 0) == 2
    assert call("MODEL.BACKBONE.NAME", "no_such", "MODEL.WSIS.STAGE", "detector") == 2
    assert [(out / name).read_bytes() for name in ("config.yaml", "metadata.json")] == before


def test_a_finished_run_says_so_and_goes_on_once_max_iter_rises(begun, capfd):
    out, call = begun
    capfd.readouterr()
    assert call("--resume") == 0
    assert "all 2 iterations are done; raise SOLVER.MAX_ITER" in (out / "log.txt").read_text()
    assert call("--resume", "SOLVER.MAX_ITER", 3, "DATALOADER.NUM_WORKERS", 1) == 0
    assert torch.load(out / "model_final.pth", weights_only=True)["iteration"] == 2
    assert trained(out / "config.yaml")["MAX_ITER"] == 3
    capfd.readouterr()
    assert call("--resume") == 2
    assert "3 iterations are done, SOLVER.MAX_ITER is 2; raise it" in error_of(capfd)
    assert trained(out / "config.yaml")["MAX_ITER"] == 3


def test_other_labels_are_refused(data, begun, capfd, tmp_path):
    from detectron2.data import DatasetCatalog

    from wsis_d2.weak_labels.store import LabelStore

    old = LabelStore.open(data.store)
    other = LabelStore.create(tmp_path / "other", {"recipe": "others"}, old.categories)
    for record in DatasetCatalog.get("tiny_weak"):
        ids, segments = old.instance(record["image_id"])
        other.write(record, old.semantic(record["image_id"]), ids, segments, {})
    other.finish()
    set_label_store("tiny_weak", other.path)
    assert begun[1]("--resume", "SOLVER.MAX_ITER", 3) == 2
    assert "begun with other labels of 'tiny_weak'" in error_of(capfd)


def test_a_checkpoint_that_is_missing_or_torn_is_named(begun, capfd):
    out, call = begun
    whole = (out / "model_final.pth").read_bytes()
    (out / "model_final.pth").write_bytes(whole[: len(whole) // 2])
    assert call("--resume", "SOLVER.MAX_ITER", 3) == 2
    assert "model_final.pth: cannot be read as a checkpoint, truncated" in error_of(capfd)
    for path in out.glob("model_*.pth"):
        path.unlink()
    assert call("--resume", "SOLVER.MAX_ITER", 3) == 2
    assert "last_checkpoint: names model_final.pth, which does not exist" in error_of(capfd)


def test_a_checkpoint_of_another_program_is_named(begun, capfd):
    out, call = begun
    content = torch.load(out / "model_final.pth", weights_only=True)
    del content["trainer"]["identity"]
    torch.save(content, out / "model_final.pth")
    assert call("--resume", "SOLVER.MAX_ITER", 3, "SOLVER.OPTIMIZER", "SGD",
                "MODEL.SEM_SEG_HEAD.CONVS_DIM", 12) == 2  # fmt: skip
    line = error_of(capfd)
    assert "model_final.pth: has " in line and "head.conv.norm.bias is (8,), not (12,)" in line
    assert "continue the run with the config that it was begun with" in line
    del content["trainer"]
    torch.save(content, out / "model_final.pth")
    assert call("--resume", "SOLVER.MAX_ITER", 3) == 2
    assert "KeyError" not in error_of(capfd)


def train_from(cfg, iteration) -> None:
    trainer = WSISTrainer(cfg)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == iteration
    trainer.train()


class Killed(BaseException):
    """Stands for a kill."""


def test_a_kill_while_the_first_checkpoint_is_written_leaves_no_half_one(
    data, tmp_path, monkeypatch, caplog
):
    cfg = tiny_cfg(tmp_path / "out", *SEMANTIC)

    def half(content, file):
        file.write(b"half")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half)
        with pytest.raises(Killed):
            train_from(cfg, 0)
    assert not list((tmp_path / "out").glob("*.pth"))
    # What a process that was killed outright leaves, and what an older version did.
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, text=True).stdout.strip()  # fmt: skip
    left = tmp_path / "out" / f".{socket.gethostname()}~{gone}~0.tmp"
    left.write_bytes(b"half")
    (tmp_path / "out" / "model_0000000.pth").write_bytes(b"PK half")
    with caplog.at_level(logging.WARNING, logger="wsis_d2"):
        train_from(cfg, 0)
    assert "model_0000000.pth: cannot be read as a checkpoint" in caplog.text
    assert "ended before its first checkpoint was complete; it starts over" in caplog.text
    assert not left.exists()
    assert torch.load(tmp_path / "out" / "model_0000000.pth", weights_only=True)["iteration"] == 0


@pytest.mark.parametrize("content", [None, "", "model_0000009.pth"])
def test_without_its_name_the_newest_whole_checkpoint_is_taken(
    data, tmp_path, monkeypatch, content
):
    out = tmp_path / "out"
    cfg = tiny_cfg(out, *SEMANTIC, "SOLVER.MAX_ITER", 1)
    train_from(cfg, 0)
    (out / "model_final.pth").rename(out / "model_0000000.pth")
    (out / "model_0000001.pth").write_bytes(b"half")
    os.utime(out / "model_0000000.pth", (1, 1))
    (out / "last_checkpoint").unlink()
    if content is not None:
        (out / "last_checkpoint").write_text(content)
    trainer = WSISTrainer(tiny_cfg(out, *SEMANTIC))
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 1


def test_a_full_disk_is_told(data, tmp_path, monkeypatch):
    def full(content, file):
        raise OSError(28, "No space left on device")

    trainer = WSISTrainer(tiny_cfg(tmp_path / "out", *SEMANTIC))
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match="model_0000000.pth: cannot be written: No space left"):
        trainer.train()


def test_a_run_begun_with_other_settings_in_the_same_folder_is_not_continued(begun, capfd):
    """The new run was killed before its first checkpoint: what is there is another's."""
    out, call = begun
    (out / "config.yaml").write_text(
        (out / "config.yaml").read_text().replace("BASE_LR: 0.01", "BASE_LR: 0.5")
    )
    assert call("--resume", "SOLVER.BASE_LR", 0.5) == 2
    assert "SOLVER.BASE_LR 0.01, now it is 0.5" in error_of(capfd)


def test_the_checkpoint_remembers_in_plain_values(begun):
    out, _ = begun
    identity = torch.load(out / "model_final.pth", weights_only=True)["trainer"]["identity"]
    assert json.loads(json.dumps(identity)) == identity
    assert identity["config"]["SOLVER"]["BASE_LR"] == 0.01 and "tiny_weak" in identity["labels"]


def other_box(tiny: TinyData) -> None:
    """A box is drawn anew, after the first checkpoint."""
    content = json.loads((tiny.folder / "weak.json").read_text())
    content["annotations"][-1]["bbox"][2] -= 2
    (tiny.folder / "weak.json").write_text(json.dumps(content))
    tiny.register()


def one_image_less(tiny: TinyData) -> None:
    content = json.loads((tiny.folder / "weak.json").read_text())
    gone = content["images"].pop(1)["id"]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != gone]
    (tiny.folder / "weak.json").write_text(json.dumps(content))
    tiny.register()


def other_pixels(tiny: TinyData) -> None:
    """Labels of the same recipe, made by something that its recipe does not tell."""
    from detectron2.data import DatasetCatalog

    from wsis_d2.weak_labels.store import LabelStore

    store = LabelStore.open(tiny.store, writable=True)
    record = DatasetCatalog.get("tiny_weak")[-1]
    ids, segments = store.instance(record["image_id"])
    semantic = store.semantic(record["image_id"])
    semantic[20:22] = 3
    store.write(record, semantic, ids, segments, {})
    store.finish()


def other_truth(tiny: TinyData) -> None:
    path = tiny.folder / "panoptic" / "003.png"
    ids = np.array(Image.open(path))
    ids[:2] = ids[-1]
    Image.fromarray(ids).save(path)


def other_picture(tiny: TinyData) -> None:
    """Of the same size in pixels."""
    path = max((tiny.folder / "images").iterdir())
    Image.fromarray(np.zeros_like(np.array(Image.open(path)))).save(path)


@pytest.mark.parametrize(
    "stage,train,change,told",
    [
        ("detector", "tiny_weak", other_picture, "other pictures of 'tiny_weak'"),
        ("detector", "tiny_weak", other_box, "another annotation of 'tiny_weak'"),
        ("detector", "tiny_weak", one_image_less, "another annotation of 'tiny_weak'"),
        ("semantic", "tiny_weak", other_pixels, "other labels of 'tiny_weak'"),
        ("semantic", "tiny_full", other_truth, "other masks of 'tiny_full'"),
    ],
)
def test_other_data_of_the_same_name_is_refused(data, tmp_path, stage, train, change, told):
    def begin(iterations):
        return tiny_cfg(tmp_path / "out", "MODEL.WSIS.STAGE", stage, "SOLVER.MAX_ITER", iterations,
                        "SOLVER.CHECKPOINT_PERIOD", 1, train=train)  # fmt: skip

    train_from(begin(1), 0)
    shutil.copytree(data.folder, tmp_path / "moved")
    moved = TinyData(tmp_path / "moved")  # the same content elsewhere goes on
    train_from(begin(2), 1)
    change(moved)
    before = (tmp_path / "out" / "model_final.pth").read_bytes()
    with pytest.raises(InputError, match=f"model_final.pth: the run was begun with {told}"):
        train_from(begin(3), 2)
    assert (tmp_path / "out" / "model_final.pth").read_bytes() == before


def test_other_boxes_of_the_same_file_are_refused(data, tmp_path):
    boxes = [
        {
            "image_id": a["image_id"],
            "category_id": a["category_id"],
            "bbox": a["bbox"],
            "score": 0.9,
        }
        for a in json.loads((data.folder / "weak.json").read_text())["annotations"]
    ]
    path = tmp_path / "boxes.json"

    def go_on(iterations):
        path.write_text(json.dumps(boxes))
        opts = ["MODEL.WSIS.STAGE", "end_to_end", "MODEL.WSIS.DETECTOR_BOXES",
                [["tiny_weak", str(path)]], "SOLVER.MAX_ITER", iterations]  # fmt: skip
        train_from(tiny_cfg(tmp_path / "out", *opts), iterations - 1)

    go_on(1)
    go_on(2)
    boxes[0]["score"] = 0.5
    with pytest.raises(InputError, match="the run was begun with other boxes of 'tiny_weak'"):
        go_on(3)


def test_own_data_may_be_moved_and_more_be_measured(data, tmp_path):
    """DATASETS.OWN tells where they lie, relatively or not; what they hold is known."""

    def go_on(folder, iteration, *more):
        own = {"name": "tiny_own", "json": f"{folder}/weak.json", "images": f"{folder}/images",
               "labels": f"{folder}/labels"}  # fmt: skip
        opts = ["DATASETS.OWN", [own, *more], "SOLVER.MAX_ITER", iteration + 1]
        train_from(tiny_cfg(tmp_path / "out", *SEMANTIC, *opts, train="tiny_own"), iteration)

    go_on(data.folder, 0)
    shutil.copytree(data.folder, tmp_path / "moved")
    go_on(os.path.relpath(tmp_path / "moved"), 1)
    other = {"json": f"{data.folder}/weak.json", "images": f"{data.folder}/images"}
    go_on(data.folder, 2, {"name": "tiny_own_2", **other})
    for name in ("tiny_own", "tiny_own_2"):
        unregister(name)


def test_a_run_that_other_data_refuse_keeps_what_it_was_trained_with(data, begun, capfd):
    out, call = begun
    before = (out / "config.yaml").read_bytes()
    other_pixels(data)
    assert call("--resume", "SOLVER.MAX_ITER", 3) == 2
    assert "other labels of 'tiny_weak'" in error_of(capfd)
    assert (out / "config.yaml").read_bytes() == before
