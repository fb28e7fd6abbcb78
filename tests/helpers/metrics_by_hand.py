# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Second implementations of PQ and AP^r, pixel by pixel from the definitions, slow and plain."""

import itertools

import numpy as np


def masks_of(ids: np.ndarray, segments: list[dict]) -> list[tuple[dict, np.ndarray]]:
    """Return (segment, bool mask) pairs."""
    return [(segment, ids == segment["id"]) for segment in segments]


def iou_of(a: np.ndarray, b: np.ndarray) -> float:
    """Return intersection over union of two masks."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 0.0


def overlaps_of_class(scenes: list[tuple], category: int) -> list[tuple[list, list]]:
    """Return per image ([true masks], [(score dict, erased predicted mask)]) of a class."""
    images = []
    for gt, gt_segments, pred, pred_segments in scenes:
        ignored = gt == 0
        for segment, mask in masks_of(gt, gt_segments):
            if segment["iscrowd"]:
                ignored = ignored | mask
        truths = [
            m for s, m in masks_of(gt, gt_segments)
            if s["category_id"] == category and not s["iscrowd"]
        ]  # fmt: skip
        predictions = [
            (s, m & ~ignored) for s, m in masks_of(pred, pred_segments)
            if s["category_id"] == category
        ]  # fmt: skip
        images.append((truths, predictions))
    return images


def average_precision(
    scenes: list[tuple], category: int, threshold: float, matching: str, score_of
) -> float:
    """Return AP^r of a class; NaN without truth. ``score_of(segment)`` ranks."""
    verdicts, count = [], 0
    for image, (truths, predictions) in enumerate(overlaps_of_class(scenes, category)):
        count += len(truths)
        order = sorted(range(len(predictions)), key=lambda k: -score_of(predictions[k][0]))
        taken: set[int] = set()
        for k in order:
            segment, mask = predictions[k]
            best, found = threshold, None
            for j, truth in enumerate(truths):
                value = iou_of(truth, mask)
                if value > best and (matching == "paper" or j not in taken):
                    best, found = value, j
            if found is not None:
                taken.add(found)
            verdicts.append((-score_of(segment), image, k, found is not None))
    if count == 0:
        return float("nan")
    total = right = 0.0
    for rank, (*_, correct) in enumerate(sorted(verdicts), start=1):
        if correct:
            right += 1
            total += right / rank
    return total / count


def oracle_precision(scenes: list[tuple], category: int, threshold: float, matching: str) -> float:
    """Return the best AP any ranking and one-to-one assignment can reach."""
    right = count = 0
    for truths, predictions in overlaps_of_class(scenes, category):
        count += len(truths)
        good = np.array(
            [[iou_of(t, m) > threshold for _, m in predictions] for t in truths], bool
        ).reshape(len(truths), len(predictions))
        if matching == "paper":
            right += int(good.any(0).sum())
            continue
        best = 0
        options = [[-1, *np.nonzero(column)[0].tolist()] for column in good.T]
        for choice in itertools.product(*options):
            used = [row for row in choice if row >= 0]
            if len(set(used)) == len(used):
                best = max(best, len(used))
        right += best
    return right / count if count else float("nan")


def paper_quality(scenes: list[tuple], category: int) -> tuple[float, float, float]:
    """Return (PQ, SQ, DQ) of a class by the authors' rule: best overlap of each prediction."""
    values, count = [], 0
    for truths, predictions in overlaps_of_class(scenes, category):
        count += len(truths)
        for _, mask in predictions:
            values.append(max([iou_of(t, mask) for t in truths], default=0.0))
    hits = [value for value in values if value > 0.5]
    tp, fp = len(hits), len(values) - len(hits)
    fn = count - tp
    if tp + fp + fn == 0:
        return float("nan"), float("nan"), float("nan")
    dq = tp / (tp + 0.5 * fp + 0.5 * fn)
    sq = sum(hits) / tp if tp else 0.0
    return sq * dq, sq, dq


def coco_quality(scenes: list[tuple], category: int) -> tuple[float, float, float]:
    """Return (PQ, SQ, DQ) of a class by the panoptic quality paper: void and crowd excused."""
    tp = fp = fn = 0
    total = 0.0
    for gt, gt_segments, pred, pred_segments in scenes:
        void = gt == 0
        truths = [p for p in masks_of(gt, gt_segments) if p[0]["category_id"] == category]
        crowd = np.zeros_like(void)
        for segment, mask in truths:
            if segment["iscrowd"]:
                crowd |= mask
        whole = [mask for segment, mask in truths if not segment["iscrowd"]]
        hit = set()
        for segment, mask in masks_of(pred, pred_segments):
            if segment["category_id"] != category:
                continue
            for j, truth in enumerate(whole):
                value = iou_of(truth, mask & ~void)
                if value > 0.5:
                    tp, total = tp + 1, total + value
                    hit.add(j)
                    break
            else:
                if (mask & (void | crowd)).sum() <= 0.5 * mask.sum():
                    fp += 1
        fn += len(whole) - len(hit)
    if tp + fp + fn == 0:
        return float("nan"), float("nan"), float("nan")
    weight = tp + 0.5 * fp + 0.5 * fn
    return total / weight, total / tp if tp else 0.0, tp / weight
