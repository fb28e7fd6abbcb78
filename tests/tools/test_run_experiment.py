# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The experiments: recipes load, weak runs are told of no masks, jobs follow what they need."""

import ast
import json
from pathlib import Path

import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers.load_tool import load_tool

from wsis_d2.data.datasets.own.custom import unregister
from wsis_d2.engine.setup import load_cfg
from wsis_d2.utils.errors import InputError

tool = load_tool("run_experiment")
NAMES = sorted(path.parent.name for path in tool.CONFIGS.glob("*/experiment.yaml"))
CLASSES = [
    {"id": 1, "name": "ground", "isthing": 0},
    {"id": 2, "name": "sky", "isthing": 0},
    {"id": 3, "name": "cow", "isthing": 1},
    {"id": 4, "name": "background", "isthing": 0},
]


def experiment(name, seed=1, data=None):
    return tool.Experiment(name, Path("out"), seed, data)


@pytest.fixture(params=NAMES)
def registered(request, tmp_path):
    """An experiment on annotation files without images; its datasets are forgotten again."""
    own = experiment(request.param, data=tmp_path)
    content = json.dumps({"images": [], "annotations": [], "categories": CLASSES})
    for fields in own.datasets.values():
        (tmp_path / fields["images"]).mkdir(exist_ok=True)
        for key in ("json", "panoptic_json"):
            if key in fields:
                (tmp_path / fields[key]).write_text(content)
    before = set(DatasetCatalog.list())
    yield own
    for name in set(DatasetCatalog.list()) - before:
        unregister(name)


def overrides(command):
    """The KEY VALUE part of a job's command line, as a dict."""
    start = command.index("DATASETS.OWN")
    return dict(zip(command[start::2], command[start + 1 :: 2], strict=True))


def test_a_quick_look_leaves_nothing_that_a_real_run_goes_on_from():
    """Trainings resume, also with another SOLVER.MAX_ITER."""
    quick, real = (tool.Experiment("VOCAnimals", Path("out"), 1, quick=q) for q in (True, False))
    first, second = (
        {part for job in own.plan(["weak"]).values() for part in job.command if "out/" in part}
        for own in (quick, real)
    )
    assert first and second and not first & second


def test_a_run_depends_on_the_annotation():
    own = experiment("CamVid", data=Path("data"))
    names = ("weak_train.json", "panoptic_train.json", "weak_val.json", "panoptic_val.json")
    for job in own.plan(["weak"]).values():
        assert set(job.files) == {Path("data") / name for name in names}
    mixed = experiment("VOCAnimals", data=Path("data"))
    mixed.datasets["animals_train_mixed_10"]["full_images"] = "lists/chosen.txt"
    assert all(Path("lists/chosen.txt") in job.files for job in mixed.plan(["weak"]).values())


