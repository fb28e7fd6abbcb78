# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Iterative training: rounds, interruptions at any point, labels byte for byte."""

import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from helpers.iterative_data import label_bytes, make_run

from wsis_d2.data.datasets.own.custom import unregister
from wsis_d2.data.datasets.own.weak import load_weak_json
from wsis_d2.data.datasets.sample.dataset import CATEGORIES
from wsis_d2.engine import WSISTrainer, load_cfg
from wsis_d2.modeling.semantic import SemanticSubnetwork
from wsis_d2.relabeling import round_stages, rounds
from wsis_d2.relabeling.plot import format_rounds, plot_rounds
from wsis_d2.relabeling.rounds import IterativeRun, train_iterative
from wsis_d2.relabeling.run_state import check_same, new_state, read_state, write_state
from wsis_d2.structures.classes import parse_categories
from wsis_d2.utils.errors import InputError
from wsis_d2.weak_labels.reliability import save_reliability
from wsis_d2.weak_labels.store import LabelStore

NAME = "iterative_test"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("iterative")
    yield root, make_run(root, NAME)
    unregister(NAME)


def config(prepared, output, *opts):
    root, path = prepared
    cfg = load_cfg(str(path), ["OUTPUT_DIR", str(root / output), *opts])
    # A run leaves the dataset at its last labels; each test begins with those of round 0.
    from wsis_d2.data.datasets import set_label_store

    set_label_store(NAME, root / "labels")
    cfg.freeze()
    return cfg


@pytest.fixture(scope="module")
def undisturbed(prepared):
    """Two rounds in one go."""
    train_iterative(config(prepared, "whole"), 2)
    return prepared[0] / "whole"


def test_two_rounds_leave_stores_states_and_figures(undisturbed):
    state = json.loads((undisturbed / "state.json").read_text())
    assert (state["round"], state["stage"]) == (2, "train")
    for number in (1, 2):
        store = LabelStore.open(undisturbed / f"round_{number - 1}" / "labels" / NAME)
        assert store.recipe["round"] == number
        assert len(store.image_ids()) == 4
        assert store.manifest["state"] == "closed"
    rounds = json.loads((undisturbed / "rounds.json").read_text())["rounds"]
    assert [entry["round"] for entry in rounds] == [0, 1, 2]
    assert (undisturbed / "rounds.png").read_bytes().startswith(b"\x89PNG")


def test_label_quality_that_could_not_be_measured_is_measured_later(
    prepared, undisturbed, monkeypatch
):
    """The truth may have been unreadable for a while."""
    shutil.copytree(undisturbed, prepared[0] / "again")
    monkeypatch.setattr(rounds, "store_quality", lambda name, store: {"mIoU": 50.0})
    train_iterative(config(prepared, "again"), 2, resume=True)
    found = json.loads((prepared[0] / "again" / "rounds.json").read_text())["rounds"]
    assert [entry["labels"] for entry in found] == 3 * [{NAME: {"mIoU": 50.0}}]


def test_a_round_trains_on_the_last_rounds_labels_from_its_weights(undisturbed):
    first = (undisturbed / "round_0" / "config.yaml").read_text()
    second = (undisturbed / "round_1" / "config.yaml").read_text()
    assert "round_0/model_final.pth" in second and "model_final.pth" not in first
    assert f"round_0/labels/{NAME}" in second  # the file alone says what the round trains on
    assert MetadataCatalog.get(NAME).label_store  # something is always named
    one = torch.load(undisturbed / "round_0/model_final.pth", weights_only=False)["model"]
    two = torch.load(undisturbed / "round_1/model_final.pth", weights_only=False)["model"]
    assert any(not torch.equal(one[k], two[k]) for k in one)


