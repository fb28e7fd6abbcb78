# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Panoptic quality from per-image tables, in two definitions, summed as images stream by."""

import numpy as np

from wsis_d2.evaluation.image_match import ImageMatch
from wsis_d2.structures.classes import ClassTable
from wsis_d2.utils.errors import check_choice

PQ_VARIANTS = ("coco", "paper")
PQ_THRESHOLD = 0.5


class PanopticQuality:
    """PQ, SQ and DQ at IoU > 0.5.

    ``"coco"`` is panopticapi's definition (Kirillov et al.): a prediction's void pixels leave the
    union; crowd segments match nothing; an unmatched prediction of which more than half is void
    or crowd of its class is no false positive. Of several crowd segments of one class in an image
    the last listed counts, as there.

    ``"paper"`` is what the authors' evaluation code does: the overlaps of AP^r (void and crowd
    erased from predictions, best same-class overlap of each prediction), and each prediction is
    right or wrong; nothing is excused.

    Args:
        classes: the dataset's classes.
        variant: ``"coco"`` or ``"paper"``.
    """

    def __init__(self, classes: ClassTable, variant: str = "coco") -> None:
        check_choice("PQ variant", variant, PQ_VARIANTS)
        self.classes = classes
        self.variant = variant
        count = len(classes)
        self.tp = np.zeros(count, np.int64)
        self.fp = np.zeros(count, np.int64)
        self.fn = np.zeros(count, np.int64)
        self.iou = np.zeros(count, np.float64)

    def update(self, match: ImageMatch) -> None:
        """Add one image."""
        if self.variant == "coco":
            self._update_coco(match)
        else:
            self._update_paper(match)

    def merge(self, other: "PanopticQuality") -> None:
        """Add what another process counted."""
        for name in ("tp", "fp", "fn", "iou"):
            getattr(self, name).__iadd__(getattr(other, name))

    def _update_coco(self, match: ImageMatch) -> None:
        count = len(self.classes)
        iou = match.pq_iou
        matched = iou > PQ_THRESHOLD
        gt_index, pred_index = np.nonzero(matched)
        pair_class = match.gt_class[gt_index]
        self.tp += np.bincount(pair_class, minlength=count)
        self.iou += np.bincount(pair_class, iou[gt_index, pred_index], minlength=count)

        missed = ~matched.any(1) & ~match.gt_crowd
        self.fn += np.bincount(match.gt_class[missed], minlength=count)

        excused = match.pred_void.copy()
        crowds = np.nonzero(match.gt_crowd)[0]
        crowd_of_class = {int(match.gt_class[row]): row for row in crowds}
        for class_id, row in crowd_of_class.items():
            same = match.pred_class == class_id
            excused[same] += match.intersection[row, same]
        wrong = ~matched.any(0) & ~(excused / np.maximum(match.pred_area, 1) > 0.5)
        self.fp += np.bincount(match.pred_class[wrong], minlength=count)

    def _update_paper(self, match: ImageMatch) -> None:
        count = len(self.classes)
        overlap = match.apr_iou.max(0, initial=0.0)
        right = overlap > PQ_THRESHOLD
        tp = np.bincount(match.pred_class[right], minlength=count)
        self.tp += tp
        self.iou += np.bincount(match.pred_class[right], overlap[right], minlength=count)
        self.fp += np.bincount(match.pred_class[~right], minlength=count)
        self.fn += np.bincount(match.gt_class[~match.gt_crowd], minlength=count) - tp

    def per_class(self) -> dict[str, np.ndarray]:
        """Return PQ, SQ, DQ of each class, (C,) in percent, NaN for classes that never occur."""
        weight = self.tp + 0.5 * self.fp + 0.5 * self.fn
        absent = (self.tp + self.fp + self.fn) == 0
        weight = np.where(absent, 1.0, weight)
        nan = np.where(absent, np.nan, 1.0)
        return {
            "PQ": 100 * nan * self.iou / weight,
            "SQ": 100 * nan * self.iou / np.maximum(self.tp, 1),
            "DQ": 100 * nan * self.tp / weight,
        }

    def results(self) -> dict[str, float]:
        """Return PQ, SQ, DQ over all, ``_th`` and ``_st`` classes, and of each class, in percent.

        A mean covers the classes that occur in truth or prediction; ``N``, ``N_th`` and ``N_st``
        say how many. A mean over none is NaN.
        """
        values = self.per_class()
        things = self.classes.thing_mask
        groups = {"": np.ones(len(things), bool), "_th": things, "_st": ~things}
        result: dict[str, float] = {}
        for suffix, group in groups.items():
            for name, per_class in values.items():
                result[name + suffix] = mean_or_nan(per_class[group])
        for suffix, group in groups.items():
            result["N" + suffix] = int(np.isfinite(values["PQ"][group]).sum())
        for name, per_class in values.items():
            for class_name, value in zip(self.classes.names, per_class, strict=True):
                result[f"{name}-{class_name}"] = float(value)
        return result


def mean_or_nan(values: np.ndarray) -> float:
    """Return the mean of the finite values, NaN where there is none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")
