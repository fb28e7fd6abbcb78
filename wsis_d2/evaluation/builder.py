# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The evaluators of a dataset, as a config asks for them."""

from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators

from wsis_d2.evaluation.box_ap import BoxAPEvaluator
from wsis_d2.evaluation.evaluators import (
    APrEvaluator,
    InstanceAPEvaluator,
    PanopticQualityEvaluator,
    SemSegIoUEvaluator,
)
from wsis_d2.evaluation.panoptic_truth import PanopticTruth
from wsis_d2.evaluation.prediction_writer import PredictionWriter
from wsis_d2.evaluation.tag_evaluation import TagEvaluator
from wsis_d2.structures.stages import stage_of
from wsis_d2.utils.errors import InputError


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: str | Path | None = None
) -> DatasetEvaluator:
    """Return the evaluators of what a config's model predicts, on a ``wsis_panoptic`` dataset.

    The tag classifier: AP of tags. ``WeakPanopticRCNN`` in stage "detector": AP of boxes; in stage
    "semantic": IoU; else, and for every other model: PQ, AP^r, IoU and AP of instances. On a set
    without panoptic truth (a test set) the predictions of those are written and not measured.

    Args:
        cfg: a config with the keys of ``add_eval_config``.
        dataset_name: a registered dataset.
        output_folder: where prediction files go; None takes ``OUTPUT_DIR/inference/NAME``.

    Raises:
        InputError: the dataset's ``evaluator_type`` is another one, or a key cannot be followed.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type", None)
    if kind != "wsis_panoptic":
        raise InputError(
            f"DATASETS.TEST: no evaluator for dataset {dataset_name} with evaluator_type {kind!r},"
            " expected 'wsis_panoptic'"
        )
    if output_folder is None:
        output_folder = Path(cfg.OUTPUT_DIR) / "inference" / dataset_name
    if cfg.MODEL.META_ARCHITECTURE in ("TagClassifier", "TagSegmenter"):
        return TagEvaluator(MetadataCatalog.get(dataset_name).thing_classes)
    stage = stage_of(cfg)
    if stage.parts == ("detector",):
        return BoxAPEvaluator(dataset_name)
    if not MetadataCatalog.get(dataset_name).get("panoptic_json", None):
        return PredictionWriter(dataset_name, output_folder)
    if stage.parts == ("semantic",):
        return SemSegIoUEvaluator(dataset_name, output_folder)
    truth = PanopticTruth(dataset_name)
    evaluators: list[DatasetEvaluator] = [
        PanopticQualityEvaluator(
            dataset_name, output_folder, variant=cfg.TEST.PQ_VARIANT, truth=truth
        ),
        APrEvaluator(
            dataset_name,
            thresholds=cfg.TEST.APR_THRESHOLDS,
            matching=cfg.TEST.MATCHING,
            score_mode=cfg.TEST.SCORE_MODE,
            truth=truth,
        ),
        SemSegIoUEvaluator(dataset_name, output_folder, truth=truth),
    ]
    if cfg.TEST.INSTANCE_AP != "none":
        evaluators.append(InstanceAPEvaluator(dataset_name, cfg.TEST.INSTANCE_AP, truth=truth))
    return DatasetEvaluators(evaluators)
