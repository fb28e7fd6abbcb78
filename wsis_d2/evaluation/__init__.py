# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Metrics: PQ, AP^r, IoU and AP of instances, from a model or from files; the paper's tables."""

# Names are looked up on first use: the metrics on files need neither torch nor Detectron2.
from importlib import import_module
from typing import Any

_MODULES = {
    "APrEvaluator": "evaluators",
    "APrOptions": "average_precision",
    "AveragePrecision": "average_precision",
    "BoxAPEvaluator": "box_ap",
    "FileOptions": "from_files",
    "ImageMatch": "image_match",
    "InstanceAP": "instance_ap",
    "InstanceAPEvaluator": "evaluators",
    "Matcher": "image_match",
    "PanopticQuality": "panoptic_quality",
    "PanopticQualityEvaluator": "evaluators",
    "PanopticTruth": "panoptic_truth",
    "PredictionWriter": "prediction_writer",
    "RANKING_SCORES": "image_match",
    "SemSegIoUEvaluator": "evaluators",
    "SemanticIoU": "semantic_iou",
    "build_evaluator": "builder",
    "copy_paste_rows": "results",
    "evaluate_files": "from_files",
    "full_supervision_ratios": "results",
    "git_commit": "results",
    "make_meta": "results",
    "merge_results_json": "results",
    "parse_thresholds": "average_precision",
    "read_results_json": "results",
    "write_results_json": "results",
    "write_submission": "submission",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