def test_the_first_round_may_be_a_network_that_is_trained_already(prepared, undisturbed):
    trained = undisturbed / "round_0" / "model_final.pth"
    train_iterative(config(prepared, "given", "ITERATIVE.FIRST_WEIGHTS", str(trained)), 2)
    given = prepared[0] / "given"
    assert not (given / "round_0" / "metrics.json").exists()  # nothing was trained
    for path in (undisturbed / "round_0" / "labels" / NAME / "semantic").glob("*.png"):
        other = given / "round_0" / "labels" / NAME / "semantic" / path.name
        assert other.read_bytes() == path.read_bytes()
    one = torch.load(undisturbed / "round_1/model_final.pth", weights_only=False)["model"]
    two = torch.load(given / "round_1/model_final.pth", weights_only=False)["model"]
    assert all(torch.equal(one[k], two[k]) for k in one)
    with pytest.raises(InputError, match="FIRST_WEIGHTS: no.pth: no such file; train on"):
        train_iterative(config(prepared, "other", "ITERATIVE.FIRST_WEIGHTS", "no.pth"), 1)


def test_all_rounds_have_the_class_order_of_the_network_they_begin_with(
    prepared, undisturbed, monkeypatch, tmp_path
):
    """A later round begins with the last one's network, which must still tell its classes."""
    shutil.copy(undisturbed / "round_0" / "model_final.pth", tmp_path)
    things, stuff = ([c for c in CATEGORIES if c["isthing"] == kind] for kind in (1, 0))
    turned = [{**c, "id": other["id"]} for c, other in zip(stuff, stuff[::-1], strict=True)]
    order = [c["name"] for c in things + stuff[::-1]]
    metadata = parse_categories(things + turned, "x").metadata()
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    seen = []

    def noting(stage, function):
        def noted(*args, **kwargs):
            seen.append((stage, MetadataCatalog.get(NAME).stuff_classes))
            return function(*args, **kwargs)

        return noted

    monkeypatch.setattr(WSISTrainer, "train", noting("train", WSISTrainer.train))
    monkeypatch.setattr(WSISTrainer, "test", staticmethod(noting("test", lambda *_: {})))
    monkeypatch.setattr(round_stages, "relabel", noting("labels", round_stages.relabel))
    first = ["ITERATIVE.FIRST_WEIGHTS", str(tmp_path / "model_final.pth")]
    opts = [*first, "DATASETS.TEST", f"('{NAME}',)", "SOLVER.MAX_ITER", 1]
    train_iterative(config(prepared, "turned", *opts), 2)
    assert [stage for stage, _ in seen] == ["test", "labels", "train", "test", "labels"]
    assert all(names == order for _, names in seen)


def test_a_rounds_labels_of_images_together_are_those_of_each_alone(
    prepared, undisturbed, monkeypatch
):
    passes, logits = [], SemanticSubnetwork.logits

    def noting(self, images, *rest):
        passes.append(len(images))
        return logits(self, images, *rest)

    monkeypatch.setattr(SemanticSubnetwork, "logits", noting)
    trained = undisturbed / "round_0" / "model_final.pth"
    opts = ["ITERATIVE.FIRST_WEIGHTS", str(trained), "TEST.IMS_PER_BATCH", 4]
    train_iterative(config(prepared, "together", *opts, "ITERATIVE.WORKERS", 1), 1)
    assert max(passes) == 4
    stores = [LabelStore.open(root / "round_0" / "labels" / NAME)
              for root in (undisturbed, prepared[0] / "together")]  # fmt: skip
    assert len(stores[0].image_ids()) == 4 == len(stores[1].image_ids())
    for image_id in stores[0].image_ids():
        alone, together = (store.semantic(image_id) for store in stores)
        assert (alone == together).mean() > 0.999 and (alone != 255).any()


