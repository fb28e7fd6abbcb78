# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Average precision of thing instances as COCO and Cityscapes define it.

Both are computed from the tables of :mod:`wsis_d2.evaluation.image_match`; pycocotools and
cityscapesscripts are their oracles in the tests.
"""

from dataclasses import dataclass, field

import numpy as np

from wsis_d2.evaluation.image_match import ImageMatch
from wsis_d2.evaluation.panoptic_quality import mean_or_nan
from wsis_d2.structures.classes import ClassTable
from wsis_d2.utils.errors import check_choice

PROTOCOLS = ("coco", "cityscapes")
THRESHOLDS = tuple(round(0.5 + 0.05 * k, 2) for k in range(10))
_RECALLS = np.linspace(0.0, 1.0, 101)
_MAX_DETECTIONS = 100
_AREAS = {"": (0, 1e10), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}
_MIN_REGION = 100
_MAX_CHUNKS = 64


@dataclass
class _Ranked:
    """Scores and verdicts of one class and area range, collected over images.

    ``chunks`` holds, of some images each, scores (P,), image keys (P,), right (P, thresholds) and
    ignored (P, thresholds).
    """

    gt_count: int = 0
    chunks: list[tuple[np.ndarray, ...]] = field(default_factory=list)
    missed: np.ndarray = field(default_factory=lambda: np.zeros(len(THRESHOLDS), np.int64))

    def add(self, scores: np.ndarray, key: int, right: np.ndarray, ignored: np.ndarray) -> None:
        """Add one image; many small arrays would take more than what they hold."""
        self._append((scores, np.full(len(scores), key), right, ignored))

    def _append(self, chunk: tuple[np.ndarray, ...]) -> None:
        self.chunks.append(chunk)
        if len(self.chunks) >= _MAX_CHUNKS:
            self.chunks = [self.joined()]

    def merge(self, other: "_Ranked") -> None:
        """Add what another process collected."""
        self.gt_count += other.gt_count
        self.missed = self.missed + other.missed
        self._append(other.joined())

    def joined(self) -> tuple[np.ndarray, ...]:
        """Return all images' scores, keys, right and ignored."""
        if not self.chunks:
            empty = np.zeros((0, len(THRESHOLDS)), bool)
            return np.zeros(0), np.zeros(0, np.int64), empty, empty
        return tuple(np.concatenate(parts) for parts in zip(*self.chunks, strict=True))


class InstanceAP:
    """AP of things over IoU 0.5:0.95:0.05 in percent, ranked by each segment's ``score``.

    ``"coco"``: 101 recall points, 100 predictions an image and class, crowds absorb predictions,
    parts by area. ``"cityscapes"``: step integration; predictions mostly on void, groups or
    instances under 100 pixels do not count; those instances neither.

    Args:
        classes: the dataset's classes; stuff is left out.
        protocol: ``"coco"`` or ``"cityscapes"``.
    """

    def __init__(self, classes: ClassTable, protocol: str = "coco") -> None:
        check_choice("AP protocol", protocol, PROTOCOLS)
        self.classes = classes
        self.protocol = protocol
        areas = _AREAS if protocol == "coco" else {"": _AREAS[""]}
        self._parts = {
            (int(index), area): _Ranked()
            for index in np.nonzero(classes.thing_mask)[0]
            for area in areas
        }

    def update(self, match: ImageMatch) -> None:
        """Add one image."""
        for (class_id, area), part in self._parts.items():
            rows = np.nonzero(match.gt_class == class_id)[0]
            columns = np.nonzero(match.pred_class == class_id)[0]
            if not rows.size and not columns.size:
                continue
            if self.protocol == "coco":
                _add_coco(part, match, rows, columns, _AREAS[area])
            else:
                _add_cityscapes(part, match, rows, columns)

    def merge(self, other: "InstanceAP") -> None:
        """Add what another process collected."""
        for key, part in self._parts.items():
            part.merge(other._parts[key])

    def per_class(self, area: str = "") -> np.ndarray:
        """Return AP, float64 (things, 10 thresholds), 0 to 1; NaN without ground truth.

        Args:
            area: ``""`` (all), or for COCO ``"s"``, ``"m"``, ``"l"``.
        """
        integrate = _integrate_coco if self.protocol == "coco" else _integrate_cityscapes
        parts = [part for (_, name), part in self._parts.items() if name == area]
        return np.array([integrate(part) for part in parts]).reshape(-1, len(THRESHOLDS))

    def results(self) -> dict[str, float]:
        """Return ``AP``, ``AP50``, ``AP75`` (COCO also ``APs``, ``APm``, ``APl``), ``AP-<class>``.

        ``N`` is the number of classes with ground truth; a mean over none is NaN.
        """
        values = 100 * self.per_class()
        result = {
            "AP": mean_or_nan(values),
            "AP50": mean_or_nan(values[:, 0]),
            "AP75": mean_or_nan(values[:, 5]),
        }
        if self.protocol == "coco":
            for area in ("s", "m", "l"):
                result[f"AP{area}"] = mean_or_nan(100 * self.per_class(area))
        result["N"] = int(np.isfinite(values[:, 0]).sum())
        things = np.array(self.classes.names, object)[self.classes.thing_mask]
        for name, row in zip(things, values, strict=True):
            result[f"AP-{name}"] = mean_or_nan(row)
        return result


