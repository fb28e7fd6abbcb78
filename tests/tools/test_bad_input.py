# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Bad input to every tool: one clear line that names the thing, an exit status that is not 0,
nothing executed and nothing that was there already lost."""

import json
import os
import pickle
import struct
import zlib

import pytest
import torch
from load_tool import ROOT, load_tool

from wsis_d2.utils.cli import main_with_errors

CONFIG = ROOT / "configs" / "Sample-Panoptic" / "tiny_semantic.yaml"


class Payload:
    """Makes the folder ``ran`` when it is unpickled."""

    def __init__(self, root):
        self.target = str(root / "ran")

    def __reduce__(self):
        return os.mkdir, (self.target,)


def bomb_png(side=60000):
    """Return a PNG of a few kilobytes that unpacks to ``side`` squared pixels."""

    def chunk(kind, data):
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    packer = zlib.compressobj(9)
    rows = packer.compress(bytes(1 << 20)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


# What is done to a file. Each returns nothing; ``ran`` must not appear.
def missing(path, root):
    path.unlink()


def empty(path, root):
    path.write_bytes(b"")


def truncated(path, root):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def text(path, root):
    path.write_text("these are no data: {]")


def json_list(path, root):
    path.write_text("[1, 2, 3]")


def bomb(path, root):
    path.write_bytes(bomb_png())


def payload_pickle(path, root):
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps({"model": {"w": Payload(root)}}))
    else:
        torch.save({"model": {"w": Payload(root)}}, path)


def nan_weights(path, root):
    torch.save({"model": {"semantic.w": torch.tensor([1.0, float("nan")])}}, path)


def yaml_payload(path, root):
    path.write_text(f"OUTPUT_DIR: !!python/object/apply:os.mkdir ['{root / 'ran'}']\n")


def unknown_key(path, root):
    path.write_text("MODEL:\n  NO_SUCH_KEY: 1\n")


def changed(change):
    """Return a damage that changes a JSON file."""

    def damage(path, root):
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    damage.__name__ = f"json_{change.__name__}"
    return damage


def nan_box(content):
    content["annotations"][0]["bbox"][0] = float("nan")


def leaves_root(content):
    content["images"][0]["file_name"] = "../../../etc/passwd"


def huge_image(content):
    content["images"][0]["height"] = 10**12


def png_leaves_root(content):
    content["annotations"][0]["file_name"] = "../../../etc/passwd"


def unknown_category(content):
    content["annotations"][0]["segments_info"][0]["category_id"] = 4711


def huge_segment_id(content):
    content["annotations"][0]["segments_info"][0]["id"] = 2**40


def wrong_schema(content):
    content["schema"] = 99


class World:
    """Paths of the tiny project and the commands that read them."""

    def __init__(self, tiny, root):
        self.root = root
        self.out = root / "out"
        self.weak = tiny.data / "weak_train.json"
        self.image = tiny.data / "images" / "train" / "0001.png"
        self.gt = tiny.data / "panoptic_train.json"
        self.gt_png = tiny.data / "panoptic_train" / "0001.png"
        self.manifest = tiny.store / "manifest.json"
        self.label_png = sorted((tiny.store / "semantic").glob("*.png"))[0]
        self.pred = tiny.run / "inference" / "sample_val_full" / "panoptic_pred.json"
        self.pred_png = sorted(self.pred.with_suffix("").glob("*.png"))[0]
        self.results = tiny.run / "results.json"
        self.metrics = tiny.run / "metrics.json"
        self.weights = tiny.run / "model_final.pth"
        self.config = tiny.run / "config.yaml"
        self.metadata = tiny.run / "metadata.json"
        self.recipe = root / "recipe.yaml"
        self.recipe.write_text(f'_BASE_: "{CONFIG}"\n')
        own = ["--annotations", self.weak, "--images", tiny.data / "images" / "train"]
        truth = ["--gt-json", self.gt, "--gt-dir", self.gt.with_suffix("")]
        val = ["--annotations", tiny.data / "weak_val.json", "--images",
               tiny.data / "images" / "val"]  # fmt: skip
        page = ["--output", self.out / "page.html"]
        store = ["--store", tiny.store]
        overrides = ["DATASETS.OWN", [{"name": "bad_input", "json": str(self.weak), "images":
                     str(self.image.parent), "labels": str(tiny.store)}], "DATASETS.TRAIN",
                     "('bad_input',)", "DATASETS.TEST", "()", "OUTPUT_DIR", self.out / "train",
                     "SOLVER.MAX_ITER", "1"]  # fmt: skip
        self.commands = {
            "report labels": ["report", "labels", *own, *truth, *store, *page],
            "report run": ["report", "run", *val, "--run", tiny.run, *page],
            "visualize annotation": ["visualize_data", "--source", "annotation", *own,
                                     "--output", self.out],
            "visualize pseudo": ["visualize_data", "--source", "pseudo", *own, *truth, *store,
                                 "--output", self.out],
            "visualize prediction": ["visualize_data", "--source", "prediction", *val,
                                     "--run", tiny.run, "--output", self.out],
            "visualize dataloader": ["visualize_data", "--source", "dataloader", "--config-file",
                                     self.recipe, "--output", self.out, *overrides],
            "budget": ["annotation_budget", *own, "--results", self.results,
                       "--output", self.out / "budget.json"],
            "publish": ["publish_model", "--run", tiny.run, "--id", "Test/model",
                        "--output", self.out],
            "demo": ["demo", "--model", tiny.run, "--sample", "1", "--output", self.out],
            "export": ["export_model", "--model", tiny.run, "--output", self.out / "m.pt2"],
            "analyze": ["analyze_model", "--config-file", self.recipe],
            "evaluate panoptic": ["evaluate_panoptic", "--pred-json", self.pred, "--pred-dir",
                                  self.pred.with_suffix(""), "--gt-json",
                                  tiny.data / "panoptic_val.json", "--gt-dir",
                                  tiny.data / "panoptic_val", "--output", self.out / "r.json"],
            "evaluate labels": ["evaluate_labels", *store, *truth, "--output",
                                self.out / "q.json"],
            "make labels": ["make_weak_labels", "boxes", *own, "--workers", "1", "--output",
                            self.out / "store", "--config-file", self.recipe],
            "train": ["train_net", "--config-file", self.recipe, *overrides],
        }  # fmt: skip


# tool, file that is damaged, damages, what the line must name (default: the file's name)
TABLE = [
    ("report labels", "weak", (missing, empty, truncated, json_list), None),
    ("report labels", "weak", (changed(nan_box), changed(leaves_root), changed(huge_image)), None),
    ("report labels", "image", (missing, truncated, text, bomb), None),
    ("report labels", "gt", (missing, truncated, changed(png_leaves_root),
                             changed(unknown_category), changed(huge_segment_id)), None),
    ("report labels", "gt_png", (missing, truncated), None),
    ("report labels", "manifest", (missing, truncated, json_list), "labels"),
    ("report labels", "label_png", (missing, truncated), None),
    ("report run", "results", (truncated, json_list, changed(wrong_schema)), None),
    ("report run", "pred", (truncated, changed(png_leaves_root)), None),
    ("visualize annotation", "weak", (missing, truncated), None),
    ("visualize annotation", "image", (missing, truncated, bomb), None),
    ("visualize pseudo", "manifest", (missing, truncated), "labels"),
    ("visualize prediction", "pred_png", (missing, truncated), None),
    ("visualize dataloader", "recipe", (missing, unknown_key), None),
    ("budget", "weak", (missing, truncated), None),
    ("budget", "results", (missing, truncated, changed(wrong_schema)), None),
    ("publish", "weights", (missing, empty, truncated, text, payload_pickle, nan_weights), None),
    ("publish", "config", (missing, text, unknown_key, yaml_payload), None),
    ("publish", "metadata", (missing, truncated, json_list), None),
    ("demo", "weights", (missing, empty, truncated, payload_pickle, nan_weights), None),
    ("demo", "config", (missing, yaml_payload), None),
    ("demo", "metadata", (missing, truncated), None),
    ("export", "weights", (missing, payload_pickle), None),
    ("analyze", "recipe", (missing, unknown_key), None),
    ("evaluate panoptic", "pred", (missing, truncated, changed(png_leaves_root),
                                   changed(unknown_category)), None),
    ("evaluate panoptic", "pred_png", (missing, truncated), None),
    ("evaluate labels", "manifest", (missing, truncated), "labels"),
    ("evaluate labels", "gt", (missing, truncated), None),
    ("make labels", "weak", (missing, truncated, changed(nan_box), changed(leaves_root)), None),
    ("make labels", "recipe", (missing,), None),
    ("train", "recipe", (missing,), None),
]  # fmt: skip
CASES = [(tool, file, damage, name) for tool, file, damages, name in TABLE for damage in damages]


@pytest.fixture
def world(tiny_copy, tmp_path):
    (tiny_copy.run / "config.yaml").write_text(
        CONFIG.read_text().replace(
            '_BASE_: "semantic_weak.yaml"', f'_BASE_: "{CONFIG.parent / "semantic_weak.yaml"}"'
        )
    )
    names = ["fish", "sky"]
    metadata = {"stuff_classes": names, "stuff_colors": [[0, 0, 0], [9, 9, 9]], "thing_ids": [0]}
    (tiny_copy.run / "metadata.json").write_text(json.dumps(metadata))
    torch.save({"model": {"semantic.w": torch.zeros(2)}}, tiny_copy.run / "model_final.pth")
    return World(tiny_copy, tmp_path)


def run(command, capfd, monkeypatch):
    """Run a tool in this process; return (exit status, lines on standard error)."""
    monkeypatch.delenv("WSIS_D2_TRUST_CHECKPOINTS", raising=False)
    name, *arguments = map(str, command)
    with pytest.raises(SystemExit) as left:
        main_with_errors(load_tool(name).main, arguments)
    status = left.value.code
    return status, capfd.readouterr().err.splitlines()


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
    assert not any("Traceback" in line for line in lines), lines[-5:]
    assert not (world.root / "ran").exists(), "code of the file was executed"
    if world.out.exists():
        assert (world.out / "kept.txt").read_text() == "made before"


def test_a_hostile_config_runs_nothing(world):
    """Detectron2 would run code that a YAML file names."""
    from wsis_d2.engine import load_cfg

    yaml_payload(world.recipe, world.root)
    with pytest.raises(Exception):  # noqa: B017  what it ends in is the caller's matter
        load_cfg(str(world.recipe))
    assert not (world.root / "ran").exists()


@pytest.mark.long
def test_the_world_is_sound(world, capfd, monkeypatch):
    """The commands succeed on undamaged files, so the failures above are the damage's."""
    for tool in ("report labels", "report run", "visualize pseudo", "budget", "publish",
                 "evaluate panoptic"):  # fmt: skip
        status, lines = run(world.commands[tool], capfd, monkeypatch)
        assert status == 0, (tool, lines[-3:])


@pytest.mark.parametrize(
    "name",
    ["report", "visualize_data", "annotation_budget", "publish_model", "demo", "export_model",
     "analyze_model", "benchmark", "load_exported", "evaluate_panoptic", "make_weak_labels"],
)  # fmt: skip
def test_help_has_examples(name, capsys):
    with pytest.raises(SystemExit) as left:
        load_tool(name).main(["-h"])
    assert left.value.code == 0
    assert "examples:" in capsys.readouterr().out
