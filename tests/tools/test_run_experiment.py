# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The experiments: recipes load, weak paths name no masks, jobs are those of the protocol."""

import json
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers.load_tool import load_tool

from wsis_d2.data.datasets.own.custom import unregister
from wsis_d2.engine.setup import load_cfg

tool = load_tool("run_experiment")
NAMES = sorted(path.parent.name for path in tool.CONFIGS.glob("*/data.yaml"))
RECIPES = [
    str(path.relative_to(tool.CONFIGS))
    for name in NAMES
    for path in sorted((tool.CONFIGS / name).glob("*.yaml"))
]
CLASSES = [
    {"id": 1, "name": "ground", "isthing": 0},
    {"id": 2, "name": "sky", "isthing": 0},
    {"id": 3, "name": "cow", "isthing": 1},
]


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Own data without images where the recipes expect it."""
    monkeypatch.chdir(tmp_path)
    before = set(DatasetCatalog.list())
    for name in NAMES:
        folder = tmp_path / "output" / "experiments" / "data" / name.lower()
        (folder / "images").mkdir(parents=True)
        content = json.dumps({"images": [], "annotations": [], "categories": CLASSES})
        for part in ("train", "val", "devtrain", "dev"):
            (folder / f"weak_{part}.json").write_text(content)
        (folder / "mixed_train.json").write_text(content)
    yield tmp_path
    for name in set(DatasetCatalog.list()) - before:
        unregister(name)


def jobs_of(name, *runs, seed=1):
    return tool.Experiment(name, Path("output/experiments"), seed).plan(runs)


def weak_jobs(name):
    """Those of weak supervision alone, as far as the experiment has recipes for them."""
    experiment = tool.Experiment(name, Path("output/experiments"), 1)
    weak = ("weak", "round_0", "round_1", "round_2", "round_4")
    return experiment.plan([run for run in weak if experiment.has(tool.RUNS[run])])


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_trains_and_evaluates_on_different_registered_sets(recipe, data):
    cfg = load_cfg(str(tool.CONFIGS / recipe), [])
    assert cfg.DATASETS.TRAIN and not set(cfg.DATASETS.TRAIN) & set(cfg.DATASETS.TEST)
    for name in cfg.DATASETS.TRAIN:
        supervision = MetadataCatalog.get(name).supervision
        kind = Path(recipe).stem.rsplit("_", 1)[-1]
        assert supervision == (kind if kind in ("full", "mixed") else "weak")
        assert "val" not in name and "dev" not in name


@pytest.mark.parametrize("name", NAMES)
def test_weak_training_sets_name_no_masks(name, data):
    load_cfg(str(tool.CONFIGS / name / "data.yaml"), [])
    for part in ("train", "devtrain"):
        if f"{name.lower()}_{part}" in DatasetCatalog.list():
            metadata = MetadataCatalog.get(f"{name.lower()}_{part}")
            assert metadata.supervision == "weak"
            assert metadata.panoptic_json is None and metadata.panoptic_root is None


@pytest.mark.parametrize("name", NAMES)
def test_no_job_of_weak_supervision_is_told_of_truth(name):
    words = [word for job in weak_jobs(name).values() for word in job.command]
    assert not [word for word in words if "panoptic_train" in word or "true_masks" in word]
    assert not [word for word in words if word.endswith(("_full.yaml", "_mixed.yaml"))]


def test_jobs_follow_what_they_need_and_share_detector_and_labels():
    jobs = jobs_of("CamVid")
    done = set()
    for name, job in jobs.items():
        assert name == job.name and set(job.needs) <= done
        done.add(name)
    two = jobs | jobs_of("CamVid", seed=2)
    assert sum(name.startswith("detector") for name in two) == 2
    assert sum(name == "labels" for name in two) == 1
    # Weak and full supervision of a seed stand on the same detector.
    for run in ("weak_seed1", "full_seed1"):
        command = list(jobs[run].command)
        weights = command[command.index("MODEL.WSIS.DETECTOR_WEIGHTS") + 1]
        assert weights == "output/experiments/camvid/detector_seed1/model_final.pth"


def test_last_round_trains_on_the_labels_of_the_round_before():
    command = list(jobs_of("CamVid", "weak")["weak_seed1"].command)
    rounds = "output/experiments/camvid/rounds_seed1"
    weights = command[command.index("MODEL.WSIS.SEMANTIC_WEIGHTS") + 1]
    assert weights == f"{rounds}/round_3/model_final.pth"
    stores = command[command.index("DATASETS.LABEL_STORES") + 1]
    assert stores == f"[['camvid_train', '{rounds}/round_2/labels/camvid_train']]"


@pytest.mark.parametrize(
    ("name", "run", "rounds"),
    [("CamVidLong", "round_1", 2), ("CamVidTags", "round_2", 3), ("CamVidLooks", "round_4", 5)],
)
def test_more_rounds_follow_the_weak_run_on_the_labels_of_its_network(name, run, rounds):
    jobs = jobs_of(name, run, seed=6)
    folder = f"output/experiments/{name.lower()}"
    command = list(jobs[f"{run}_seed6"].command)
    first = command[command.index("ITERATIVE.FIRST_WEIGHTS") + 1]
    assert first == f"{folder}/semantic_weak_seed6/model_final.pth"
    assert command[command.index("--rounds") + 1] == str(rounds)
    assert "semantic_weak_seed6" in jobs[f"{run}_seed6"].needs
    command = list(jobs[f"weak_{run}_seed6"].command)
    weights = command[command.index("MODEL.WSIS.SEMANTIC_WEIGHTS") + 1]
    assert weights == f"{folder}/{run}_seed6/round_{rounds - 1}/model_final.pth"
    stores = command[command.index("DATASETS.LABEL_STORES") + 1]
    name = f"{name.lower()}_train"
    labels = f"{folder}/{run}_seed6/round_{rounds - 2}/labels/{name}"
    assert stores == f"[['{name}', '{labels}']]"


def test_isolating_runs_are_evaluations_with_a_variant_of_their_own():
    variants = set()
    for name, job in jobs_of("CamVid", "isolate").items():
        command = list(job.command)
        if "RUN_VARIANT" in command:
            assert "--eval-only" in command and name.startswith(("weak_", "full_"))
            variants.add(command[command.index("RUN_VARIANT") + 1])
    assert variants == set(tool.ISOLATING)


def test_a_run_without_a_recipe_is_refused_before_anything_starts():
    with pytest.raises(Exception, match="semantic_mixed.yaml: no such recipe"):
        jobs_of("COCO128", "mixed")
    with pytest.raises(Exception, match="semantic_full.yaml: no such recipe"):
        jobs_of("CamVid15", "full")
    with pytest.raises(Exception, match="round_1.yaml: no such recipe, which the run 'round_1'"):
        jobs_of("CamVid", "weak", "round_1")


def test_a_recipe_of_a_later_stage_is_missed_before_anything_starts(tmp_path, monkeypatch):
    folder = tmp_path / "Own"
    folder.mkdir()
    for recipe in ("data", "semantic_full", "detector"):
        (folder / f"{recipe}.yaml").touch()
    monkeypatch.setattr(tool, "CONFIGS", tmp_path)
    with pytest.raises(Exception, match="panoptic_full.yaml: no such recipe, which full needs"):
        jobs_of("Own", "full")


def test_truth_is_looked_for_where_the_recipes_name_it():
    jobs = tool.Experiment("CamVid", Path("elsewhere"), 1).plan(["labels"])
    assert "output/experiments/data/camvid/panoptic_train.json" in jobs["labels_quality"].command


def test_objects_need_no_tags():
    assert not [
        n
        for n in jobs_of("COCO128", "weak", "full", "labels")
        if "tag" in n or "rounds" in n or "round_0" in n
    ]


def test_an_unknown_experiment_is_named_with_the_known_ones():
    with pytest.raises(
        Exception,
        match="Mars: no such experiment, expected one of COCO128, CamVid, CamVid15, CamVidLong",
    ):
        tool.main(["Mars"])
