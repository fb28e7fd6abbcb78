# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""No command uses a network that its file fills in part: one line, status 2, nothing written."""

import pytest
import torch
from detectron2.modeling import build_model
from helpers.load_tool import load_tool
from helpers.tiny_panoptic import tiny_cfg

from wsis_d2 import model_zoo
from wsis_d2.engine import WSISTrainer, write_metadata
from wsis_d2.relabeling.prediction_model import load_predictor, prediction_config
from wsis_d2.relabeling.rounds import IterativeRun
from wsis_d2.utils.cli import main_with_errors
from wsis_d2.utils.errors import InputError

WIDER = ("MODEL.SEM_SEG_HEAD.CONVS_DIM", 12, "MODEL.FPN.OUT_CHANNELS", 12)
STAGE = "MODEL.WSIS.STAGE"


@pytest.fixture(scope="module")
def unfit(data, tmp_path_factory):
    """Run folders whose checkpoint is of a narrower network than their config."""
    root = tmp_path_factory.mktemp("runs")
    for stage in ("detector", "semantic", "end_to_end"):
        folder = root / stage
        folder.mkdir()
        state = build_model(tiny_cfg(folder, STAGE, stage)).state_dict()
        torch.save({"model": state, "iteration": 1}, folder / "model_final.pth")
        (folder / "last_checkpoint").write_text("model_final.pth")
        wider = tiny_cfg(folder, STAGE, stage, *WIDER, "DATASETS.TEST", "('tiny_full',)")
        (folder / "config.yaml").write_text(wider.dump())
        write_metadata(wider)
    return root


def refusal(capsys, name: str, *argv) -> str:
    """The line with which a tool ends."""
    with pytest.raises(SystemExit) as end:
        main_with_errors(load_tool(name).main, [str(a) for a in argv])
    lines = [x for x in capsys.readouterr().err.splitlines() if "error:" in x]
    assert end.value.code == 2 and len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("stage", ["detector", "semantic", "end_to_end"])
def test_evaluation(unfit, capsys, tmp_path, stage):
    config = unfit / stage / "config.yaml"
    weights = unfit / stage / "model_final.pth"
    evaluate = ("train_net", "--config-file", config, "--eval-only", "OUTPUT_DIR", tmp_path)
    assert "in another shape: " in refusal(capsys, *evaluate, "MODEL.WEIGHTS", weights)
    line = refusal(capsys, *evaluate, "MODEL.WSIS.PARTIAL_WEIGHTS", "True")
    assert "error: MODEL.WEIGHTS is empty: an evaluation needs a trained network" in line
    assert not list(tmp_path.rglob("results.json"))


def test_continued_training(unfit, capsys):
    config = unfit / "semantic" / "config.yaml"
    line = refusal(capsys, "train_net", "--config-file", config, "--resume")
    assert "head.conv.weight is (8, 80, 3, 3), not (12, 80, 3, 3)" in line
    assert "model_final.pth: " in line and "config that it was begun with" in line


@pytest.mark.parametrize("stage", ["detector", "semantic", "end_to_end"])
def test_demo_export_and_release(unfit, capsys, tmp_path, stage):
    run, out = unfit / stage, tmp_path / "out"
    commands = {
        "demo": ("--model", run, "--sample", "1", "--output", out),
        "export_model": ("--model", run, "--output", tmp_path / "m.pt2"),
        "publish_model": ("--run", run, "--id", "Tiny/model", "--output", out),
    }
    for name, arguments in commands.items():
        assert "in another shape: " in refusal(capsys, name, *arguments)
    assert not list(tmp_path.iterdir())


