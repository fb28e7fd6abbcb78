# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Box AP: worked by hand, with crowds, string ids, empty predictions and absent classes."""

import math

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances

from wsis_d2.evaluation.box_ap import BoxAPEvaluator

NAME = "box_ap_test"


def annotation(box, category, crowd=0):
    return {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": category, "iscrowd": crowd}


@pytest.fixture
def dataset():
    records = [
        {"image_id": "a", "height": 100, "width": 100,
         "annotations": [annotation([10, 10, 40, 40], 2), annotation([60, 60, 30, 30], 2)]},
        {"image_id": "b", "height": 100, "width": 100,
         "annotations": [annotation([0, 0, 50, 50], 5), annotation([50, 0, 50, 100], 2, 1)]},
    ]  # fmt: skip
    DatasetCatalog.register(NAME, lambda: records)
    names = ["s0", "s1", "cow", "s3", "s4", "dog", "cat"]
    MetadataCatalog.get(NAME).set(thing_ids=[2, 5, 6], thing_classes=names)
    yield records
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def output(boxes, scores, classes):
    instances = Instances((100, 100))
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.scores = torch.tensor(scores)
    instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
    return {"instances": instances}


def test_hand_computed(dataset):
    evaluator = BoxAPEvaluator(NAME)
    # cow: one of two found exactly, nothing wrong: precision 1 up to recall .5, so 51 of the 101
    # recall points. The box inside the crowd counts neither way. dog: found exactly.
    evaluator.process(
        dataset,
        [
            output([[10, 10, 50, 50]], [0.9], [2]),
            output([[0, 0, 50, 50], [60, 10, 90, 90]], [0.8, 0.95], [5, 2]),
        ],
    )
    results = evaluator.evaluate()["bbox"]
    assert results["AP-cow"] == pytest.approx(100 * 51 / 101)
    assert results["AP-dog"] == pytest.approx(100)
    assert math.isnan(results["AP-cat"])
    assert results["AP"] == pytest.approx((100 * 51 / 101 + 100) / 2)
    assert results["AP50"] == results["AP75"] == results["AP"]


def test_a_loose_box_counts_below_its_iou_only(dataset):
    evaluator = BoxAPEvaluator(NAME)
    # IoU 2000 / 2500 = .8: correct at .5, .55, ..., .75 and, as COCO counts IoU >= t, at .8.
    evaluator.process(dataset[1:], [output([[0, 0, 50, 40]], [0.5], [5])])
    results = evaluator.evaluate()["bbox"]
    assert results["AP-dog"] == pytest.approx(100 * 7 / 10)
    assert results["AP50"] == pytest.approx(100)


def test_no_predictions_at_all(dataset):
    evaluator = BoxAPEvaluator(NAME)
    evaluator.process(dataset, [output([], [], []), output([], [], [])])
    results = evaluator.evaluate()["bbox"]
    assert results["AP"] == 0 and results["AP-cow"] == 0
