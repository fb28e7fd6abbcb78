# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Which evaluators a config gets, and AP of boxes, the detector stage's measure."""

import math
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm
from helpers.panoptic_scenes import CATEGORIES, CLASSES

from wsis_d2.config import add_wsis_config
from wsis_d2.evaluation import (
    BoxAPEvaluator,
    PredictionWriter,
    build_evaluator,
)
from wsis_d2.utils.errors import InputError

THINGS = [i for i, thing in enumerate(CLASSES.isthing) if thing]
BOXES = {0: [(THINGS[0], (10, 10, 40, 50)), (THINGS[1], (60, 20, 30, 30))],
         1: [(THINGS[0], (5, 5, 60, 40))]}  # fmt: skip


@pytest.fixture
def dataset():
    name = "builder_test"
    records = [
        {
            "image_id": image, "file_name": f"{image}.png", "height": 100, "width": 120,
            "annotations": [
                {"bbox": list(box), "bbox_mode": BoxMode.XYWH_ABS, "category_id": class_id}
                for class_id, box in boxes
            ],
        }
        for image, boxes in BOXES.items()
    ]  # fmt: skip
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(
        evaluator_type="wsis_panoptic", categories=CATEGORIES, thing_ids=THINGS,
        thing_classes=list(CLASSES.names), stuff_classes=list(CLASSES.names),
        panoptic_json="truth.json", panoptic_root="truth", image_root=".",
    )  # fmt: skip
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def config(**changes):
    cfg = get_cfg()
    add_wsis_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "WeakPanopticRCNN"
    for key, value in changes.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


@pytest.mark.parametrize("changes, kinds", [
    ({"MODEL__WSIS__STAGE": "detector"}, ["BoxAPEvaluator"]),
    ({"MODEL__WSIS__STAGE": "semantic"}, ["SemSegIoUEvaluator"]),
    ({"MODEL__META_ARCHITECTURE": "TagClassifier"}, ["TagEvaluator"]),
    ({"MODEL__WSIS__STAGE": "end_to_end", "TEST__INSTANCE_AP": "none"},
     ["PanopticQualityEvaluator", "APrEvaluator", "SemSegIoUEvaluator"]),
    ({"MODEL__META_ARCHITECTURE": "PanopticFPN"},
     ["PanopticQualityEvaluator", "APrEvaluator", "SemSegIoUEvaluator", "InstanceAPEvaluator"]),
])  # fmt: skip
def test_each_stage_is_measured_by_what_it_predicts(changes, kinds, dataset) -> None:
    evaluator = build_evaluator(config(**changes), dataset, "out")
    parts = getattr(evaluator, "_evaluators", [evaluator])
    assert [type(part).__name__ for part in parts] == kinds


@pytest.mark.parametrize("stage", ["semantic", "end_to_end"])
def test_a_set_without_truth_is_predicted_only(stage, dataset, tmp_path: Path) -> None:
    MetadataCatalog.remove(dataset)
    MetadataCatalog.get(dataset).set(
        evaluator_type="wsis_panoptic", categories=CATEGORIES, image_root=".", panoptic_json=None
    )
    evaluator = build_evaluator(config(MODEL__WSIS__STAGE=stage), dataset, tmp_path)
    assert isinstance(evaluator, PredictionWriter)


def detections(rows: list[tuple]) -> dict:
    """Return a detector's output of (unified class, XYWH box, score) rows."""
    instances = Instances((100, 120))
    boxes = torch.tensor([r[1] for r in rows], dtype=torch.float32).reshape(-1, 4)
    instances.pred_boxes = Boxes(BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS))
    instances.scores = torch.tensor([r[2] for r in rows])
    instances.pred_classes = torch.tensor([r[0] for r in rows], dtype=torch.int64)
    return {"instances": instances}


def box_ap(dataset: str, rows: dict[int, list[tuple]]) -> dict:
    evaluator = BoxAPEvaluator(dataset)
    evaluator.reset()
    for image, found in rows.items():
        evaluator.process([{"image_id": image}], [detections(found)])
    return evaluator.evaluate()["bbox"]


def test_box_ap_by_hand(dataset) -> None:
    names = CLASSES.names
    perfect = {i: [(c, box, 0.9) for c, box in boxes] for i, boxes in BOXES.items()}
    result = box_ap(dataset, perfect)
    assert result["AP"] == result["AP50"] == pytest.approx(100)
    assert math.isnan(result[f"AP-{names[THINGS[2]]}"])  # no such box
    # One of two boxes of the first class, the third's none: AP 0.5 by 101 recall points, and the
    # other class gets a box of IoU 0.5 to 0.55 (24 of 30 columns shifted): right at 0.5 only.
    x, y, w, h = BOXES[0][1][1]
    some = {0: [(THINGS[0], BOXES[0][0][1], 0.9), (THINGS[1], (x + 10, y, w, h), 0.8)], 1: []}
    result = box_ap(dataset, some)
    assert result[f"AP-{names[THINGS[0]]}"] == pytest.approx(100 * 51 / 101)
    assert result[f"AP-{names[THINGS[1]]}"] == pytest.approx(10)


def test_box_ap_without_detections_or_boxes(dataset) -> None:
    nothing = box_ap(dataset, {0: [], 1: []})
    assert nothing["AP"] == 0
    assert math.isnan(box_ap(dataset, {})["AP"])


def test_two_pictures_do_not_share_a_prediction_file(dataset, tmp_path: Path) -> None:
    writer = PredictionWriter(dataset, tmp_path)
    output = {"sem_seg": torch.zeros(len(CLASSES), 4, 4)}
    writer.process([{"image_id": 0, "file_name": "x/a.jpg"}], [output])
    writer.process([{"image_id": 1, "file_name": "y/a.png"}], [output])
    with pytest.raises(InputError, match=r"x/a.png: its prediction would replace that of x/a.jpg"):
        writer.process([{"image_id": 2, "file_name": "x/a.png"}], [output])


def test_nor_do_two_of_one_name_elsewhere_or_of_two_processes(
    dataset, tmp_path: Path, monkeypatch
) -> None:
    writer = PredictionWriter(dataset, tmp_path / "out")
    output = {"sem_seg": torch.zeros(len(CLASSES), 4, 4)}
    writer.process([{"image_id": 0, "file_name": str(tmp_path / "x/a.jpg")}], [output])
    one = {"image_id": 1, "file_name": str(tmp_path / "y/a.jpg")}  # both outside image_root
    with pytest.raises(InputError, match="y/a.jpg: its prediction would replace that of .*x/a.jpg"):
        writer.process([one], [output])
    other = PredictionWriter(dataset, tmp_path / "out")
    other.process([one], [output])

    def gather(value):
        return [value, other._pngs if isinstance(value, dict) else (other._images, [])]

    monkeypatch.setattr(comm, "gather", gather)
    with pytest.raises(InputError, match="y/a.jpg: its prediction would replace that of .*x/a.jpg"):
        writer.evaluate()
