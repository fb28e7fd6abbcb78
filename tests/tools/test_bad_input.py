# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Bad input to every tool: one clear line that names the thing, an exit status that is not 0,
nothing executed and nothing that was there already lost."""

import json
import runpy
import shutil
import sys

import cv2
import numpy as np
import pytest
import torch
from helpers.annotation_writers import (
    write_coco,
    write_cvat,
    write_label_studio,
    write_labelme,
    write_voc,
    write_yolo,
)
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

from wsis_d2.data.datasets.sample.dataset import CATEGORIES
from wsis_d2.structures.classes import parse_categories
from wsis_d2.utils.cli import main_with_errors

CONFIG = ROOT / "configs" / "Sample-Panoptic" / "tiny_semantic.yaml"
TAG_CONFIG = ROOT / "configs" / "Sample-TagClassifier" / "tag_classifier_R_18.yaml"
OUTSIDE = "load_exported"  # runs without the project, so it ends by itself


class World:
    """Paths of the tiny project and the commands that read them."""

    def __init__(self, tiny, root, program):
        self.root, self.out = root, root / "out"
        self.weak = tiny.data / "weak_train.json"
        self.image = tiny.data / "images" / "train" / "0001.png"
        self.gt = tiny.data / "panoptic_train.json"
        self.gt_png = tiny.data / "panoptic_train" / "0001.png"
        self.manifest = tiny.store / "manifest.json"
        self.label_png = sorted((tiny.store / "semantic").glob("*.png"))[0]
        self.pred = tiny.run / "inference" / "sample_val_full" / "panoptic_pred.json"
        self.pred_png = sorted(self.pred.with_suffix("").glob("*.png"))[0]
        self.val_gt = tiny.data / "panoptic_val.json"
        self.results = tiny.run / "results.json"
        self.metrics = tiny.run / "metrics.json"
        self.weights = tiny.run / "model_final.pth"
        self.config = tiny.run / "config.yaml"
        self.metadata = tiny.run / "metadata.json"
        self.classifier = root / "classifier.pth"
        torch.save({"model": {"w": torch.zeros(2)}}, self.classifier)
        self.recipe = root / "recipe.yaml"
        self.recipe.write_text(f'_BASE_: "{CONFIG}"\n')
        self.tag_recipe = root / "tag_recipe.yaml"
        self.tag_recipe.write_text(f'_BASE_: "{TAG_CONFIG}"\n')
        self.photo = root / "photo.png"
        self.photo.write_bytes(self.image.read_bytes())
        self.video = root / "film.avi"
        film = cv2.VideoWriter(str(self.video), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48))
        for shade in (0, 90, 200):
            film.write(np.full((48, 64, 3), shade, np.uint8))
        film.release()
        self._annotation_files(root)
        self._exported(root, program)
        self._commands(tiny)

    def _annotation_files(self, root):
        """The training boxes as annotation tools write them."""
        content = json.loads(self.weak.read_text())
        names = {c["id"]: c["name"] for c in content["categories"]}
        truth = {i["file_name"]: (i["width"], i["height"], []) for i in content["images"]}
        files = {i["id"]: i["file_name"] for i in content["images"]}
        for a in content["annotations"]:
            truth[files[a["image_id"]]][2].append((names[a["category_id"]], *a["bbox"]))
        classes = sorted(names.values())
        self.coco = write_coco(root, truth, classes)
        self.voc = write_voc(root, truth, edges=False) / "0001.xml"
        self.yolo = write_yolo(root, truth, classes) / "0001.txt"
        self.classes = self.yolo.parent / "classes.txt"
        self.classes.write_text("\n".join(classes))
        self.labelme = write_labelme(root, truth) / "0001.json"
        self.cvat = write_cvat(root, truth)
        self.tasks = write_label_studio(root, truth)
        self.tags = root / "tags.csv"
        self.tags.write_text("image,tags\n0001.png,sky;grass\n")

    def _exported(self, root, program):
        self.program = root / "model.pt2"
        self.program.write_bytes(program.read_bytes())
        self.detections = root / "boxes.json"
        self.detections.write_text('[{"box": [5, 5, 40, 40], "score": 0.9, "class": 0}]')

    def _commands(self, tiny):
        from wsis_d2 import _C

        out, photos = self.out, self.image.parent
        own = ["--annotations", self.weak, "--images", photos]
        truth = ["--gt-json", self.gt, "--gt-dir", self.gt.with_suffix("")]
        val = ["--annotations", tiny.data / "weak_val.json", "--images",
               tiny.data / "images" / "val"]  # fmt: skip
        page = ["--output", out / "page.html"]
        store = ["--store", tiny.store]
        overrides = ["DATASETS.OWN", [{"name": "bad_input", "json": str(self.weak), "images":
                     str(photos), "labels": str(tiny.store)}], "DATASETS.TRAIN",
                     "('bad_input',)", "DATASETS.TEST", "()", "OUTPUT_DIR", out / "train",
                     "SOLVER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "2"]  # fmt: skip
        recipe = ["--config-file", self.recipe]
        labels = ["--workers", "1", "--output", out / "store"]
        demo = ["demo", "--device", "cpu", "--output", out]
        brought = ["--images", photos, "--output", out / "own.json"]
        self.commands = {
            "report labels": ["report", "labels", *own, *truth, *store, *page],
            "report run": ["report", "run", *val, "--run", tiny.run, *page],
            "visualize annotation": ["visualize_data", "--source", "annotation", *own,
                                     "--output", out],
            "visualize proposal": ["visualize_data", "--source", "proposal", *own, *recipe,
                                   "--output", out],
            "visualize pseudo": ["visualize_data", "--source", "pseudo", *own, *truth, *store,
                                 "--output", out],
            "visualize prediction": ["visualize_data", "--source", "prediction", *val,
                                     "--run", tiny.run, "--output", out],
            "visualize dataloader": ["visualize_data", "--source", "dataloader", *recipe,
                                     "--output", out, *overrides],
            "import coco": ["import_annotations", "coco", "--annotations", self.coco, *brought],
            "import voc": ["import_annotations", "voc", "--annotations", self.voc.parent,
                           *brought],
            "import yolo": ["import_annotations", "yolo", "--annotations", self.yolo.parent,
                            *brought],
            "import labelme": ["import_annotations", "labelme", "--annotations",
                               self.labelme.parent, *brought],
            "import cvat": ["import_annotations", "cvat", "--annotations", self.cvat, *brought],
            "import labelstudio": ["import_annotations", "labelstudio", "--annotations",
                                   self.tasks, *brought],
            "import tags": ["import_annotations", "coco", "--annotations", self.coco, "--tags",
                            self.tags, "--categories", self.weak, *brought],
            "budget": ["annotation_budget", *own, "--results", self.results,
                       "--output", out / "budget.json"],
            "tables": ["make_tables", tiny.run, "--output", out],
            "publish": ["publish_model", "--run", tiny.run, "--id", "Test/model",
                        "--output", out],
            "demo": [*demo, "--model", tiny.run, "--sample", "1"],
            "demo photo": [*demo, "--input", self.photo],
            "demo video": [*demo, "--input", self.video],
            "export": ["export_model", "--model", tiny.run, "--output", out / "m.pt2"],
            "load": [OUTSIDE, "--program", self.program, "--operators", _C.__file__, "--input",
                     self.photo, "--detections", self.detections, "--output", out / "s.png"],
            "analyze": ["analyze_model", *recipe],
            "benchmark": ["benchmark", "--tasks", "data", "--repeat", "1", "--warmup", "0",
                          *recipe, *overrides],
            "evaluate panoptic": ["evaluate_panoptic", "--pred-json", self.pred, "--pred-dir",
                                  self.pred.with_suffix(""), "--gt-json", self.val_gt,
                                  "--gt-dir", self.val_gt.with_suffix(""),
                                  "--output", out / "r.json"],
            "evaluate labels": ["evaluate_labels", *store, *truth, "--output", out / "q.json"],
            "submission": ["make_submission", "voc", "--source", "panoptic", "--predictions",
                           self.pred.parent, "--output", out / "submission"],
            "make boxes": ["make_weak_labels", "boxes", *own, *labels, *recipe],
            "make tags": ["make_weak_labels", "tags", *own, *labels, "--classifier",
                          self.classifier, "--config-file", self.tag_recipe],
            "make merge": ["make_weak_labels", "merge", *own, *labels, "--boxes", tiny.store,
                           "--tags", tiny.store],
            "train": ["train_net", *recipe, *overrides],
            "evaluate": ["train_net", *recipe, "--eval-only", *overrides, "MODEL.WEIGHTS",
                         self.weights, "DATASETS.TEST", "('bad_input',)"],
            "iterate": ["train_iterative", *recipe, "--rounds", "1", *overrides],
            "contours": ["train_contours", "--photographs", self.photo, "--scenes", "1",
                         "--epochs", "1", "--output", out / "w.npz"],
        }  # fmt: skip


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
