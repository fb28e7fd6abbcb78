# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The exported network equals the model on other sizes, and runs without the project."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.load_tool import ROOT, load_tool
from PIL import Image
from torch.fx.experimental import _config

from wsis_d2.utils.errors import InputError

CONFIG = str(ROOT / "configs" / "Sample-Panoptic" / "tiny_instance.yaml")

exports = pytest.mark.skipif(
    not hasattr(_config, "backed_size_oblivious"),
    reason="this torch exports no sizes of 0 or 1",
)


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


def run_outside(folder, *arguments):
    """Run a copy of the loader where neither wsis_d2 nor Detectron2 can be imported."""
    from wsis_d2 import _C

    script = folder / "load_exported.py"
    script.write_text((ROOT / "tools" / "load_exported.py").read_text())
    guard = "import sys; sys.modules['wsis_d2'] = sys.modules['detectron2'] = None; "
    guard += "sys.argv[0] = 'load_exported.py'; import runpy; "
    command = guard + f"runpy.run_path({str(script)!r}, run_name='__main__')"
    arguments = ["--operators", _C.__file__, "--output", "segments.png", *map(str, arguments)]
    return subprocess.run(
        [sys.executable, "-c", command, *arguments], cwd=folder, capture_output=True, text=True
    )


@exports
@pytest.mark.long
def test_the_whole_network_runs_outside_the_project(tmp_path):
    """The shipped model, detector and CRF inside, on scenes of three sizes."""
    from wsis_d2.data.datasets.sample.scenes import draw_scene
    from wsis_d2.inference.predictor import PanopticPredictor

    output = tmp_path / "model.pt2"
    name = "Sample-Panoptic/tiny_instance"
    # The tool itself compares three sizes that were not traced and refuses to write on a
    # difference.
    load_tool("export_model").main(["--model", name, "--output", str(output), "--device", "cpu"])
    predictor = PanopticPredictor(name, "cpu")
    found_things = 0
    for index, (height, width) in enumerate(((128, 160), (97, 120), (60, 151))):
        scene = draw_scene(np.random.default_rng([7, index])).image[:height, :width]
        Image.fromarray(scene).save(tmp_path / "photo.png")
        done = run_outside(tmp_path, "--program", output, "--input", "photo.png")
        assert done.returncode == 0, done.stderr
        found = np.asarray(Image.open(tmp_path / "segments.png"))
        expected = predictor(scene)
        # The same segments, whatever their numbers, with the same names and scores.
        pairs = set(zip(found.flatten().tolist(), expected.ids.flatten().tolist(), strict=True))
        assert len(pairs) == len(expected.segments) == len(np.unique(found))
        lines = {
            f"{predictor.classes[s['category_id']]['name']}, score {s['score']:.3f}, "
            f"{s['area']} pixels"
            for s in expected.segments
        }
        assert {line.split(": ", 1)[1] for line in done.stdout.splitlines()} == lines
        found_things += sum(s["isthing"] for s in expected.segments)
    assert found_things >= 3


@exports
@pytest.mark.long
def test_with_given_detections_it_equals_the_model(run, tmp_path):
    from wsis_d2.inference.predictor import PanopticPredictor
    from wsis_d2.modeling.instance import make_labels

    output = tmp_path / "model.pt2"
    load_tool("export_model").main(
        ["--model", str(run), "--output", str(output), "--detections", "given"]
    )
    picture = np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "photo.png")
    model = PanopticPredictor(str(run), "cpu").model
    model.min_stuff_area = model.min_thing_area = 0
    image = torch.from_numpy(picture[..., ::-1].transpose(2, 0, 1).astype(np.float32).copy())
    every = [{"box": [5, 5, 40, 40], "score": 0.9, "class": 1},
             {"box": [30, 10, 80, 50], "score": 0.8, "class": 0}]  # fmt: skip
    for boxes in (every, every[:1], []):
        (tmp_path / "boxes.json").write_text(json.dumps(boxes))
        done = run_outside(
            tmp_path, "--program", output, "--input", "photo.png", "--detections", "boxes.json"
        )
        assert done.returncode == 0, done.stderr
        found = np.asarray(Image.open(tmp_path / "segments.png")).astype(int) - 1
        with torch.no_grad():
            labels = make_labels(
                torch.tensor([b["box"] for b in boxes], dtype=torch.float32).reshape(-1, 4),
                torch.tensor([b["score"] for b in boxes]),
                torch.tensor([b["class"] for b in boxes], dtype=torch.int64),
                model.stuff_ids, (60, 90),
            )  # fmt: skip
            scores = model.instance(model.semantic.probabilities([image])[0], image, labels)
        # Segments below the least area are dissolved; the others are the best label's.
        best = scores.argmax(0).numpy()
        area = np.bincount(best.flatten(), minlength=len(labels))
        kept = (area >= [8 if k < len(boxes) else 32 for k in range(len(labels))]) & (area > 0)
        scores[torch.from_numpy(~kept)] = -torch.inf
        assert (found == scores.argmax(0).numpy()).mean() > 0.999
    done = run_outside(tmp_path, "--program", output, "--input", "photo.png")
    assert done.returncode == 1 and done.stderr.strip().endswith("its detections are given")


