# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The training tool from its command line: exit status, messages, files it leaves."""

import json

import pytest
import yaml
from detectron2.utils import comm
from helpers.load_tool import load_tool
from helpers.tiny_panoptic import TinyData, tiny_cfg
from torch import multiprocessing
from torch.multiprocessing import ProcessExitedException

from wsis_d2.engine import launch
from wsis_d2.engine.launch import _tell
from wsis_d2.utils.cli import main_with_errors
from wsis_d2.utils.errors import InputError


@pytest.fixture
def data(tmp_path):
    tiny = TinyData(tmp_path / "data")
    yield tiny
    tiny.close()


def status(*argv) -> int:
    """Exit status of the tool."""
    with pytest.raises(SystemExit) as end:
        main_with_errors(load_tool("train_net").main, [str(a) for a in argv])
    return end.value.code or 0


def test_help_shows_examples(capsys):
    assert status("--help") == 0
    out = capsys.readouterr().out
    assert "--eval-only" in out and "tools/train_net.py --config-file" in out


@pytest.mark.parametrize(
    "argv,message",
    [
        ((), "--config-file is missing"),
        (("--config-file", "nothing.yaml"), "nothing.yaml"),
        (("--config-file", "{cfg}", "MODEL.NO_KEY", "1"), "MODEL.NO_KEY"),
        (("--config-file", "{cfg}", "--eval-only"), "DATASETS.TEST is empty"),
        (("--config-file", "{cfg}", "DATASETS.TRAIN", "('nobody',)"), "'nobody'"),
        (("--config-file", "{cfg}", "SOLVER.OPTIMIZER", "Adagrad"), "SOLVER.OPTIMIZER"),
        (("--config-file", "{cfg}", "MODEL.WEIGHTS", "gone.pth"), "gone.pth"),
        (("--config-file", "{cfg}", "SOLVER.MAX_ITER", "3", "--resume"), "--resume is among"),
        (("--config-file", "{cfg}", "SOLVER.MAX_ITER"), "SOLVER.MAX_ITER"),
        (("--config-file", "{cfg}", "--num-gpus", "-1"), "--num-gpus -1"),
        (("--config-file", "{cfg}", "--num-machines", "2", "--dist-url", "auto"), "--dist-url"),
    ],
)
def test_bad_input_ends_with_one_clear_line(data, tmp_path, capsys, argv, message):
    config = tmp_path / "cfg.yaml"
    cfg = tiny_cfg(tmp_path / "out", "MODEL.WSIS.STAGE", "semantic")
    config.write_text(cfg.dump())
    assert status(*(a.format(cfg=config) for a in argv)) == 2
    assert message in only_error(capsys)


def only_error(capsys) -> str:
    """The one line on standard error, with no traceback on either stream."""
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    (line,) = [line for line in err.splitlines() if "error:" in line]
    return line


@pytest.mark.parametrize(
    "key,value,told",
    [
        ("MODEL.DEVICE", "gpu", "'cpu', 'cuda' or 'cuda:N'"),
        ("MODEL.DEVICE", "cuda:99", "visible"),
        ("MODEL.META_ARCHITECTURE", "MaskRCNN", "No object named 'MaskRCNN'"),
        ("MODEL.WSIS.STAGE", "panoptic", "'end_to_end'"),
        ("MODEL.BACKBONE.NAME", "resnet", "No object named 'resnet'"),
        ("MODEL.RESNETS.DEPTH", 20, "DEPTH is 20"),
        ("MODEL.RESNETS.NORM", "XN", "XN"),
        ("MODEL.RPN.IN_FEATURES", ["p9"], "p9"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16]], "MODEL"),
        ("SOLVER.MAX_ITER", 0, "at least 1"),
        ("SOLVER.LR_SCHEDULER_NAME", "StepLR", "WarmupPolyLR"),
        ("SOLVER.CHECKPOINT_PERIOD", 0, "at least 1"),
        ("SOLVER.IMS_PER_BATCH", 0, "at least 1"),
        ("SOLVER.BASE_LR", -0.1, "above 0"),
        ("SOLVER.WARMUP_METHOD", "cosine", "'linear'"),
        ("SOLVER.STEPS", (5, 3), "ascending"),
        ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "all", "'full_model'"),
        ("INPUT.FORMAT", "L", "'BGR', 'RGB'"),
        ("INPUT.RANDOM_FLIP", "horizontaly", "'horizontal'"),
        ("INPUT.MIN_SIZE_TRAIN", (), "one or more sizes"),
        ("INPUT.SCALE_RANGE", [1.0], "[low, high]"),
        ("INPUT.CROP.TYPE", "random", "'absolute'"),
        ("INPUT.DATASET_MAPPER_NAME", "PanopticMaper", "expected one of PanopticMapper"),
        ("INPUT.DATASET_MAPPER_NAME", "TagMapper", "expected 'PanopticMapper'"),
        ("DATALOADER.NUM_WORKERS", -1, "at least 0"),
        ("DATALOADER.FULL_FRACTION", 2.0, "in [0, 1]"),
        ("TEST.EVAL_PERIOD", -1, "at least 0"),
        ("TEST.PQ_VARIANT", "voc", "'paper'"),
        ("TEST.INSTANCE_AP", "voc", "'cityscapes'"),
        ("VIS_PERIOD", -1, "at least 0"),
    ],
)
def test_a_value_that_cannot_be_is_named(data, tmp_path, capsys, key, value, told):
    """Before anything is trained; a key of the network at least by what it lacks."""
    config = tmp_path / "cfg.yaml"
    config.write_text(tiny_cfg(tmp_path / "out", "MODEL.WSIS.STAGE", "detector").dump())
    assert status("--config-file", config, key, value) == 2
    line = only_error(capsys)
    assert told in line and any(part in line for part in key.split("."))
    assert not list((tmp_path / "out").glob("*.pth"))