def test_a_release_holds_the_network_of_its_config_alone(unfit, tmp_path):
    """The semantic part of a joint checkpoint."""
    run = tmp_path / "run"
    run.mkdir()
    cfg = tiny_cfg(run, STAGE, "semantic")
    (run / "config.yaml").write_text(cfg.dump())
    write_metadata(cfg)
    load_tool("publish_model").main([
        "--run", str(run), "--id", "Tiny/model", "--output", str(tmp_path / "zoo"),
        "--checkpoint", str(unfit / "end_to_end" / "model_final.pth"),
    ])  # fmt: skip
    (file,) = (tmp_path / "zoo" / "weights").glob("*.pth")
    names = set(torch.load(file, weights_only=True)["model"])
    assert names == {n for n in build_model(cfg).state_dict() if ".aux_" not in n}


def test_new_labels(unfit, tmp_path):
    weights = unfit / "semantic" / "model_final.pth"
    with pytest.raises(InputError, match="^the round's checkpoint: .*in another shape"):
        load_predictor(prediction_config(tiny_cfg(tmp_path, STAGE, "semantic", *WIDER)), weights)
    for key, path in {
        "ITERATIVE.FIRST_WEIGHTS": weights,
        "MODEL.WSIS.DETECTOR_WEIGHTS": unfit / "detector" / "model_final.pth",
    }.items():
        cfg = tiny_cfg(
            tmp_path, STAGE, "semantic", *WIDER, "DATASETS.TEST", "('tiny_full',)", key, str(path)
        )
        # Before hours of training.
        with pytest.raises(InputError, match=f"^{key}: .*in another shape: .*tools/train_net.py"):
            IterativeRun(cfg, 2)
    assert not (tmp_path / "state.json").exists()


def test_training(unfit, capsys, tmp_path):
    config = unfit / "end_to_end" / "config.yaml"
    train = ("train_net", "--config-file", config, "OUTPUT_DIR", tmp_path)
    line = refusal(capsys, *train, "MODEL.WEIGHTS", unfit / "end_to_end" / "model_final.pth")
    assert "in another shape: " in line and "PARTIAL_WEIGHTS True" in line
    line = refusal(capsys, *train)
    assert "error: MODEL.WSIS.DETECTOR_WEIGHTS: " in line and "would stay at random" in line
    assert not list(tmp_path.glob("*.pth"))


def test_model_zoo_untrained():
    """A recipe's start is what it names: here a detector, which is not there."""
    name = "Sample-Panoptic/tiny_instance"
    with pytest.raises(InputError, match="DETECTOR_WEIGHTS: ./output/.*no such file; train the de"):
        model_zoo.get(name, device="cpu")
    model = model_zoo.get("Sample-Panoptic/tiny_semantic", device="cpu")  # from random weights
    assert model.training


def test_a_classifier_of_other_weights(tmp_path):
    from wsis_d2.relabeling.tag_cues import load_classifier

    cfg = tiny_cfg(
        tmp_path, "MODEL.META_ARCHITECTURE", "TagClassifier", "MODEL.BACKBONE.NAME",
        "build_resnet_any_backbone", "MODEL.RESNETS.OUT_FEATURES", ["res5"],
    )  # fmt: skip
    state = build_model(cfg).state_dict()
    load = {
        "whole": (state, None),
        "part": ({n: v for n, v in state.items() if "res5" not in n}, "lacks 25 of "),
        "deeper": ({**state, "backbone.res5.2.conv1.weight": torch.ones(1)}, "has 1 arrays that"),
    }
    for name, (arrays, message) in load.items():
        path = tmp_path / f"{name}.pth"
        torch.save({"model": arrays}, path)
        if message is None:
            load_classifier(cfg, path, frozenset({0, 2}))
            continue
        with pytest.raises(InputError, match=f"^--classifier: .*{name}.pth: {message}.*train_net"):
            load_classifier(cfg, path, frozenset({0, 2}))


def test_the_trainer_says_what_is_new(tmp_path, caplog):
    with caplog.at_level("INFO", "wsis_d2"):
        WSISTrainer(tiny_cfg(tmp_path, STAGE, "semantic")).resume_or_load(resume=False)
    assert "new, without weights of a file: semantic.head (" in caplog.text
