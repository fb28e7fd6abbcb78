# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Bad input to every tool: one clear line that names the thing, an exit status that is not 0,
nothing executed and nothing that was there already lost."""

import json
import runpy
import shutil
import sys

import pytest
import torch
from helpers.damages import (
    bomb,
    changed,
    deep_json,
    empty,
    entity_bomb,
    folder,
    huge_image,
    huge_segment_id,
    json_list,
    leaves_root,
    long_number,
    missing,
    nan_box,
    nan_weights,
    other_size,
    payload_pickle,
    png_leaves_root,
    replaced,
    rewritten,
    text,
    truncated,
    unknown_category,
    unknown_key,
    wrong_schema,
    yaml_payload,
)
from helpers.load_tool import ROOT, load_tool
from helpers.tool_world import CONFIG, OUTSIDE, World

from wsis_d2.data.datasets.sample.dataset import CATEGORIES
from wsis_d2.structures.classes import parse_categories
from wsis_d2.utils.cli import main_with_errors

FILE = (missing, empty, truncated, text, folder)
JSON = (*FILE, json_list, deep_json, long_number)
WEAK = (*JSON, changed(nan_box), changed(leaves_root), changed(huge_image))
PANOPTIC = (*JSON, changed(png_leaves_root), changed(unknown_category), changed(huge_segment_id))
RESULTS = (*JSON, changed(wrong_schema))
STORE = (missing, empty, truncated, text, json_list, deep_json)
PICTURE = (*FILE, bomb)
WEIGHTS = (*FILE, payload_pickle, nan_weights)
RECIPE = (missing, text, folder, unknown_key, yaml_payload)

# tool, file that is damaged, damages, what the line must name (default: the file's name)
TABLE = [
    ("report labels", "weak", WEAK, None),
    ("report labels", "image", (*PICTURE, other_size), None),
    ("report labels", "gt", PANOPTIC, None),
    ("report labels", "gt_png", (*PICTURE, other_size), None),
    ("report labels", "manifest", STORE, "labels"),
    ("report labels", "label_png", (*PICTURE, other_size), "0001"),
    ("report run", "results", (truncated, text, json_list, changed(wrong_schema)), None),
    ("report run", "pred", (truncated, json_list, changed(png_leaves_root)), None),
    ("report run", "pred_png", (missing, truncated, bomb), None),
    ("visualize annotation", "weak", WEAK, None),
    ("visualize annotation", "image", (*PICTURE, other_size), None),
    ("visualize proposal", "image", (missing, truncated, bomb), None),
    ("visualize proposal", "recipe", RECIPE, None),
    ("visualize pseudo", "manifest", STORE, "labels"),
    ("visualize pseudo", "label_png", PICTURE, None),
    ("visualize prediction", "pred", (truncated, changed(png_leaves_root)), None),
    ("visualize prediction", "pred_png", PICTURE, None),
    ("visualize dataloader", "recipe", RECIPE, None),
    ("visualize dataloader", "weak", (truncated, changed(nan_box)), None),
    ("import coco", "coco", (*JSON, changed(nan_box), changed(leaves_root),
                             changed(huge_image)), None),
    ("import coco", "image", (empty, text, bomb, other_size), None),
    ("import voc", "voc", (empty, truncated, text, entity_bomb, replaced("<xmin>", "<xmin>nan"),
                           replaced("<width>160", "<width>999")), None),
    ("import yolo", "yolo", (text, replaced(" ", " nan "), rewritten("binary", "\0\1\2")), None),
    ("import yolo", "classes", (missing, empty, folder), "classes"),
    ("import labelme", "labelme", (empty, truncated, text, json_list, deep_json,
                                   replaced('"points": [[', '"points": [[NaN, 1], [')), None),
    ("import cvat", "cvat", (*FILE, entity_bomb, replaced('xtl="', 'xtl="nan'),
                             replaced('name="0001', 'name="../../etc/gone')), None),
    ("import labelstudio", "tasks", (*JSON, replaced('"x": ', '"x": NaN, "y": ')), None),
    ("import tags", "tags", (missing, empty, text, folder,
                             rewritten("wide", "image,tags\n0001.png,a,b,c\n"),
                             rewritten("leaves_root", "image,tags\n../../etc/passwd,sky\n")),
     None),
    ("import tags", "weak", JSON, None),
    ("budget", "weak", WEAK, None),
    ("budget", "results", RESULTS, None),
    ("tables", "results", (*RESULTS[1:4], json_list, changed(wrong_schema)), None),
    ("publish", "weights", WEIGHTS, None),
    ("publish", "config", RECIPE, None),
    ("publish", "metadata", JSON, None),
    ("publish", "results", (truncated, json_list), None),
    ("demo", "weights", WEIGHTS, None),
    ("demo", "config", RECIPE, None),
    ("demo", "metadata", JSON, None),
    ("demo photo", "photo", PICTURE, None),
    ("demo video", "video", FILE, None),
    ("export", "weights", WEIGHTS, None),
    ("export", "config", RECIPE, None),
    ("load", "program", (*FILE, payload_pickle), "model.pt2"),
    ("load", "photo", PICTURE, None),
    ("load", "detections", (*FILE, json_list), None),
    ("analyze", "recipe", RECIPE, None),
    ("benchmark", "recipe", RECIPE, None),
    ("benchmark", "weak", (truncated, changed(nan_box)), None),
    ("evaluate panoptic", "pred", PANOPTIC, None),
    ("evaluate panoptic", "val_gt", JSON, None),
    ("evaluate panoptic", "pred_png", (*PICTURE, other_size), None),
    ("evaluate labels", "manifest", STORE, "labels"),
    ("evaluate labels", "label_png", (*PICTURE, other_size), "1"),
    ("evaluate labels", "gt", PANOPTIC, None),
    ("evaluate labels", "gt_png", PICTURE, None),
    ("submission", "pred", (missing, empty, truncated, json_list), None),
    ("make boxes", "weak", WEAK, None),
    ("make boxes", "recipe", RECIPE, None),
    ("make tags", "classifier", WEIGHTS, None),
    ("make tags", "weak", (truncated, changed(nan_box)), None),
    ("make merge", "manifest", STORE, "labels"),
    ("train", "recipe", RECIPE, None),
    ("train", "weak", (truncated, changed(nan_box), changed(leaves_root)), None),
    ("train", "manifest", STORE, "labels"),
    ("train", "image", (missing, truncated, bomb), None),
    ("evaluate", "weights", WEIGHTS, None),
    ("iterate", "recipe", RECIPE, None),
    ("iterate", "manifest", STORE, "labels"),
    ("contours", "photo", PICTURE, None),
]  # fmt: skip
CASES = [(tool, file, damage, name) for tool, file, damages, name in TABLE for damage in damages]


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    """A small exported program; a model of its own, since damage comes before the network runs."""
    from wsis_d2.export.model import OUTPUTS

    if not hasattr(torch.export.Dim, "AUTO"):
        pytest.skip("this torch exports no program of any size")

    class Joins(torch.nn.Module):
        def forward(self, image, boxes, scores, classes):
            label = image.argmax(dim=0)
            return label, classes, scores, boxes, image, image

    auto = torch.export.Dim.AUTO
    example = (torch.rand(3, 40, 50), torch.rand(3, 4), torch.rand(3), torch.zeros(3).long())
    dynamic = {"image": {1: auto, 2: auto}, **dict.fromkeys(("boxes", "scores", "classes"), None)}
    made = torch.export.export(Joins(), example, dynamic_shapes=dynamic)
    facts = {"classes": [{"name": "fish"}], "stuff_ids": [], "format": "BGR",
             "detections": "given", "outputs": OUTPUTS}  # fmt: skip
    path = tmp_path_factory.mktemp("program") / "model.pt2"
    torch.export.save(made, path, extra_files={"wsis_d2.json": json.dumps(facts)})
    return path


@pytest.fixture(scope="module")
def weights():
    """Arrays of the network that the run's config describes, at random."""
    from wsis_d2.engine import load_cfg
    from wsis_d2.modeling.build import build_model

    return build_model(load_cfg(str(CONFIG), ["MODEL.DEVICE", "cpu"])).state_dict()


