# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Indices, manifests, states and configs: sound files, damaged and read."""

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fuzz.damage import Choices, damaged_json, damaged_text
from fuzz.files import CATEGORIES, SIZE, base, put, put_json


def model_zoo(data: bytes) -> None:
    from wsis_d2.model_zoo.index import Entry, read_index

    part = {"file": "weights/a.pth", "sha256": "0" * 64, "size": 5, "mirrors": ["https://a/b"]}
    fields = {"checkpoint": part, "config": part, "metadata": part, "card": "a.md", "metrics": {}}
    put_json("zoo/model_zoo.json", {"schema": 1, "models": {"A/b": fields}}, Choices(data))
    for name, entry in read_index(str(base() / "zoo")).items():
        Entry(name, str(base() / "zoo"), entry).addresses("checkpoint")


@functools.cache
def label_store() -> Path:
    from wsis_d2.weak_labels.store import LabelStore

    store = LabelStore.create(base() / "store", {"kind": "boxes"}, CATEGORIES)
    semantic = np.ones(SIZE, np.uint8)
    segments = [{"id": 1, "category_id": 1}]
    store.write(store_record(), semantic, semantic.astype(np.int32), segments, {"boxes": 1})
    store.finish()
    return store.path


def store_record() -> dict:
    return {"image_id": 1, "file_name": "a.png", "height": 12, "width": 16, "image_tags": [1],
            "annotations": []}  # fmt: skip


def store_files(data: bytes) -> None:
    from wsis_d2.weak_labels.store import LabelStore

    choices = Choices(data)
    sound = label_store()
    path = base() / "store_copy"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(sound, path)
    file = choices.of((path / "manifest.json", path / "status" / "000000000001.json"))
    file.write_text(json.dumps(damaged_json(json.loads(file.read_text()), choices)))
    store = LabelStore.open(path, writable=True)
    store.check(store_record())
    store.semantic(1)
    store.instance(1)
    store.counters(1)
    assert store.failed == {}
    store.finish()


def round_state(data: bytes) -> None:
    from wsis_d2.engine.resume import refuse_changes, refuse_other_data
    from wsis_d2.relabeling.run_state import history_of, read_state, state_path

    sound = {
        "schema": 2, "round": 1, "stage": "train", "labels_of_round_0": {"a": "b"},
        "data": {"a": {"annotation": "c", "labels": "d"}}, "detector": "",
        "config": {"SEED": 1, "DATASETS": {"OWN": [{"name": "a", "json": "b"}]}},
        "history": {"0": {"labels": {}}},
    }  # fmt: skip
    put_json("run/state.json", sound, Choices(data))
    state = read_state(base() / "run")
    history_of(state)
    path = state_path(base() / "run")
    refuse_changes(path, state["config"], sound["config"], state["data"])
    refuse_other_data(path, state["data"], sound["data"])


def results(data: bytes) -> None:
    from wsis_d2.evaluation.results import full_supervision_ratios, read_results_json
    from wsis_d2.evaluation.table import format_results

    run = {"panoptic_seg": {"PQ": 50.0, "PQ-cow": None}, "apr": {"APr_vol": 40.0},
           "sem_seg": {"mIoU": 60.0}, "meta": {"supervision": "weak", "dataset": "a",
           "variant": "main", "seed": 1}}  # fmt: skip
    content = {"schema": 1, "runs": {"weak": run, "full": run}, "ratios": {}}
    found = read_results_json(put_json("results.json", content, Choices(data)))["runs"]
    full_supervision_ratios(found)
    for run in found.values():
        format_results(run)


def review(data: bytes) -> None:
    from wsis_d2.weak_labels.review import KIND, read_review
    from wsis_d2.weak_labels.store import LabelStore

    content = {"kind": KIND, "recipe": "", "images": [
        {"image_id": 1, "verdict": "accept", "name": "a.png"}]}  # fmt: skip
    read_review(put_json("review.json", content, Choices(data))).check(
        LabelStore.open(label_store())
    )