def test_a_round_holds_back_what_tags_do_not_vouch_for(prepared, undisturbed):
    trained = undisturbed / "round_0" / "model_final.pth"
    opts = ["ITERATIVE.FIRST_WEIGHTS", str(trained), "REFINE.RELIABILITY_POWER", 2.0]
    # Before anything is trained.
    with pytest.raises(InputError, match="reliability.json: no such file"):
        train_iterative(config(prepared, "held_back", *opts), 1)
    assert not (prepared[0] / "held_back").exists()
    first = LabelStore.open(prepared[0] / "labels")
    names = [category["name"] for category in first.categories]
    usual = np.bincount(
        np.concatenate([
            LabelStore.open(undisturbed / "round_0" / "labels" / NAME).semantic(i).ravel()
            for i in first.image_ids()
        ]), minlength=256,
    )  # fmt: skip
    stuff = [i for i, c in enumerate(first.categories) if not c["isthing"]]
    held = max(stuff, key=lambda class_id: usual[class_id])
    values = np.where(np.arange(len(names)) == held, 0.05, 1.0)
    save_reliability(first.path, names, values)
    try:
        train_iterative(config(prepared, "held_back", *opts), 1)
    finally:
        (first.path / "reliability.json").unlink()
    store = LabelStore.open(prepared[0] / "held_back" / "round_0" / "labels" / NAME)
    assert store.recipe["trust"] == (values**2).round(6).tolist()
    found = np.bincount(
        np.concatenate([store.semantic(i).ravel() for i in store.image_ids()]), minlength=256
    )
    assert found[held] < usual[held]


def test_labels_obey_boxes_and_tags(undisturbed, prepared):
    from detectron2.data import DatasetCatalog

    things = set(MetadataCatalog.get(NAME).thing_ids)
    store = LabelStore.open(undisturbed / "round_1" / "labels" / NAME)
    known = 0
    for record in DatasetCatalog.get(NAME):
        semantic = store.semantic(record["image_id"])
        instance, segments = store.instance(record["image_id"])
        known += np.count_nonzero(semantic != 255)
        present = set(np.unique(semantic).tolist()) - {255}
        boxed = {a["category_id"] for a in record["annotations"]}
        assert present <= set(record["image_tags"]) | boxed
        for class_id in present & things:
            inside = np.zeros(semantic.shape, bool)
            for a in record["annotations"]:
                if a["category_id"] == class_id:
                    x0, y0, x1, y1 = a["bbox"]
                    inside[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))] = True
            assert not (semantic == class_id)[~inside].any()
        assert {s["id"] for s in segments} == set(np.unique(instance[instance > 0]).tolist())
    assert known > 0


class Interrupted(BaseException):
    """Stands for a kill: nothing in the code may catch it."""


def interrupt_after(monkeypatch, owner, name, calls):
    """Let a method raise instead of its n-th call, once."""
    original = getattr(owner, name)
    left = {"calls": calls}

    def counted(*args, **kwargs):
        left["calls"] -= 1
        if left["calls"] == 0:
            raise Interrupted
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)


@pytest.mark.parametrize(
    "owner, name, calls",
    [
        (WSISTrainer, "run_step", 4),  # round 1, after the first checkpoint
        (LabelStore, "write", 3),  # round 1, two of four images labelled
        (LabelStore, "finish", 1),  # all images labelled, store not closed
        (WSISTrainer, "run_step", 9),  # round 2
        (rounds, "write_state", 6),  # a stage ended, its end not noted
    ],
)
def test_interrupted_and_resumed_ends_with_the_same_labels(
    prepared, undisturbed, monkeypatch, owner, name, calls
):
    output = f"{name}_{calls}"
    cfg = config(prepared, output)
    with monkeypatch.context() as patch:
        interrupt_after(patch, owner, name, calls)
        with pytest.raises(Interrupted):
            train_iterative(cfg, 2)
    train_iterative(config(prepared, output), 2, resume=True)
    expected = label_bytes(undisturbed)
    assert len(expected) >= 2 * (3 * 4 + 2)
    found = label_bytes(prepared[0] / output)
    assert found.keys() == expected.keys()
    different = [path for path in expected if found[path] != expected[path]]
    assert different == []