@pytest.fixture
def world(tiny_copy, tmp_path, program, weights):
    (tiny_copy.run / "config.yaml").write_text(
        CONFIG.read_text().replace(
            '_BASE_: "semantic_weak.yaml"', f'_BASE_: "{CONFIG.parent / "semantic_weak.yaml"}"'
        )
    )
    classes = parse_categories(CATEGORIES, "sample")
    metadata = {k: classes.metadata()[k] for k in ("stuff_classes", "stuff_colors", "thing_ids")}
    (tiny_copy.run / "metadata.json").write_text(json.dumps(metadata))
    torch.save({"model": weights}, tiny_copy.run / "model_final.pth")
    return World(tiny_copy, tmp_path, program)


def run(command, capfd, monkeypatch):
    """Run a tool in this process; return (exit status, lines on standard error)."""
    monkeypatch.delenv("WSIS_D2_TRUST_CHECKPOINTS", raising=False)
    name, *arguments = map(str, command)
    with pytest.raises(SystemExit) as left:
        if name == OUTSIDE:
            monkeypatch.setattr(sys, "argv", [name, *arguments])
            runpy.run_path(str(ROOT / "tools" / f"{name}.py"), run_name="__main__")
        else:
            main_with_errors(load_tool(name).main, arguments)
    status = left.value.code
    lines = capfd.readouterr().err.splitlines()
    return (1, [*lines, *status.splitlines()]) if isinstance(status, str) else (status, lines)


