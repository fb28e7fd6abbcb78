# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The exported network equals the model on other sizes, and runs without the project."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from load_tool import ROOT, load_tool
from PIL import Image

from wsis_d2.utils.errors import InputError

CONFIG = str(ROOT / "configs" / "Sample-Panoptic" / "tiny_instance.yaml")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """OUTPUT_DIR of an instance model with random weights."""
    from detectron2.modeling import build_model

    from wsis_d2.engine import load_cfg, write_metadata

    folder = tmp_path_factory.mktemp("run")
    cfg = load_cfg(CONFIG, ["OUTPUT_DIR", str(folder)])
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    write_metadata(cfg)
    return folder


@pytest.mark.long
def test_exported_program_equals_eager_and_loads_outside_the_project(run, tmp_path):
    from wsis_d2 import _C
    from wsis_d2.utils.predictor import PanopticPredictor

    output = tmp_path / "model.pt2"
    # The tool itself compares two sizes that were not traced and refuses to write on a difference.
    load_tool("export_model").main(["--model", str(run), "--output", str(output)])
    picture = np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "photo.png")
    boxes = [{"box": [5, 5, 40, 40], "score": 0.9, "class": 1},
             {"box": [30, 10, 80, 50], "score": 0.8, "class": 0}]  # fmt: skip
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    script = tmp_path / "load_exported.py"
    script.write_text((ROOT / "tools" / "load_exported.py").read_text())
    # Neither wsis_d2 nor Detectron2 can be imported there.
    guard = "import sys; sys.modules['wsis_d2'] = sys.modules['detectron2'] = None; "
    guard += "sys.argv[0] = 'load_exported.py'; import runpy; "
    command = guard + f"runpy.run_path({str(script)!r}, run_name='__main__')"
    arguments = ["--program", str(output), "--operators", _C.__file__, "--input", "photo.png",
                 "--detections", "boxes.json", "--output", "segments.png"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", command, *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = np.asarray(Image.open(tmp_path / "segments.png")).astype(int) - 1
    model = PanopticPredictor(str(run), "cpu").model
    from wsis_d2.modeling.instance import make_labels

    image = torch.from_numpy(picture[..., ::-1].transpose(2, 0, 1).astype(np.float32).copy())
    with torch.no_grad():
        labels = make_labels(
            torch.tensor([b["box"] for b in boxes], dtype=torch.float32),
            torch.tensor([0.9, 0.8]), torch.tensor([1, 0]), model.stuff_ids, (60, 90),
        )  # fmt: skip
        expected = model.instance(model.semantic.probabilities(image), image, labels).argmax(0)
    assert (found == expected.numpy()).mean() > 0.999


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--output", "x.onnx"], "x.onnx"), (["--output", "x.pt2", "--model", "./none"], "none")],
)
def test_bad_export_arguments_are_named(run, arguments, message):
    with pytest.raises(InputError, match=message):
        load_tool("export_model").main(["--model", str(run), *arguments])


def test_a_model_without_crf_is_not_exported():
    from wsis_d2.utils.export import PanopticGraph

    with pytest.raises(InputError, match="no instance head"):
        PanopticGraph(torch.nn.Linear(1, 1))


def test_counts_against_hand_worked_numbers():
    from wsis_d2.utils.model_analysis import parameter_table

    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5))
    model[0].bias.requires_grad_(False)
    rows = {row["part"]: row for row in parameter_table(model)}
    assert rows["model"]["parameters"] == 3 * 5 + 5 + 2 * 5
    assert rows["model"]["trained"] == 3 * 5 + 2 * 5
    assert rows["1"]["buffers"] == 5 + 5 + 1


def test_analysis_of_a_model(tmp_path):
    output = tmp_path / "model.json"
    arguments = ["--config-file", CONFIG, "--height", "64", "--width", "96"]
    assert load_tool("analyze_model").main([*arguments, "--output", str(output)]) == 0
    content = json.loads(output.read_text())
    parameters = {row["part"]: row["parameters"] for row in content["parameters"]}
    parts = ("detector", "semantic", "instance")
    assert parameters["model"] == sum(parameters[p] for p in parts)
    compute = {row["part"]: row for row in content["compute"]}
    # The semantic stem alone: 7 x 7 x 3 x 16 multiply-adds at every second pixel of 65 x 97.
    assert compute["semantic"]["flops"] > 7 * 7 * 3 * 16 * 33 * 49
    with pytest.raises(InputError, match="--height 1"):
        load_tool("analyze_model").main([*arguments, "--height", "1"])