def _add_coco(
    part: _Ranked,
    match: ImageMatch,
    rows: np.ndarray,
    columns: np.ndarray,
    area: tuple[float, float],
) -> None:
    scores = match.scores["score"][columns]
    order = np.argsort(-scores, kind="stable")[:_MAX_DETECTIONS]
    columns, scores = columns[order], scores[order]
    gt_area, crowd = match.gt_area[rows], match.gt_crowd[rows]
    ignored_gt = crowd | (gt_area < area[0]) | (gt_area > area[1])
    order = np.argsort(ignored_gt, kind="stable")
    rows, crowd, ignored_gt = rows[order], crowd[order], ignored_gt[order]
    inter = match.intersection[np.ix_(rows, columns)].astype(np.float64)
    pred_area = match.pred_area[columns]
    union = match.gt_area[rows][:, None] + pred_area[None] - inter
    iou = inter / np.where(crowd[:, None], pred_area[None], union)
    outside = (pred_area < area[0]) | (pred_area > area[1])

    right = np.zeros((len(columns), len(THRESHOLDS)), bool)
    ignored = np.zeros_like(right)
    # Only these can match at any threshold, with segments of one picture two or three at most.
    rivals = [np.flatnonzero(iou[:, k] >= THRESHOLDS[0]).tolist() for k in range(len(columns))]
    for position, threshold in enumerate(THRESHOLDS):
        free = np.ones(len(rows), bool)
        for column, candidates in enumerate(rivals):
            best, found = min(threshold, 1 - 1e-10), -1
            for row in candidates:
                if not free[row] and not crowd[row]:
                    continue
                if found >= 0 and not ignored_gt[found] and ignored_gt[row]:
                    break
                if iou[row, column] >= best:
                    best, found = iou[row, column], row
            if found >= 0:
                free[found] = False
                right[column, position] = True
                ignored[column, position] = ignored_gt[found]
            else:
                ignored[column, position] = outside[column]
    part.gt_count += int((~ignored_gt).sum())
    part.add(scores, match.key, right, ignored)


def _ranked(part: _Ranked) -> tuple[np.ndarray, ...]:
    """Return scores, right and ignored by descending score."""
    scores, keys, right, ignored = part.joined()
    order = np.lexsort((keys, -scores))
    return scores[order], right[order], ignored[order]


def _integrate_coco(part: _Ranked) -> np.ndarray:
    result = np.full(len(THRESHOLDS), np.nan)
    if part.gt_count == 0:
        return result
    _, right, ignored = _ranked(part)
    for column in range(len(THRESHOLDS)):
        tp = np.cumsum(right[:, column] & ~ignored[:, column])
        fp = np.cumsum(~right[:, column] & ~ignored[:, column])
        precision = tp / np.maximum(tp + fp, np.spacing(1))
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        at = np.searchsorted(tp / part.gt_count, _RECALLS, side="left")
        reached = at < len(envelope)
        result[column] = envelope[at[reached]].sum() / len(_RECALLS)
    return result


def _add_cityscapes(
    part: _Ranked, match: ImageMatch, rows: np.ndarray, columns: np.ndarray
) -> None:
    inter = match.intersection[np.ix_(rows, columns)].astype(np.float64)
    gt_area, group = match.gt_area[rows], match.gt_crowd[rows]
    pred_area, scores = match.pred_area[columns], match.scores["score"][columns]
    union = gt_area[:, None] + pred_area[None] - inter
    iou = inter / np.maximum(union, 1)
    small = gt_area < _MIN_REGION
    valid = ~group & ~small
    # A small group is subtracted twice: for being a group and for being small.
    excused = match.pred_void[columns] + inter[group].sum(0) + inter[small].sum(0)
    share = excused / np.maximum(pred_area, 1)

    count = len(columns)
    right = np.zeros((count, len(THRESHOLDS)), bool)
    ignored = np.zeros_like(right)
    for position, threshold in enumerate(THRESHOLDS):
        over = iou > threshold
        hit = over & valid[:, None]
        # Both sides are disjoint, so above 0.5 a pair is each other's only one.
        right[:, position] = hit.any(0)
        ignored[:, position] = ~hit.any(0) & (over.any(0) | (share > threshold))
        part.missed[position] += int((valid & ~hit.any(1)).sum())
    part.gt_count += int(valid.sum())
    part.add(scores, match.key, right, ignored)


def _integrate_cityscapes(part: _Ranked) -> np.ndarray:
    result = np.full(len(THRESHOLDS), np.nan)
    if part.gt_count == 0:
        return result
    scores, right, ignored = _ranked(part)
    for column in range(len(THRESHOLDS)):
        keep = ~ignored[:, column]
        result[column] = _step_integral(scores[keep], right[keep, column], int(part.missed[column]))
    return result


def _step_integral(scores: np.ndarray, right: np.ndarray, missed: int) -> float:
    """Area under precision and recall at each distinct score, closed by precision 1, recall 0."""
    if not right.any():
        return 0.0
    tp, total = np.cumsum(right), np.arange(1, len(right) + 1)
    last = np.append(np.nonzero(np.diff(scores))[0], len(scores) - 1)
    # From all predictions down to the best alone, then the artificial point.
    precision = np.append((tp / total)[last][::-1], 1.0)
    recall = np.append((tp / (tp[-1] + missed))[last][::-1], 0.0)
    padded = np.concatenate([recall[:1], recall, [0.0]])
    return float(np.dot(precision, (padded[:-2] - padded[2:]) / 2))