def test_a_training_that_diverges_ends_with_one_line(data, tmp_path, capsys):
    config = tmp_path / "cfg.yaml"
    config.write_text(tiny_cfg(tmp_path / "out", "MODEL.WSIS.STAGE", "semantic").dump())
    assert status("--config-file", config, "SOLVER.BASE_LR", 1e30, "SOLVER.OPTIMIZER", "SGD") == 2
    line = only_error(capsys)
    assert "at iteration" in line and ".png" in line and "lower SOLVER.BASE_LR" in line


def test_without_a_gpu_zero_gpus_train_as_in_detectron2(data, tmp_path):
    config = tmp_path / "cfg.yaml"
    cfg = tiny_cfg(tmp_path / "out", "MODEL.WSIS.STAGE", "semantic", "SOLVER.MAX_ITER", 1)
    config.write_text(cfg.dump())
    assert status("--config-file", config, "--num-gpus", 0) == 0
    assert (tmp_path / "out" / "model_final.pth").is_file()


def test_a_mistake_found_by_a_process_of_the_loader_is_told_in_one_line(data, tmp_path, capsys):
    for picture in (data.folder / "images").glob("*.png"):
        picture.write_bytes(picture.read_bytes()[:60])
    config = tmp_path / "cfg.yaml"
    config.write_text(tiny_cfg(tmp_path / "out", "MODEL.WSIS.STAGE", "detector").dump())
    assert status("--config-file", config, "DATALOADER.NUM_WORKERS", 1) == 2
    assert "cannot be read as a picture" in only_error(capsys)


def _one_finds_a_mistake() -> None:
    if comm.get_rank() == 1:
        raise InputError("a.json: holds nothing")
    comm.synchronize()  # loses the other process


def test_a_mistake_found_by_one_of_several_processes_is_told_in_one_line(capsys):
    with pytest.raises(SystemExit) as end:
        main_with_errors(lambda argv: launch(_one_finds_a_mistake, 2))
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert [x for x in err.splitlines() if "error:" in x] == ["error: a.json: holds nothing"]


@pytest.mark.parametrize(
    "signal_name,code,told", [(None, 1, ""), ("SIGKILL", 2, "error: a process was ended by SIGKI")]
)
def test_how_a_process_ends_is_how_all_end(monkeypatch, capsys, signal_name, code, told):
    def ends(*args, **kwargs):
        raise ProcessExitedException(
            "process 0", error_index=0, error_pid=1, exit_code=1, signal_name=signal_name
        )

    monkeypatch.setattr(multiprocessing, "spawn", ends)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as end:
        main_with_errors(lambda argv: launch(print, 2))
    assert end.value.code == code
    assert capsys.readouterr().err.startswith(told)


@pytest.mark.parametrize(
    "error,told,traceback",
    [
        (InputError("a.json: holds nothing"), "a.json: holds nothing", False),
        (FileNotFoundError(2, "No such file", "a.png"), "a.png: No such file", False),
        (RuntimeError("a bug"), None, True),
    ],
)
def test_a_process_tells_mistakes_in_a_line_and_bugs_with_their_traceback(
    tmp_path, capsys, error, told, traceback
):
    def fails():
        raise error

    line = tmp_path / "error"
    with pytest.raises(type(error)):
        _tell(str(line), fails, ())
    assert (line.read_text() if line.exists() else None) == told
    assert ("a bug" in capsys.readouterr().err) is traceback


def test_a_config_runs_no_code(tmp_path, capsys):
    marker = tmp_path / "ran"
    hostile = tmp_path / "hostile.yaml"
    hostile.write_text(f'OUTPUT_DIR: !!python/object/apply:os.mkdir ["{marker}"]\n')
    assert status("--config-file", hostile) == 2
    assert not marker.exists() and "hostile.yaml" in capsys.readouterr().err


def test_a_run_trains_evaluates_and_stands_alone(data, tmp_path):
    """Train, then evaluate from the output folder alone with another head."""
    out = tmp_path / "out"
    config = tmp_path / "cfg.yaml"
    cfg = tiny_cfg(
        out, "MODEL.WSIS.STAGE", "instance_piecewise", "SOLVER.MAX_ITER", 1,
        "MODEL.WSIS.PARTIAL_WEIGHTS", True,
        "DATASETS.TEST", "('tiny_full',)",
    )  # fmt: skip
    config.write_text(cfg.dump())
    assert status("--config-file", config) == 0
    metadata = json.loads((out / "metadata.json").read_text())
    assert metadata["thing_ids"] == [0, 2] and metadata["thing_classes"][3] == "sea"
    results = json.loads((out / "results.json").read_text())["runs"]["weak"]
    assert results["meta"]["supervision"] == "weak" and results["meta"]["dataset"] == "tiny_full"
    assert {"PQ", "PQ_th", "PQ_st"} <= set(results["panoptic_seg"])
    trained = yaml.safe_load((out / "config.yaml").read_text())
    assert trained["MODEL"]["WSIS"]["THING_IDS"] == [0, 2]
    assert status(
        "--config-file", out / "config.yaml", "--eval-only", "MODEL.WEIGHTS",
        out / "model_final.pth", "MODEL.INSTANCE_HEAD.NAME", "BoxMergeHead", "RUN_NAME", "merged",
    ) == 0  # fmt: skip
    assert yaml.safe_load((out / "config.yaml").read_text()) == trained
    assert set(json.loads((out / "results.json").read_text())["runs"]) == {"weak", "merged"}
