# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
from wsis_d2.evaluation.average_precision import AveragePrecision, parse_thresholds
from wsis_d2.evaluation.builder import build_evaluator
from wsis_d2.evaluation.evaluators import (
    APrEvaluator,
    InstanceAPEvaluator,
    PanopticQualityEvaluator,
    SemSegIoUEvaluator,
)
from wsis_d2.evaluation.instance_ap import InstanceAP
from wsis_d2.evaluation.matching import SCORE_MODES, ImageMatch, Matcher
from wsis_d2.evaluation.metrics import APrOptions
from wsis_d2.evaluation.panoptic_format import Classes, PanopticFile
from wsis_d2.evaluation.panoptic_quality import PanopticQuality
from wsis_d2.evaluation.results import (
    copy_paste_rows,
    full_supervision_ratios,
    git_commit,
    make_meta,
    merge_results_json,
    read_results_json,
    write_results_json,
)
from wsis_d2.evaluation.semantic_iou import SemanticIoU
from wsis_d2.evaluation.truth import PanopticTruth

__all__ = [
    "APrEvaluator",
    "APrOptions",
    "AveragePrecision",
    "Classes",
    "ImageMatch",
    "InstanceAP",
    "InstanceAPEvaluator",
    "Matcher",
    "PanopticFile",
    "PanopticQuality",
    "PanopticQualityEvaluator",
    "PanopticTruth",
    "SCORE_MODES",
    "SemSegIoUEvaluator",
    "SemanticIoU",
    "build_evaluator",
    "copy_paste_rows",
    "full_supervision_ratios",
    "git_commit",
    "make_meta",
    "merge_results_json",
    "parse_thresholds",
    "read_results_json",
    "write_results_json",
]