@pytest.mark.long
@pytest.mark.parametrize(
    ("tool", "file", "damage", "name"),
    CASES,
    ids=[f"{t}-{f}-{d.__name__}".replace(" ", "_") for t, f, d, _ in CASES],
)
def test_bad_input_ends_in_one_clear_line(world, capfd, monkeypatch, tool, file, damage, name):
    path = getattr(world, file)
    damage(path, world.root)
    world.out.mkdir()
    (world.out / "kept.txt").write_text("made before")
    status, lines = run(world.commands[tool], capfd, monkeypatch)
    assert status not in (0, None), f"exit status {status}"
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, lines[-5:]
    assert (name or path.stem) in errors[0], errors[0]
    assert len(errors[0]) < 600, f"a line of {len(errors[0])} characters"
    assert not any("Traceback" in line for line in lines), lines[-5:]
    assert not (world.root / "ran").exists(), "code of the file was executed"
    assert (world.out / "kept.txt").read_text() == "made before"


def test_a_hostile_config_runs_nothing(world):
    """Detectron2 would run code that a YAML file names."""
    from wsis_d2.engine import load_cfg

    yaml_payload(world.recipe, world.root)
    with pytest.raises(Exception):  # noqa: B017  what it ends in is the caller's matter
        load_cfg(str(world.recipe))
    assert not (world.root / "ran").exists()


# What needs a network with the weights' own shapes, or hours, has tests of its own.
NOT_SOUND = {"demo", "export", "submission", "make tags", "evaluate", "train", "iterate", "load",
             "contours"}  # fmt: skip


@pytest.mark.long
def test_the_world_is_sound(world, capfd, monkeypatch):
    """The commands succeed on undamaged files, so the failures above are the damage's."""
    for tool, command in world.commands.items():
        if tool not in NOT_SOUND:
            shutil.rmtree(world.out, ignore_errors=True)
            status, lines = run(command, capfd, monkeypatch)
            assert status == 0, (tool, lines[-3:])


@pytest.mark.long
def test_a_bad_image_costs_that_image_alone(world, capfd, monkeypatch):
    """Label making and prediction name what they could not read and do all the rest."""
    from wsis_d2.weak_labels.store import LabelStore

    truncated(world.image, world.root)
    status, lines = run(world.commands["make boxes"], capfd, monkeypatch)
    assert status == 1 and any(world.image.name in line for line in lines), lines[-5:]
    store = LabelStore.open(world.out / "store")
    content = json.loads(world.weak.read_text())
    bad = {i["id"] for i in content["images"] if i["file_name"] == world.image.name}
    assert {i["id"] for i in content["images"] if not store.done(i["id"])} == bad
    command = ["demo", "--device", "cpu", "--output", world.out, "--input", world.image.parent]
    status, lines = run(command, capfd, monkeypatch)
    assert status == 1
    assert [world.image.name in line for line in lines if line.startswith("error: ")] == [True]
    predicted = json.loads((world.out / "panoptic.json").read_text())
    assert len(predicted["images"]) == len(content["images"]) - 1


@pytest.mark.parametrize(
    "path", sorted([*(ROOT / "tools").glob("*.py"), *(ROOT / "datasets").glob("*.py")]),
    ids=lambda p: p.stem,
)  # fmt: skip
def test_help_has_examples(path, capsys):
    arguments = (path.stem, path.parent.name) if path.parent.name != "tools" else (path.stem,)
    with pytest.raises(SystemExit) as left:
        load_tool(*arguments).main(["-h"])
    assert left.value.code == 0
    said = capsys.readouterr().out
    assert "examples:" in said.lower() and path.name in said
