# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""A run's datasets meet the classes of the trained models it begins with."""

import json
import logging
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from helpers.load_tool import ROOT
from helpers.tiny_panoptic import CATEGORIES, TinyData, renumber, tiny_cfg

from wsis_d2.checkpoint.start import load_for_training
from wsis_d2.data.datasets.own.custom import register_weak_panoptic, unregister
from wsis_d2.engine import load_cfg
from wsis_d2.engine.run_classes import run_classes, trained_classes
from wsis_d2.engine.setup import setup
from wsis_d2.engine.trainer import WSISTrainer
from wsis_d2.structures.classes import parse_categories
from wsis_d2.utils.errors import InputError

SAMPLE = ROOT / "configs/Sample-Panoptic/Base-Sample.yaml"
# tiny_panoptic's cat, sky, dog, sea in another order.
OTHER_IDS = {"sea": 1, "dog": 2, "sky": 4, "cat": 7}
ORDER = ["cat", "sky", "dog", "sea"]


@pytest.fixture
def data(tmp_path):
    """tiny_weak and tiny_full; other_full is the same with other ids."""
    opened = TinyData(tmp_path / "data", count=3)
    folder = opened.folder
    renumber(folder / "weak.json", folder / "other_weak.json", OTHER_IDS)
    register_weak_panoptic(
        "other_full", folder / "other_weak.json", folder / "images", supervision="full",
        panoptic_json=folder / "panoptic.json", panoptic_dir=folder / "panoptic",
    )  # fmt: skip
    yield opened
    opened.close()
    unregister("other_full")


