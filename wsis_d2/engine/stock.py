# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Detectron2's own Panoptic FPN and Mask R-CNN, trained from labels of this project.

Addition, not in the paper.
"""

import os
import weakref
from collections.abc import Sequence
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.data import (
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import COCOEvaluator, COCOPanopticEvaluator, DatasetEvaluator
from detectron2.model_zoo import get_config_file

from wsis_d2.checkpoint.reader import load_file
from wsis_d2.config import merge_file
from wsis_d2.config_checks.runs import choose_device
from wsis_d2.data.mappers.separated_mapper import SeparatedMapper
from wsis_d2.utils.errors import InputError


class _Checkpointer(DetectionCheckpointer):
    """Detectron2's, which runs no code that a file may carry."""

    def _load_file(self, filename: str) -> dict[str, Any]:
        return load_file(filename)


class StockTrainer(DefaultTrainer):
    """``DefaultTrainer`` that leaves the unknown pixels of masks out of their loss."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(cfg)
        self.checkpointer = _Checkpointer(self.model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        """Return Detectron2's loader with :class:`SeparatedMapper`."""
        return build_detection_train_loader(cfg, mapper=SeparatedMapper(cfg, True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """Return Detectron2's loader with :class:`SeparatedMapper`."""
        mapper = SeparatedMapper(cfg, False)
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """Return PQ by panopticapi, or AP of a model without a semantic part."""
        output = os.path.join(cfg.OUTPUT_DIR, "inference")
        if cfg.MODEL.META_ARCHITECTURE == "PanopticFPN":
            return COCOPanopticEvaluator(dataset_name, output)
        metadata = MetadataCatalog.get(dataset_name)
        if not metadata.get("json_file"):  # Detectron2 would take what an earlier run has written
            path = os.path.join(output, f"{dataset_name}_coco_format.json")
            convert_to_coco_json(dataset_name, path, allow_cached=False)
            metadata.json_file = path
        return COCOEvaluator(dataset_name, output_dir=output)


def stock_config(
    config_file: str, train: str, test: str | None = None, opts: Sequence[str] = ()
) -> CfgNode:
    """Return a stock recipe with the classes of a separated twin and our mask head.

    Args:
        config_file: a file, or a name in Detectron2's model zoo
            (``COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml``).
        train, test: separated twins (``register_separated``).
        opts: alternating keys and values, which have the last word.

    Raises:
        InputError: no such recipe, one of another meta architecture, or a device that is not here.
    """
    cfg = get_cfg()
    try:
        path = config_file if os.path.isfile(config_file) else get_config_file(config_file)
        merge_file(cfg, path)
        metadata = MetadataCatalog.get(train)
        cfg.merge_from_list([
            "DATASETS.TRAIN", (train,), "DATASETS.TEST", (test,) if test else (),
            "MODEL.ROI_HEADS.NUM_CLASSES", len(metadata.thing_classes),
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES", len(metadata.stuff_classes),
            "MODEL.RETINANET.NUM_CLASSES", len(metadata.thing_classes),
            "INPUT.MASK_FORMAT", "bitmask", "MODEL.ROI_MASK_HEAD.NAME", "IgnoringMaskHead",
            "DATALOADER.FILTER_EMPTY_ANNOTATIONS", cfg.MODEL.META_ARCHITECTURE != "PanopticFPN",
        ])  # fmt: skip
        cfg.merge_from_list(list(opts))
    except (RuntimeError, KeyError, ValueError, AssertionError) as error:
        text = " ".join(str(error.args[0] if error.args else error).split())
        raise InputError(f"--config-file {config_file}: {text}") from None
    if cfg.MODEL.META_ARCHITECTURE not in ("PanopticFPN", "GeneralizedRCNN"):
        raise InputError(
            f"--config-file {config_file}: META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}; "
            "expected PanopticFPN or GeneralizedRCNN (Mask R-CNN, Faster R-CNN)"
        )
    choose_device(cfg)
    return cfg
