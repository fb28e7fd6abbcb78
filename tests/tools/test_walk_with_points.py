# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""A new user with points alone: labelme files -> labels -> Detectron2's Panoptic FPN."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.load_tool import load_tool
from PIL import Image

from wsis_d2.data.datasets.own.custom import unregister
from wsis_d2.data.datasets.sample.dataset import prepare_sample
from wsis_d2.evaluation.label_quality import evaluate_store
from wsis_d2.weak_labels.store import LabelStore

pytestmark = pytest.mark.long

COUNT = 12


@pytest.fixture
def clicked(tmp_path):
    """Photographs, and labelme files with one click a segment; the folder's truth beside them."""
    root = tmp_path / "data"
    prepare_sample(root, train=COUNT, val=1)
    truth = json.loads((root / "panoptic_train.json").read_text())
    names = {c["id"]: c["name"] for c in truth["categories"]}
    files = {i["id"]: Path(i["file_name"]).name for i in truth["images"]}
    (root / "labelme").mkdir()
    for entry in truth["annotations"]:
        picture = np.array(Image.open(root / "panoptic_train" / entry["file_name"]))
        ids = picture.astype(int) @ [1, 256, 65536]
        shapes = []
        for segment in entry["segments_info"]:
            ys, xs = np.nonzero(ids == segment["id"])
            point = [int(xs[len(xs) // 2]) + 0.5, int(ys[len(ys) // 2]) + 0.5]
            name = names[segment["category_id"]]
            shapes.append({"label": name, "shape_type": "point", "points": [point]})
        name = files[entry["image_id"]]
        content = json.dumps({"imagePath": name, "shapes": shapes})
        (root / "labelme" / name).with_suffix(".json").write_text(content)
    things = [c["name"] for c in truth["categories"] if c["isthing"]]
    yield root, things
    for name in ("stock_train", "stock_train_separated"):
        unregister(name)


def test_points_to_labels_to_panoptic_fpn(clicked):
    root, things = clicked
    images, points = str(root / "images/train"), str(root / "points.json")
    load_tool("import_annotations").main(
        ["labelme", "--annotations", str(root / "labelme"), "--images", images,
         "--things", *things, "--output", points]
    )  # fmt: skip
    content = json.loads(Path(points).read_text())
    assert content["annotations"] and not any("bbox" in a for a in content["annotations"])
    assert all(entry["points"] for entry in content["images"])  # of stuff

    store = root / "labels"
    status = load_tool("make_weak_labels").main(
        ["boxes", "--annotations", points, "--images", images, "--output", str(store),
         "--workers", "1"]
    )  # fmt: skip
    assert status == 0
    summary = LabelStore.open(store).manifest["summary"]["counters"]
    assert summary["objects_without_box"] == len(content["annotations"])
    assert summary["pixels_grown"] > summary["pixels_marked"] > 0
    # Images meet by id, which the import gave in the order of names, as the sample does.
    quality = evaluate_store(store, root / "panoptic_train.json", root / "panoptic_train")
    assert quality["summary"]["pixel_precision"] > 75 and quality["summary"]["coverage"] > 2

    load_tool("train_stock").main(
        ["--config-file", "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml",
         "--annotations", points, "--images", images, "--store", str(store),
         "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "",
         "MODEL.BACKBONE.NAME", "build_resnet_any_fpn_backbone", "MODEL.RESNETS.DEPTH", "18",
         "MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.RESNETS.NORM", "BN",
         "MODEL.BACKBONE.FREEZE_AT", "0", "INPUT.MIN_SIZE_TRAIN", "(128,)",
         "SOLVER.IMS_PER_BATCH", "2", "SOLVER.BASE_LR", "0.002", "SOLVER.MAX_ITER", "4",
         "SOLVER.STEPS", "()", "DATALOADER.NUM_WORKERS", "0", "OUTPUT_DIR", str(root / "fpn")]
    )  # fmt: skip
    weights = torch.load(root / "fpn" / "model_final.pth", weights_only=False)["model"]
    assert all(torch.isfinite(torch.as_tensor(v)).all() for v in weights.values())
