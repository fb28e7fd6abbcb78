# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The installed Detectron2 runs on this Python stack, whether repackaged or from upstream."""

import numpy as np
import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone, build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from PIL import Image


def test_faster_rcnn_forward_and_backward():
    cfg = model_zoo.get_config("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml")
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    model = build_model(cfg)
    instances = Instances((96, 128))
    instances.gt_boxes = Boxes(torch.tensor([[10.0, 10.0, 80.0, 60.0]]))
    instances.gt_classes = torch.tensor([3])
    image = torch.randint(0, 255, (3, 96, 128), dtype=torch.uint8)
    with EventStorage():
        losses = model([{"image": image, "instances": instances, "height": 96, "width": 128}])
    assert {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"} <= set(losses)
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total)
    assert model.roi_heads.box_predictor.cls_score.weight.grad.abs().sum() > 0
    with torch.no_grad():
        output = model.eval()([{"image": image, "height": 96, "width": 128}])
    assert output[0]["instances"].image_size == (96, 128)


def test_dilated_deeplab_backbone():
    from detectron2.projects.deeplab import add_deeplab_config

    cfg = get_cfg()
    add_deeplab_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_resnet_deeplab_backbone"
    cfg.MODEL.RESNETS.DEPTH = 50
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    cfg.MODEL.RESNETS.RES4_DILATION = 2
    cfg.MODEL.RESNETS.RES5_DILATION = 4
    cfg.MODEL.RESNETS.RES5_MULTI_GRID = [1, 1, 1]
    cfg.MODEL.RESNETS.STEM_TYPE = "basic"
    features = build_backbone(cfg).eval()(torch.zeros(1, 3, 65, 65))
    assert features["res5"].shape == (1, 2048, 9, 9)


def test_model_zoo_finds_its_configs():
    file = model_zoo.get_config_file("COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml")
    assert "Base-Panoptic-FPN.yaml" in open(file).read()
    with pytest.raises(RuntimeError, match="not available in Model Zoo"):
        model_zoo.get_config_file("no/such.yaml")


def test_evaluators(tmp_path):
    import json

    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import register_coco_instances
    from detectron2.evaluation import COCOEvaluator, SemSegEvaluator

    annotations = {
        "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 50}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20], "area": 400,
             "iscrowd": 0}
        ],
        "info": {}, "licenses": [],
    }  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(annotations))
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / "a.png")
    labels = np.zeros((40, 50), np.uint8)
    labels[:20] = 1
    Image.fromarray(labels).save(tmp_path / "l.png")
    name = "packaging_test_coco"
    register_coco_instances(name, {}, str(tmp_path / "a.json"), str(tmp_path))
    try:
        DatasetCatalog.get(name)  # sets the category ids in the metadata
        evaluator = COCOEvaluator(name, output_dir=str(tmp_path / "out"))
        evaluator.reset()
        found = Instances((40, 50))
        found.pred_boxes = Boxes(torch.tensor([[5.0, 5.0, 25.0, 25.0]]))
        found.scores = torch.tensor([0.9])
        found.pred_classes = torch.tensor([0])
        evaluator.process([{"image_id": 1}], [{"instances": found}])
        assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100.0)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)

    name = "packaging_test_sem_seg"
    DatasetCatalog.register(
        name,
        lambda: [
            {"file_name": str(tmp_path / "a.png"), "sem_seg_file_name": str(tmp_path / "l.png")}
        ],
    )
    MetadataCatalog.get(name).set(stuff_classes=["a", "b"], ignore_label=255)
    try:
        evaluator = SemSegEvaluator(name, distributed=False)
        evaluator.reset()
        logits = torch.nn.functional.one_hot(torch.as_tensor(labels).long(), 2).permute(2, 0, 1)
        evaluator.process([{"file_name": str(tmp_path / "a.png")}], [{"sem_seg": logits.float()}])
        assert evaluator.evaluate()["sem_seg"]["mIoU"] == pytest.approx(100.0)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)


def test_missing_operators_say_so_on_use():
    try:
        from detectron2 import _C  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("this Detectron2 has its compiled operators")
    from detectron2.layers.rotated_boxes import pairwise_iou_rotated

    with pytest.raises(ImportError, match="no compiled operators"):
        pairwise_iou_rotated(torch.zeros(1, 5), torch.zeros(1, 5))
