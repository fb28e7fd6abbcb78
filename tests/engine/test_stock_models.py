# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Detectron2's own Panoptic FPN and Mask R-CNN train from a label store."""

import json
import os
import pickle

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers.tiny_panoptic import CATEGORIES, THING_IDS, TinyData

from wsis_d2.data.datasets.own.separated import register_separated
from wsis_d2.engine.stock import StockTrainer, stock_config
from wsis_d2.modeling.ignoring_mask_head import IgnoringMaskHead
from wsis_d2.utils.errors import InputError

#: The zoo's recipes, made so small that they train in seconds.
TINY = [
    "MODEL.WEIGHTS", "",
    "MODEL.BACKBONE.NAME", "build_resnet_any_fpn_backbone", "MODEL.BACKBONE.FREEZE_AT", 0,
    "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.NORM", "BN", "MODEL.RESNETS.STEM_OUT_CHANNELS", 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS", 8, "MODEL.FPN.OUT_CHANNELS", 8,
    "MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16], [32], [64], [128]],
    "MODEL.ROI_BOX_HEAD.NUM_FC", 1, "MODEL.ROI_BOX_HEAD.FC_DIM", 16,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 5,
    "MODEL.ROI_MASK_HEAD.NUM_CONV", 1, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM", 8, "MODEL.SEM_SEG_HEAD.NORM", "",
    "INPUT.MIN_SIZE_TRAIN", (64,), "SOLVER.IMS_PER_BATCH", 2, "SOLVER.BASE_LR", 0.005,
    "SOLVER.STEPS", (), "SOLVER.CHECKPOINT_PERIOD", 100, "DATALOADER.NUM_WORKERS", 0, "SEED", 1,
]  # fmt: skip
RECIPES = {
    "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml": {"loss_mask", "loss_sem_seg"},
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml": {"loss_mask"},
}


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    tiny = TinyData(tmp_path_factory.mktemp("stock") / "data")
    name = register_separated("tiny_weak", keep_all=True)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
    tiny.close()


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_stock_recipe_trains_from_the_label_store(twin, tmp_path, recipe):
    opts = [*TINY, "SOLVER.MAX_ITER", 8, "OUTPUT_DIR", str(tmp_path)]
    cfg = stock_config(recipe, twin, opts=opts)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == len(THING_IDS)
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == len(CATEGORIES) - len(THING_IDS) + 1
    trainer = StockTrainer(cfg)
    assert isinstance(trainer.model.roi_heads.mask_head, IgnoringMaskHead)
    trainer.train()
    # Detectron2 writes some figures an iteration late.
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert max(line["iteration"] for line in lines) >= 6
    assert RECIPES[recipe] | {"loss_cls", "loss_rpn_cls"} <= {key for line in lines for key in line}
    assert (tmp_path / "model_final.pth").is_file()


def test_what_is_no_recipe_is_named(twin):
    with pytest.raises(InputError, match="COCO-Nothing"):
        stock_config("COCO-Nothing/x.yaml", twin)
    with pytest.raises(InputError, match="RetinaNet"):
        stock_config("COCO-Detection/retinanet_R_50_FPN_1x.yaml", twin)


def test_a_test_set_is_compared_with_its_annotation_of_now(twin, tmp_path):
    """What an earlier run in the folder has made of the set says nothing of it."""
    cfg = stock_config(list(RECIPES)[1], twin, twin, opts=["OUTPUT_DIR", str(tmp_path)])
    stale = tmp_path / "inference" / f"{twin}_coco_format.json"
    stale.parent.mkdir()
    stale.write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    evaluator = StockTrainer.build_evaluator(cfg, twin)
    records = DatasetCatalog.get(twin)
    assert sorted(evaluator._coco_api.getImgIds()) == sorted(r["image_id"] for r in records)
    assert len(evaluator._coco_api.getAnnIds()) == sum(len(r["annotations"]) for r in records) > 0


class Hostile:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


def test_hostile_files_run_nothing(twin, tmp_path):
    file, trace = tmp_path / "hostile.yaml", tmp_path / "trace"
    file.write_text(f"OUTPUT_DIR: !!python/object/apply:os.system ['touch {trace}']\n")
    with pytest.raises(InputError, match="hostile.yaml"):
        stock_config(str(file), twin)
    assert not trace.exists()
    weights = tmp_path / "weights.pkl"
    weights.write_bytes(pickle.dumps({"model": Hostile(trace), "__author__": "x"}))
    opts = [*TINY, "MODEL.WEIGHTS", str(weights), "OUTPUT_DIR", str(tmp_path)]
    trainer = StockTrainer(stock_config(next(iter(RECIPES)), twin, opts=opts))
    with pytest.raises(InputError, match="could run code"):
        trainer.resume_or_load(resume=False)
    assert not trace.exists()


def test_a_stock_recipe_runs_without_a_gpu(twin, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    recipe = next(iter(RECIPES))
    assert stock_config(recipe, twin).MODEL.DEVICE == "cpu"
    with pytest.raises(InputError, match="MODEL.DEVICE is 'cuda:1'"):
        stock_config(recipe, twin, opts=["MODEL.DEVICE", "cuda:1"])