def test_an_experiment_may_lie_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "Mine").mkdir()
    runs = {"detector": {"tool": "train_net", "recipe": "detector.yaml"}}
    content = {"data": "photos", "datasets": {}, "runs": runs}
    (tmp_path / "Mine" / "experiment.yaml").write_text(json.dumps(content))
    (tmp_path / "Mine" / "detector.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    for name in ("Mine", tmp_path / "Mine"):
        own = experiment(str(name))
        assert str(tmp_path / "Mine" / "detector.yaml") in own.plan()["detector_seed1"].command
        assert own.folder == Path("out") / "mine"


def reaches(jobs, name):
    """A job and all jobs that it needs, directly or not."""
    found = {name}
    for need in jobs[name].needs:
        found |= reaches(jobs, need)
    return found


def test_recipes_train_and_evaluate_on_different_registered_sets(registered):
    for run, fields in registered.runs.items():
        if "recipe" not in fields:
            continue
        options = registered._own_data()
        cfg = load_cfg(str(registered.configs / fields["recipe"]), options)
        assert cfg.DATASETS.TRAIN and not set(cfg.DATASETS.TRAIN) & set(cfg.DATASETS.TEST)
        for name in cfg.DATASETS.TRAIN:
            expected = "full" if run.split("_")[-1] == "full" else "weak"
            assert MetadataCatalog.get(name).supervision == expected, (run, name)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_that_weak_supervision_needs_is_told_of_masks(name):
    jobs = experiment(name).plan(["weak"])
    for job in jobs.values():
        settings = overrides(job.command)
        recipe = job.command[job.command.index("--config-file") + 1]
        assert "full" not in Path(recipe).name
        cfg = yaml.safe_load(Path(recipe).read_text())
        assert "full" not in str(cfg.get("DATASETS", {}).get("TRAIN", ""))
        sets = [e for e in ast.literal_eval(settings["DATASETS.OWN"]) if "_train" in e["name"]]
        weak = [entry for entry in sets if entry.get("supervision", "weak") == "weak"]
        assert weak and not any("panoptic_json" in entry for entry in weak)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", r"is \[1\], expected keys and values"),
        ("runs: {}\ndata: x", "datasets is None, expected a dict"),
        ("runs: {}\ndatasets: {a: {}}\ndata: 5", "data is 5, expected a str"),
        ("runs: {}\ndatasets: {}\ndata: x\ngroup: {}", "'group' is no field, expected .*'groups'"),
        ("runs: {}\ndatasets: {a: x}\ndata: x", "dataset 'a': is 'x', expected keys and values"),
        ("runs: {}\ndatasets: {a: {json: 5}}\ndata: x", "dataset 'a': json is 5, expected a str"),
        ("runs: {}\ndatasets: {}\ndata: x\ngroups: {a: [b]}", "group 'a': 'b' is no run"),
        ("runs: {}\ndatasets: {}\ndata: x\ngroups: {a: b}", "groups: a is 'b', expected a list"),
        ("runs: {}\ndatasets: {}\ndata: x\ngroups: {a: [[b]]}", r"group 'a': \['b'\] is no run"),
        ("runs: {a: null}\ndatasets: {}\ndata: x", "run 'a': is None, expected keys and values"),
        ("runs: {a-b: {}}\ndatasets: {}\ndata: x", "run 'a-b': expected a name of letters"),
        ("runs: {data: {}}\ndatasets: {}\ndata: x", "run 'data': expected .*, not data or output"),
        ("runs: {1: {}}\ndatasets: {}\ndata: x", "run 1: expected a name of letters"),
    ],
)
def test_an_experiment_that_lacks_a_part_is_named(tmp_path, text, message):
    (tmp_path / "experiment.yaml").write_text(text)
    with pytest.raises(InputError, match=rf"experiment\.yaml: {message}"):
        experiment(str(tmp_path))


@pytest.mark.parametrize("name", NAMES)
def test_jobs_come_after_what_they_need(name):
    done = set()
    for job_name, job in experiment(name).plan().items():
        assert job_name == job.name and set(job.needs) <= done
        done.add(job_name)


@pytest.mark.parametrize("name", NAMES)
def test_seeds_share_the_labels_and_weak_and_full_the_detector(name):
    jobs = experiment(name, 1).plan(["weak", "full"])
    two = jobs | experiment(name, 2).plan(["weak", "full"])
    shared = experiment(name).runs["detector"].get("shared", False)
    assert sum(name.startswith("detector") for name in two) == (1 if shared else 2)
    assert sum(name == "labels" for name in two) == 1
    weights = {
        overrides(jobs[run].command)["MODEL.WSIS.DETECTOR_WEIGHTS"]
        for run in ("weak_seed1", "full_seed1")
    }
    detector = "detector" if shared else "detector_seed1"
    assert weights == {f"out/{name.lower()}/{detector}/model_final.pth"}
    assert "labels" in reaches(jobs, "weak_seed1") and "labels" not in reaches(jobs, "full_seed1")


def test_the_last_model_trains_on_the_labels_of_the_round_before():
    jobs = experiment("CamVid", 6).plan(["weak"])
    rounds = jobs["rounds_seed6"].command
    assert rounds[rounds.index("--rounds") + 1] == "3"
    first = overrides(rounds)["ITERATIVE.FIRST_WEIGHTS"]
    assert first == "out/camvid/semantic_weak_seed6/model_final.pth"
    settings = overrides(jobs["weak_seed6"].command)
    assert settings["MODEL.WSIS.SEMANTIC_WEIGHTS"].endswith("/rounds_seed6/round_2/model_final.pth")
    stores = ast.literal_eval(settings["DATASETS.LABEL_STORES"])
    assert stores == [["camvid_train", "out/camvid/rounds_seed6/round_1/labels/camvid_train"]]


