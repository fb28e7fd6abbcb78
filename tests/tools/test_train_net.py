# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The training tool from its command line: exit status, messages, files it leaves."""

import json

import pytest
import yaml
from helpers.load_tool import load_tool
from helpers.tiny_panoptic import TinyData, tiny_cfg

from wsis_d2.utils.cli import main_with_errors


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
    ],
)
def test_bad_input_ends_with_one_clear_line(data, tmp_path, capsys, argv, message):
    config = tmp_path / "cfg.yaml"
    cfg = tiny_cfg(tmp_path / "out", "MODEL.WSIS.STAGE", "semantic")
    config.write_text(cfg.dump())
    assert status(*(a.format(cfg=config) for a in argv)) == 2
    lines = [x for x in capsys.readouterr().err.splitlines() if "error:" in x]
    assert len(lines) == 1 and message in lines[0]


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
