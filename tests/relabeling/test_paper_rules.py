# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The paper's data flow on tiny trees in the official layouts: what labels may hold where."""

import re

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers.load_tool import load_tool
from helpers.official_trees import (
    REPOSITORY,
    cityscapes_ids,
    make_cityscapes,
    make_voc,
    registered_under,
    run_prepare,
)

from wsis_d2.config import read_config
from wsis_d2.data.mappers import TagMapper
from wsis_d2.data.records import load_records
from wsis_d2.relabeling import round_labels
from wsis_d2.structures.annotation import AnnotatedClasses
from wsis_d2.utils.errors import InputError
from wsis_d2.weak_labels.merge import clean_options
from wsis_d2.weak_labels.store import LabelStore

IGNORE = 255
CAR, PERSON, BICYCLE, ROAD = 13, 11, 18, 0


class Sure(torch.nn.Module):
    """Sure of one class at every pixel."""

    def __init__(self, class_id: int, num_classes: int) -> None:
        super().__init__()
        self.class_id, self.num_classes = class_id, num_classes

    def forward(self, samples):
        results = []
        for sample in samples:
            found = torch.zeros(self.num_classes, *sample["image"].shape[-2:])
            found[self.class_id] = 1.0
            results.append({"sem_seg": found})
        return results


@pytest.fixture(scope="module", autouse=True)
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("official")
    make_cityscapes(root)
    make_voc(root)
    for name in ("prepare_cityscapes", "prepare_voc"):
        run_prepare(name, "--root", root, "--workers", 1, "--allow-partial")
    with registered_under(root):
        yield root


def recipe(name: str, *opts):
    return read_config(str(REPOSITORY / "configs" / f"{name}.yaml"), ["MODEL.DEVICE", "cpu", *opts])


def box_store(dataset: str, output) -> LabelStore:
    arguments = ["boxes", "--dataset", dataset, "--output", str(output), "--workers", "1"]
    assert load_tool("make_weak_labels").main([*arguments, "--masks", "box"]) == 0
    return LabelStore.open(output)


def tag_store(dataset: str, output, label: int) -> LabelStore:
    """Cues of one class everywhere, as ``tags`` would leave them."""
    categories = [dict(c) for c in MetadataCatalog.get(dataset).categories]
    store = LabelStore.create(output, {"kind": "tags"}, categories)
    for record in DatasetCatalog.get(dataset):
        size = (record["height"], record["width"])
        store.write(record, np.full(size, label, np.uint8), np.full(size, -1, np.int32), [], {})
    store.finish()
    return store


def new_labels(cfg, dataset, output, first, class_id) -> tuple[LabelStore, list]:
    model = Sure(class_id, len(LabelStore.open(first).categories)).eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(round_labels, "load_predictor", lambda cfg, weights: model)
        store = round_labels.relabel(
            cfg, dataset, output, round_number=1, first_store=first, lineage="", weights="sure"
        )
    return store, load_records([dataset])


def test_rounds_label_things_on_train_extra(tmp_path):
    name = "cityscapes_extra_weak"
    cfg = recipe(
        "Cityscapes-SemanticSegmentation/pspnet_R_18_weak", "REFINE.ENABLED", "False",
        "ITERATIVE.BOX_STORES", f"[['{name}', '{tmp_path / 'boxes'}']]", "CLEAN.FILL", "False",
    )  # fmt: skip
    box_store(name, tmp_path / "boxes")
    first = tag_store(name, tmp_path / "tags", ROAD)
    store, records = new_labels(cfg, name, tmp_path / "round_1", first.path, CAR)
    labels = store.semantic(records[0]["image_id"])
    ids = cityscapes_ids()
    assert (labels[np.isin(ids, [26000, 26001])] == CAR).all()  # the box masks win
    assert (labels[ids == 33000] == BICYCLE).all()
    assert (labels[ids == 7] == IGNORE).all()  # no mask there, and a thing predicted
    instance, segments = store.instance(records[0]["image_id"])
    assert (instance == -1).all() and not segments


def test_a_store_without_box_masks_deletes_no_predicted_thing(tmp_path):
    name = "cityscapes_extra_weak"
    first = tag_store(name, tmp_path / "tags", ROAD)
    cfg = recipe(
        "Cityscapes-SemanticSegmentation/pspnet_R_18_weak", "REFINE.ENABLED", "False",
        "CLEAN.FILL", "False",
    )  # fmt: skip
    store, records = new_labels(cfg, name, tmp_path / "round_1", first.path, CAR)
    for record in records:
        assert (store.semantic(record["image_id"]) == CAR).all()
    cfg.ITERATIVE.BOX_STORES = [[name, str(first.path)]]
    with pytest.raises(InputError, match="BOX_STORES: .*tags alone.*make_weak_labels.py boxes"):
        new_labels(cfg, name, tmp_path / "other", first.path, CAR)