def write_run(folder: Path, rows: list[tuple[str, int]], weights: dict | None = None) -> Path:
    """A trained run: a checkpoint with the classes of its training beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    categories = [{"id": k, "name": n, "isthing": t} for k, (n, t) in enumerate(rows, 1)]
    metadata = parse_categories(categories, "x").metadata()
    (folder / "metadata.json").write_text(json.dumps(metadata))
    torch.save({"model": weights or {"w": torch.zeros(1)}}, folder / "model_final.pth")
    return folder / "model_final.pth"


def tiny_rows(order=ORDER):
    kinds = {c["name"]: c["isthing"] for c in CATEGORIES}
    return [(name, kinds[name]) for name in order]


def cfg_of(data, *opts, **how):
    base = ["DATASETS.TRAIN", "()", "DATASETS.TEST", "('other_full',)",
            "OUTPUT_DIR", str(data.folder / "out")]  # fmt: skip
    return load_cfg(str(SAMPLE), [*base, *map(str, opts)], **how)


def names(dataset):
    return MetadataCatalog.get(dataset).thing_classes


def test_a_test_set_is_taken_in_the_models_order(data):
    weights = write_run(data.folder / "run", tiny_rows())
    assert names("other_full") == ["sea", "dog", "sky", "cat"]
    cfg = cfg_of(data, "MODEL.WEIGHTS", weights, evaluates=True)
    assert names("other_full") == ORDER and cfg.MODEL.WSIS.THING_IDS == [0, 2]
    true = DatasetCatalog.get("tiny_full")
    for mine, other in zip(DatasetCatalog.get("other_full"), true, strict=True):
        assert mine["annotations"] == other["annotations"]
        assert mine["image_tags"] == other["image_tags"]
        assert [s["category_id"] for s in mine["segments_info"]] == [
            s["category_id"] for s in other["segments_info"]
        ]


def test_a_runs_order_is_its_own(data):
    """What an earlier run in the process shared does not stay."""
    weights = write_run(data.folder / "run", tiny_rows())
    cfg_of(data, "MODEL.WEIGHTS", weights)
    assert names("other_full") == ORDER
    assert cfg_of(data).MODEL.WSIS.THING_IDS == [1, 3]
    assert names("other_full") == ["sea", "dog", "sky", "cat"]


def test_a_model_is_as_good_on_the_renumbered_set(data, tmp_path):
    """The same network, the same pictures and truth, other category ids: the same figures."""
    cfg = tiny_cfg(
        tmp_path / "run", "DATASETS.TEST", "('tiny_full',)", "MODEL.WSIS.STAGE", "semantic"
    )
    torch.manual_seed(0)
    model = build_model(cfg)
    weights = write_run(tmp_path / "run", tiny_rows(), model.state_dict())
    expected = WSISTrainer.test(cfg, model)["sem_seg"]
    cfg = tiny_cfg(
        tmp_path / "again", "DATASETS.TRAIN", "()", "DATASETS.TEST", "('other_full',)",
        "MODEL.WSIS.STAGE", "semantic", "MODEL.WEIGHTS", str(weights),
    )  # fmt: skip
    model = build_model(cfg)
    load_for_training(cfg, model)
    found = WSISTrainer.test(cfg, model)["sem_seg"]
    assert found == pytest.approx(expected, nan_ok=True)
    classes = [found[f"IoU-{name}"] for name in ORDER]
    assert len(set(np.round(classes, 6))) > 1  # an exchange would show


OTHERS = {
    "another name": ([("cow", 1), *tiny_rows()[1:]], '"cow"'),
    "one class less": (tiny_rows()[:3], '"sea"'),
    "another kind": ([("cat", 0), *tiny_rows()[1:]], '"cat" is'),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_model_of_other_classes_is_not_evaluated(case, data, caplog):
    rows, words = OTHERS[case]
    weights = write_run(data.folder / "run", rows)
    with pytest.raises(InputError) as error:
        cfg_of(data, "MODEL.WEIGHTS", weights, evaluates=True)
    for text in (words, "dataset other_full", "run/metadata.json"):
        assert text in str(error.value)
    # It may be trained on: its features serve other classes.
    with caplog.at_level(logging.WARNING):
        cfg_of(data, "MODEL.WEIGHTS", weights)
    assert "other classes" in caplog.text and words in caplog.text


def test_parts_that_are_joined_must_agree(data):
    one = write_run(data.folder / "one", tiny_rows())
    two = write_run(data.folder / "two", tiny_rows(ORDER[::-1]))
    other = write_run(data.folder / "three", OTHERS["another name"][0])
    parts = ("MODEL.WSIS.DETECTOR_WEIGHTS", one, "MODEL.WSIS.SEMANTIC_WEIGHTS")
    cfg_of(data, *parts, one)
    assert names("other_full") == ORDER
    with pytest.raises(InputError, match=r"two/metadata\.json: .*another order.*one/metadata"):
        cfg_of(data, *parts, two)
    with pytest.raises(InputError, match=r'three/metadata\.json: .*"cat".*one/metadata'):
        cfg_of(data, *parts, other)


def test_a_detector_of_other_classes_is_mapped_by_name(data):
    weights = write_run(data.folder / "detector", [("dog", 1), ("zebra", 1), ("cat", 1)])
    opts = ("MODEL.WSIS.DETECTOR_WEIGHTS", weights)
    with pytest.raises(InputError, match="zebra"):
        cfg_of(data, *opts)
    cfg = cfg_of(data, *opts, "MODEL.WSIS.DETECTOR_CLASSES", "['dog', 'zebra', 'cat']")
    assert cfg.MODEL.WSIS.DETECTOR_CLASS_MAP == [0, -1, 1]
    assert names("other_full") == ["sea", "dog", "sky", "cat"]


def test_a_resumed_run_keeps_its_classes(data):
    out = data.folder / "out"
    write_run(out, tiny_rows())
    (out / "last_checkpoint").write_text("model_final.pth")
    cfg_of(data, "DATASETS.TRAIN", "('other_full',)", resumes=True)
    assert names("other_full") == ORDER
    write_run(out, OTHERS["another name"][0])
    with pytest.raises(InputError, match=r'dataset other_full.*out/metadata\.json|"cow"'):
        cfg_of(data, "DATASETS.TRAIN", "('other_full',)", resumes=True)
    cfg_of(data, "DATASETS.TRAIN", "('other_full',)")  # a run begun anew has its own


def test_an_evaluation_leaves_the_runs_classes_alone(data):
    """``--eval-only`` in a run's folder on a set of its own order: the model's order stays."""
    out = data.folder / "out"
    weights = write_run(out, tiny_rows())
    (out / "config.yaml").write_text("VERSION: 2\n")
    before = (out / "metadata.json").read_bytes()
    setup(
        Namespace(
            config_file=str(SAMPLE), eval_only=True, resume=False, num_gpus=0,
            opts=["DATASETS.TRAIN", "()", "DATASETS.TEST", "('other_full',)", "OUTPUT_DIR",
                  str(out), "MODEL.WEIGHTS", str(weights)],
        )
    )  # fmt: skip
    assert (out / "metadata.json").read_bytes() == before


def test_weights_that_tell_nothing_are_taken_as_they_are(data, tmp_path):
    torch.save({"model": {}}, tmp_path / "alone.pth")
    assert trained_classes(str(tmp_path / "alone.pth")) is None
    assert trained_classes(str(tmp_path / "none.pth")) is None
    (tmp_path / "metadata.json").write_text('{"thing_ids": [0], "stuff_classes": ["cat"]}')
    assert trained_classes(str(tmp_path / "alone.pth")).names == ["cat"]
    (tmp_path / "alone.json").write_text('{"thing_ids": [], "stuff_classes": ["sky"]}')
    assert trained_classes(str(tmp_path / "alone.pth")).names == ["sky"]
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "model.pth").symlink_to(tmp_path / "alone.pth")
    assert trained_classes(str(tmp_path / "best" / "model.pth")).names == ["sky"]
    (tmp_path / "alone.json").write_text("[]")
    assert trained_classes(str(tmp_path / "alone.pth")).names == ["cat"]


def test_weights_without_their_classes_are_told(data, tmp_path, caplog):
    """Copied alone, they would pass for a model of whatever order the dataset has."""
    weights = write_run(tmp_path / "run", tiny_rows())
    keys = ("ITERATIVE.FIRST_WEIGHTS", "MODEL.WSIS.SEMANTIC_WEIGHTS")
    for key in keys:
        tiny_cfg(tmp_path / "out", key, str(weights))
    assert "tells its classes" not in caplog.text
    (tmp_path / "run" / "metadata.json").unlink()
    for key in keys:
        tiny_cfg(tmp_path / "out", key, str(weights))
        assert f"{key} {weights}: no metadata.json beside it" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], r"holds \[\], expected a run's metadata"),
        ({"stuff_classes": "sky", "thing_ids": [0]}, "classes are no lists"),
        ({"stuff_classes": ["sky", 5], "thing_ids": [0]}, "name is 5"),
    ],
)
def test_a_damaged_metadata_of_a_run_that_goes_on_is_named(data, tmp_path, content, message):
    run = tmp_path / "run"
    write_run(run, tiny_rows())
    (run / "last_checkpoint").write_text("model_final.pth")
    (run / "metadata.json").write_text(json.dumps(content))
    cfg = tiny_cfg(run)
    with pytest.raises(InputError, match=rf"run/metadata\.json: .*{message}"):
        run_classes(cfg, resumes=True)