@pytest.mark.long
@pytest.mark.parametrize(("min_size", "max_size"), [(0, 1333), (200, 260), (96, 2000)])
def test_the_detector_as_a_graph_detects_what_the_detector_does(run, min_size, max_size):
    """Random weights give many boxes; sizes are larger, smaller and bounded by the longer side."""
    from wsis_d2.export.detector import DetectorGraph
    from wsis_d2.inference.predictor import PanopticPredictor

    model = PanopticPredictor(str(run), "cpu", score_threshold=0.0).model
    detector = model.detector
    detector.min_size, detector.max_size = min_size, max_size
    # Of one picture, more detections than the limit lets through.
    detector.rcnn.roi_heads.box_predictor.test_topk_per_image = 40
    graph = DetectorGraph(detector, model.thing_ids).eval()
    for seed, (height, width) in enumerate(((128, 160), (75, 211), (33, 40))):
        generator = torch.Generator().manual_seed(seed)
        image = torch.rand(3, height, width, generator=generator) * 255
        with torch.no_grad():
            (wanted,) = detector.detect([image])
            boxes, scores, classes = graph(image)
        assert len(wanted) == len(boxes) == 40
        assert torch.allclose(wanted.scores, scores, atol=1e-5)
        far = (boxes[:, None] - wanted.pred_boxes.tensor[None]).abs().amax(2) > 0.01
        ids = torch.tensor(model.thing_ids)[wanted.pred_classes]
        far |= classes[:, None] != ids[None]
        assert not far.all(0).any() and not far.all(1).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--output", "x.onnx"], "x.onnx"), (["--output", "x.pt2", "--model", "./none"], "none")],
)
def test_bad_export_arguments_are_named(run, arguments, message):
    with pytest.raises(InputError, match=message):
        load_tool("export_model").main(["--model", str(run), *arguments])


def test_what_is_not_exported_is_named():
    from wsis_d2.export.detector import DetectorGraph
    from wsis_d2.export.model import PanopticGraph

    parts = SimpleNamespace(backbone=None, proposal_generator=None, roi_heads=None)
    with pytest.raises(InputError, match="--detections given"):
        DetectorGraph(SimpleNamespace(rcnn=parts), [0])

    with pytest.raises(InputError, match="no instance head"):
        PanopticGraph(torch.nn.Linear(1, 1))


def test_counts_against_hand_worked_numbers():
    from wsis_d2.modeling.analysis import parameter_table

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


def multiply_adds(model, run):
    """Of the convolutions and linear layers that run, from the shapes that they give."""
    total = 0

    def count(module, _, output):
        nonlocal total
        total += output.numel() * module.weight[0].numel()

    for module in model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            module.register_forward_hook(count)
    with torch.no_grad():
        run(model)
    return total


def test_recipes_in_one_table(tmp_path, capsys):
    """What learns from tags is counted too; convolutions are nearly all of it."""
    from detectron2.modeling import build_model

    from wsis_d2.engine import load_cfg

    folder = ROOT / "configs"
    files = [folder / "Lite" / "tag_classifier_Lite0.yaml",
             folder / "Sample-TagClassifier" / "tag_segmenter.yaml"]  # fmt: skip
    options = [o for file in files for o in ("--config-file", str(file))]
    output = tmp_path / "models.json"
    size = ["--height", "64", "--width", "96", "--output", str(output)]
    assert load_tool("analyze_model").main([*options, *size]) == 0
    table = capsys.readouterr().out
    assert all(str(file) in table for file in files)
    image = torch.zeros(3, 64, 96)
    for file, content in zip(files, json.loads(output.read_text())["recipes"], strict=True):
        model = build_model(load_cfg(str(file), ["MODEL.DEVICE", "cpu"])).eval()
        wanted = multiply_adds(model, lambda network: network([{"image": image}]))
        ((name, flops),) = [(row["part"], row["flops"]) for row in content["compute"]]
        assert name.startswith("tag ") and wanted <= flops < 1.1 * wanted
        whole = sum(p.numel() for p in model.parameters())
        assert content["parameters"][0]["parameters"] == whole