def test_masks_of_other_boxes_are_not_merged(tmp_path):
    name = "cityscapes_fine_panoptic_train_weak"
    store = box_store(name, tmp_path / "boxes")
    path = next((store.path / "status").glob("*.json"))
    path.write_text(path.read_text().replace('"annotation": "', '"annotation": "0'))
    cfg = recipe("Cityscapes-SemanticSegmentation/pspnet_R_18_weak", "REFINE.ENABLED", "False")
    with pytest.raises(InputError, match="1 of 2 images .* stale: its boxes"):
        new_labels(cfg, name, tmp_path / "round_1", store.path, CAR)


def test_fine_images_keep_their_prior_and_extra_has_none(tmp_path):
    name = "cityscapes_fine_panoptic_train_weak"
    store = box_store(name, tmp_path / "boxes")
    cfg = recipe(
        "Cityscapes-SemanticSegmentation/pspnet_R_18_weak", "REFINE.ENABLED", "False",
        "CLEAN.MERGE", "False",
    )  # fmt: skip
    labels, records = new_labels(cfg, name, tmp_path / "round_1", store.path, CAR)
    semantic = labels.semantic(records[0]["image_id"])
    ids = cityscapes_ids()
    assert (semantic[ids == 26000] == CAR).all() and (semantic[ids == 7] == IGNORE).all()


def test_voc_is_background_outside_its_boxes_in_every_round(tmp_path):
    name = "voc_2012_trainaug_panoptic_weak"
    first = box_store(name, tmp_path / "boxes")
    cfg = recipe("PascalVOC-SemanticSegmentation/pspnet_R_18_weak", "REFINE.ENABLED", "False")
    for class_id in (15, 0):
        store, records = new_labels(cfg, name, tmp_path / f"of_{class_id}", first.path, class_id)
        for record in records:
            outside = np.ones((record["height"], record["width"]), bool)
            for box in record["annotations"]:
                x, y, w, h = (round(v) for v in box["bbox"])
                outside[y : y + h, x : x + w] = False
            semantic = store.semantic(record["image_id"])
            assert outside.any() and (semantic[outside] == 0).all()


def test_the_documented_commands_fill_nearly_empty_boxes_in_round_0():
    text = (REPOSITORY / "configs" / "README.md").read_text().replace("\\\n", " ")
    commands = re.findall(
        r"^tools/make_weak_labels.py all --dataset (cityscapes\S+) (.*)$", text, re.M
    )
    assert {name for name, _ in commands} >= {
        "cityscapes_fine_panoptic_train_weak", "cityscapes_extra_weak",
    }  # fmt: skip
    for name, rest in commands:
        cfg = recipe(re.search(r"--config-file configs/(\S+).yaml", rest)[1])
        options = clean_options(cfg, AnnotatedClasses.of_dataset(MetadataCatalog.get(name)))
        assert options.fill and options.merge and options.score_threshold is None
        assert (options.prior, options.tags, options.instances) == (("fine" in name),) * 3


def test_a_classifier_is_not_told_that_unboxed_things_are_absent():
    mapper = TagMapper(is_train=False, num_classes=19)
    for name, absent in (("cityscapes_extra_weak", -1), ("cityscapes_fine_panoptic_train_weak", 0)):
        target = mapper(load_records([name])[0])["crop_targets"][0].tolist()
        assert [target[k] for k in (PERSON, CAR, BICYCLE)] == [1, 1, 1]
        assert [target[k] for k in (12, 14, 15, 16, 17)] == [absent] * 5
        assert target[ROAD] == 1 and target[1] == 0  # stuff is tagged, or not there


def test_a_detector_does_not_learn_from_incomplete_boxes():
    from wsis_d2.data.loader import build_train_loader

    cfg = recipe(
        "Cityscapes-Detection/faster_rcnn_R_18", "DATASETS.TRAIN", "('cityscapes_extra_weak',)"
    )
    with pytest.raises(InputError, match="'cityscapes_extra_weak'.*boxes are not complete"):
        build_train_loader(cfg)