def test_what_is_done_is_never_done_again(prepared, undisturbed, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("a finished stage ran again")

    monkeypatch.setattr(WSISTrainer, "train", forbidden)
    monkeypatch.setattr(round_stages, "relabel", forbidden)
    train_iterative(config(prepared, "whole"), 2, resume=True)


def test_a_run_is_not_overwritten_nor_continued_as_another(prepared, undisturbed):
    with pytest.raises(InputError, match="an unfinished run, at round 2.*--resume"):
        train_iterative(config(prepared, "whole"), 2)
    with pytest.raises(InputError, match="SOLVER.BASE_LR 0.02, now it is 0.5"):
        train_iterative(config(prepared, "whole", "SOLVER.BASE_LR", "0.5"), 2, resume=True)
    with pytest.raises(InputError, match="--rounds 0"):
        train_iterative(config(prepared, "other"), 0)
    with pytest.raises(InputError, match="'detector', which predicts no semantics"):
        train_iterative(config(prepared, "other", "MODEL.WSIS.STAGE", "detector"), 1)
    with pytest.raises(InputError, match="DETECTOR_WEIGHTS: no.pth: no such file; train the"):
        opts = ("MODEL.WSIS.DETECTOR_WEIGHTS", "no.pth", "DATASETS.TEST", f"('{NAME}',)")
        train_iterative(config(prepared, "other", *opts), 1)
    for stores, message in (
        ("[['elsewhere', 'boxes']]", "BOX_STORES: 'elsewhere' is no weak set"),
        (f"[['{NAME}', 'gone']]", "gone: no label store"),
    ):
        with pytest.raises(InputError, match=message):
            train_iterative(config(prepared, "other", "ITERATIVE.BOX_STORES", stores), 1)
    with pytest.raises(InputError, match="no dataset 'nowhere'"):
        train_iterative(config(prepared, "other", "DATASETS.TEST", "('nowhere',)"), 1)


def test_a_run_is_not_continued_with_other_data_of_the_same_name(prepared, tmp_path):
    """Labels made again by the same recipe, a box drawn anew: no key and no recipe has changed."""
    root = tmp_path / "copy"
    shutil.copytree(prepared[0] / "data", root / "data")
    shutil.copytree(prepared[0] / "labels", root / "labels")
    text = prepared[1].read_text().replace(str(prepared[0]), str(root))
    (root / "config.yaml").write_text(text.replace(f'"{NAME}"', '"iterative_copy"'))

    def go_on(rounds):
        unregister("iterative_copy")
        cfg = load_cfg(str(root / "config.yaml"), ["SOLVER.MAX_ITER", 1])
        cfg.freeze()
        train_iterative(cfg, rounds, resume=True)

    load_cfg(str(root / "config.yaml"))
    go_on(1)
    store = LabelStore.open(root / "labels", writable=True)
    (record, *_) = load_weak_json(root / "data/weak_train.json", root / "data/images/train")
    labels = store.semantic(record["image_id"]), *store.instance(record["image_id"])
    other = labels[0].copy()
    other[:2] = 255
    store.write(record, other, *labels[1:], {})
    with pytest.raises(InputError, match="state.json: the run was begun with other labels of 'it"):
        go_on(2)
    store.write(record, *labels, {})
    go_on(1)  # what it was begun with
    content = json.loads((root / "data/weak_train.json").read_text())
    content["images"].pop()
    content["annotations"] = [
        a for a in content["annotations"] if a["image_id"] in {i["id"] for i in content["images"]}
    ]
    (root / "data/weak_train.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="the run was begun with another annotation of 'iterati"):
        go_on(2)
    unregister("iterative_copy")


def test_data_may_lie_elsewhere_and_truth_of_weak_sets_counts(prepared, tmp_path):
    """No round has begun; what was noted is compared before anything is trained."""

    def run(root, **changes):
        unregister("iterative_own")
        data = root / "data"
        own = {
            "name": "iterative_own", "json": str(data / "weak_train.json"),
            "images": str(data / "images/train"), "labels": str(root / "labels"),
            "panoptic_json": str(data / "panoptic_train.json"),
            "panoptic_dir": str(data / "panoptic_train"), **changes,
        }  # fmt: skip
        opts = ["DATASETS.OWN", [own], "DATASETS.TRAIN", ("iterative_own",)]
        cfg = load_cfg(str(prepared[1]), [*opts, "DATASETS.TEST", ("iterative_own",)])
        cfg.defrost()
        cfg.OUTPUT_DIR = str(tmp_path / "run")
        cfg.freeze()
        return IterativeRun(cfg, 1, resume=True)

    begun = run(prepared[0])
    write_state(begun.folder, begun.state)
    for folder in ("data", "labels"):
        shutil.copytree(prepared[0] / folder, tmp_path / folder)
    run(tmp_path)
    with pytest.raises(InputError, match="begun with DATASETS.OWN .*now it is .*outside_boxes"):
        run(tmp_path, outside_boxes="sky")
    truth = json.loads((tmp_path / "data/panoptic_train.json").read_text())
    truth["annotations"][0]["segments_info"].pop()
    (tmp_path / "data/panoptic_train.json").write_text(json.dumps(truth))
    with pytest.raises(InputError, match="begun with another truth of 'iterative_own'"):
        run(tmp_path)
    unregister("iterative_own")


def test_rounds_are_measured_with_one_detector(prepared, tmp_path):
    cfg = config(prepared, "other", "MODEL.WSIS.DETECTOR_WEIGHTS", "boxes.pth")
    state = new_state(cfg, {}, {}, "hash of one")
    check_same(tmp_path, state, cfg, {}, {}, "hash of one")
    with pytest.raises(InputError, match="DETECTOR_WEIGHTS 'boxes.pth' had other content"):
        check_same(tmp_path, state, cfg, {}, {}, "of another")
    old = {key: value for key, value in state.items() if key not in ("data", "detector")}
    write_state(tmp_path, old)
    check_same(tmp_path, read_state(tmp_path), cfg, {}, {"d": {"labels": "x"}}, "of another")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data", {"a": 5}, "data of 'a' is 5"),
        ("data", [1], r"data is \[1\]"),
        ("config", None, "config is None"),
        ("history", {"0": 5}, "history '0' is 5"),
    ],
)
def test_a_damaged_state_is_refused(tmp_path, prepared, key, value, message):
    state = new_state(config(prepared, "other"), {}, {"a": {"labels": "x"}}, "")
    write_state(tmp_path, state | {key: value})
    with pytest.raises(InputError, match=rf"state\.json: no state of an iterative .*{message}"):
        read_state(tmp_path)


def test_the_figures_by_round_as_table_and_plot(tmp_path):
    history = [
        {"round": 0, "labels": {"streets": {"mIoU": 50.25, "PQ": 41.0}}},
        {"round": 1, "sem_seg": {"mIoU": 60.0, "mIoU_th": 42.4, "mIoU_st": 70.0}},
    ]
    header, _, before, after = format_rounds(history).splitlines()
    assert [cell.strip() for cell in header.strip("|").split("|")] == [
        "round", "IoU all", "IoU things", "IoU stuff", "PQ all", "PQ things", "PQ stuff",
        "labels IoU", "labels PQ",
    ]  # fmt: skip
    assert before.replace("|", " ").split() == ["0", *["-"] * 6, "50.2", "41.0"]
    assert after.replace("|", " ").split() == ["1", "60.0", "42.4", "70.0", *["-"] * 5]
    plot_rounds(history, tmp_path / "rounds.png")
    plot_rounds([], tmp_path / "empty.png")
    drawn, empty = (cv2.imread(str(tmp_path / n)) for n in ("rounds.png", "empty.png"))
    assert drawn.shape == empty.shape and (drawn != empty).any()