def test_isolating_runs_are_evaluations_with_a_variant_of_their_own():
    own = experiment("CamVid")
    jobs = own.plan(["isolate"])
    variants = set()
    for run in own.groups["isolate"]:
        command = list(jobs[f"{run}_seed1"].command)
        assert "--eval-only" in command and "weak_seed1" in jobs[f"{run}_seed1"].needs
        variants.add(command[command.index("RUN_VARIANT") + 1])
    assert len(variants) == len(own.groups["isolate"]) and "main" not in variants


def test_data_lie_where_they_are_said_to():
    jobs = experiment("CamVid", data=Path("/elsewhere")).plan(["labels_quality"])
    assert "/elsewhere/panoptic_train.json" in jobs["labels_quality"].command
    own = ast.literal_eval(overrides(jobs["labels"].command)["DATASETS.OWN"])
    assert own[0]["json"] == "/elsewhere/weak_train.json" and own[0]["name"] == "camvid_train"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": "missing.yaml"}, "missing.yaml: no such recipe"),
        ({"set": {"MODEL.WEIGHTS": "{other}/model.pth"}}, "{other} is no run"),
        ({"tool": "demo"}, "tool is 'demo', expected one of"),
        ({"recipe": None}, "recipe is None, expected a str"),
        ({"set": ["SEED", 1]}, "set is ['SEED', 1], expected a dict"),
        ({"arguments": "--rounds 3"}, "arguments is '--rounds 3', expected a list"),
        ({"minutes": "5"}, "minutes is '5', expected a number"),
        ({"stores": "labels"}, "'stores' is no field"),
        ({"evaluate": "one"}, "expected either 'tool' or 'evaluate'"),
    ],
)
def test_a_wrong_file_is_told_before_anything_starts(change, message, tmp_path, monkeypatch):
    folder = tmp_path / "Own"
    folder.mkdir()
    runs = {"one": {"tool": "train_net", "recipe": "one.yaml", **change}}
    (folder / "one.yaml").touch()
    (folder / "experiment.yaml").write_text(
        yaml.safe_dump({"data": "d", "datasets": {}, "runs": runs})
    )
    monkeypatch.setattr(tool, "CONFIGS", tmp_path)
    with pytest.raises(InputError) as error:
        experiment("Own")
    assert message in str(error.value) and "experiment.yaml: run 'one'" in str(error.value)


@pytest.mark.parametrize("folders", [{"one": "{one}"}, {"one": "{two}", "two": "{one}"}])
def test_runs_that_need_themselves_are_named(folders, tmp_path):
    """{output} is a run's own folder; its name was followed until Python gave up."""
    (tmp_path / "recipe.yaml").touch()
    runs = {
        run: {"tool": "train_net", "recipe": "recipe.yaml", "arguments": [folder]}
        for run, folder in folders.items()
    }
    (tmp_path / "experiment.yaml").write_text(
        yaml.safe_dump({"data": "d", "datasets": {}, "runs": runs})
    )
    with pytest.raises(InputError, match=r"run 'one' needs itself, through one.*\{output\}"):
        experiment(str(tmp_path)).plan()


def test_a_run_without_its_recipe_is_named(tmp_path):
    content = {"data": "d", "datasets": {}, "runs": {"one": {"tool": "train_net"}}}
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match="run 'one': recipe is missing, which train_net needs"):
        experiment(str(tmp_path))


def test_unknown_names_are_told_with_the_known_ones():
    with pytest.raises(InputError, match="Mars: no such experiment, expected one of .*CamVid"):
        tool.main(["Mars"])
    with pytest.raises(InputError, match="--runs mixed: not in .*expected some of detector"):
        experiment("CamVid").plan(["mixed"])