def metrics_lines(data: bytes) -> None:
    from wsis_d2.report.runs import Run, read_metrics, training_curves

    line = {"iteration": 19, "total_loss": 1.5, "lr": 0.1, "eta_seconds": 3.0}
    text = b"".join(
        json.dumps(line | {"iteration": n, "total_loss": 1 / n}).encode() + b"\n" for n in (1, 2, 3)
    )
    choices = Choices(data)
    if choices.below(2):
        text = json.dumps(damaged_json(line, choices)).encode() + b"\n" + text
    else:
        text = damaged_text(text, choices)
    entries = read_metrics(put("metrics.json", text))
    json.dumps(training_curves([Run("a", base(), metrics=entries)]), allow_nan=False)


def metadata(data: bytes) -> None:
    from wsis_d2.model_zoo.publish import read_metadata
    from wsis_d2.structures.classes import ClassTable
    from wsis_d2.utils.json_io import read_json

    content = {"stuff_classes": ["cow", "sky"], "stuff_colors": [[1, 2, 3], [4, 5, 6]],
               "thing_ids": [0], "categories": CATEGORIES}  # fmt: skip
    choices = Choices(data)
    if choices.below(2):
        del content["categories"]
    path = put_json("metadata.json", content, choices)
    ClassTable.of_metadata(read_json(path), str(path))
    read_metadata(path)


def config(data: bytes) -> None:
    from wsis_d2.config_checks.runs import check_trainable
    from wsis_d2.data.datasets.own.custom import unregister
    from wsis_d2.engine.setup import load_cfg
    from wsis_d2.utils.json_io import write_json

    choices = Choices(data)
    own = base() / "own.json"
    if not own.is_file():
        write_json(own, {"images": [], "annotations": [], "categories": CATEGORIES})
    value = {
        "MODEL": {"WSIS": {"STAGE": "semantic", "THING_IDS": [0]}, "RESNETS": {"DEPTH": 18}},
        "DATASETS": {
            "OWN": [{"name": "fuzz_a", "json": str(own), "images": str(base() / "images"),
                     "outside_boxes": "sky", "apr_thresholds": "0.5:0.9:0.1"}],
            "TRAIN": ["fuzz_a"], "LABEL_STORES": [["fuzz_a", str(base())]],
        },
        "INPUT": {"SCALE_RANGE": [0.5, 2.0], "MIN_SIZE_TRAIN": [0]},
        "SOLVER": {"STEPS": [1, 2], "BASE_LR": 0.1, "MAX_ITER": 3}, "VERSION": 2, "_BASE_": [],
    }  # fmt: skip
    if choices.below(3):
        text = yaml.safe_dump(damaged_json(value, choices)).encode("utf-8", "replace")
    else:
        text = damaged_text(yaml.safe_dump(value).encode(), choices)
    try:
        check_trainable(load_cfg(str(put("config.yaml", text))))
    finally:
        unregister("fuzz_a")


@functools.cache
def experiment_tool() -> Any:
    from helpers.load_tool import load_tool

    return load_tool("run_experiment")


def experiment(data: bytes) -> None:
    value = {
        "data": "photos", "datasets": {"a": {"json": "a.json", "images": "b", "apr_ids": 1}},
        "runs": {
            "one": {"tool": "train_net", "recipe": "one.yaml", "shared": True, "minutes": 3.0},
            "two": {"tool": "make_weak_labels", "recipe": "one.yaml",
                    "arguments": ["--output", "{output}", "{one}/a.pth", "{data}"]},
            "three": {"evaluate": "one", "set": {"TEST.AUG.ENABLED": True, "SEED": 1}},
        },
        "groups": {"all": ["two", "three"]},
    }  # fmt: skip
    choices = Choices(data)
    if choices.below(3):
        text = yaml.safe_dump(damaged_json(value, choices)).encode("utf-8", "replace")
    else:
        text = damaged_text(yaml.safe_dump(value).encode(), choices)
    put("experiment/one.yaml", b"")
    put("experiment/experiment.yaml", text)
    own = experiment_tool().Experiment(str(base() / "experiment"), base(), 1)
    own.plan(list(own.groups) or None)


READERS = (
    model_zoo,
    store_files,
    round_state,
    results,
    metadata,
    review,
    metrics_lines,
    config,
    experiment,
)
