# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Detectron2's own Panoptic FPN trains from a label store."""

import json

from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultTrainer
from helpers.tiny_panoptic import CATEGORIES, THING_IDS, TinyData

from wsis_d2.data.datasets.own.separated import register_separated


def test_stock_panoptic_fpn_trains_from_the_label_store(tmp_path):
    tiny = TinyData(tmp_path / "data")
    name = register_separated("tiny_weak")
    try:
        cfg = get_cfg()
        cfg.merge_from_list([
            "DATASETS.TRAIN", (name,), "DATASETS.TEST", (), "OUTPUT_DIR", str(tmp_path / "out"),
            "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.META_ARCHITECTURE", "PanopticFPN",
            "MODEL.MASK_ON", True, "MODEL.BACKBONE.NAME", "build_resnet_any_fpn_backbone",
            "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 0,
            "MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 8,
            "MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"],
            "MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"],
            "MODEL.FPN.OUT_CHANNELS", 8,
            "MODEL.RPN.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"],
            "MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16], [32], [64], [128]],
            "MODEL.ROI_HEADS.NAME", "StandardROIHeads",
            "MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4", "p5"],
            "MODEL.ROI_HEADS.NUM_CLASSES", len(THING_IDS),
            "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 1,
            "MODEL.ROI_BOX_HEAD.FC_DIM", 16, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 5,
            "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead",
            "MODEL.ROI_MASK_HEAD.NUM_CONV", 1, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8,
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES", len(CATEGORIES) - len(THING_IDS) + 1,
            "MODEL.SEM_SEG_HEAD.CONVS_DIM", 8, "MODEL.SEM_SEG_HEAD.NORM", "",
            "INPUT.MASK_FORMAT", "bitmask", "INPUT.MIN_SIZE_TRAIN", (64,),
            "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 20, "SOLVER.BASE_LR", 0.005,
            "SOLVER.STEPS", (), "SOLVER.CHECKPOINT_PERIOD", 100, "DATALOADER.NUM_WORKERS", 0,
            "SEED", 1,
        ])  # fmt: skip
        DefaultTrainer(cfg).train()
        lines = (tmp_path / "out/metrics.json").read_text().splitlines()
        last = json.loads(lines[-1])
        assert last["iteration"] == 19
        assert {"loss_mask", "loss_sem_seg", "loss_cls", "loss_rpn_cls"} <= set(last)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
        tiny.close()
