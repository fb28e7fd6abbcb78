# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""AP^r and AP^r_vol: average precision of regions, ranked over the whole set (paper 4.1)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wsis_d2.evaluation.chunks import Chunks
from wsis_d2.evaluation.image_match import RANKING_SCORES, ImageMatch
from wsis_d2.evaluation.panoptic_quality import mean_or_nan
from wsis_d2.structures.classes import ClassTable
from wsis_d2.utils.errors import InputError, check_choice

MATCHINGS = ("unique", "paper")
DEFAULT_THRESHOLDS = "0.1:0.9:0.1"
# Modes that are reported beside the chosen one wherever the predictions carry their scores.
COMPARED_MODES = ("detection", "mean_confidence", "oracle")


def parse_thresholds(text: str) -> tuple[float, ...]:
    """Return the IoU thresholds of ``"A:B:STEP"`` (both ends included) or ``"A,B,C"``.

    Raises:
        InputError: not of that form, not rising, or outside [0, 1).
    """
    expected = f"APr thresholds {text!r}: expected A:B:STEP or A,B,... within 0 <= t < 1"
    try:
        if ":" in text:
            first, last, step = (float(part) for part in text.split(":"))
            if not step > 0 or not last >= first:
                raise ValueError
            count = int(np.floor((last - first) / step + 1e-6)) + 1
            values = [round(first + k * step, 10) for k in range(count)]
        else:
            values = [float(part) for part in text.split(",")]
    except (ValueError, OverflowError):
        raise InputError(expected) from None
    if not all(0 <= value < 1 for value in values) or sorted(set(values)) != values:
        raise InputError(expected)
    return tuple(values)


class AveragePrecision:
    """AP^r at several thresholds.

    A prediction is right at threshold t if its IoU with a ground-truth segment of its class is
    above t (strictly); AP is the sum of the precision at each right prediction over the number of
    ground-truth segments, without interpolation. Void and crowd pixels are erased from
    predictions first; one that lies there wholly is a false positive. Equal scores rank by the
    image's id, then by the segment's position.

    Args:
        classes: the dataset's classes.
        thresholds: rising IoU thresholds in [0, 1).
        matching: ``"unique"``: by descending score, each prediction takes the best free segment
            above t. ``"paper"``: the authors' code, a prediction is right if any segment overlaps
            it above t; below 0.5 two may count for one and AP may pass 100.
        score_mode: one of ``RANKING_SCORES``. ``"oracle"`` is the best AP any ranking can reach:
            the largest number of right predictions, all ranked first.
    """

    def __init__(
        self,
        classes: ClassTable,
        thresholds: Sequence[float],
        matching: str = "unique",
        score_mode: str = "score",
    ) -> None:
        check_choice("matching", matching, MATCHINGS)
        check_choice("score mode", score_mode, RANKING_SCORES)
        self.classes = classes
        self.thresholds = tuple(thresholds)
        self.matching = matching
        self.score_mode = score_mode
        self.gt_count = np.zeros(len(classes), np.int64)
        # Classes, scores, positions and right (P, T) of all predictions.
        self._chunks = Chunks(
            np.zeros(0, np.int32),
            np.zeros(0),
            np.zeros(0, np.int64),
            np.zeros((0, len(self.thresholds)), bool),
        )

    def update(self, match: ImageMatch) -> None:
        """Add one image.

        Raises:
            InputError: the predictions lack the scores of the mode.
        """
        self.gt_count += np.bincount(match.gt_class[~match.gt_crowd], minlength=len(self.classes))
        count = len(match.pred_class)
        if self.score_mode == "oracle":
            scores = np.ones(count)
        elif self.score_mode in match.scores:
            scores = match.scores[self.score_mode]
        else:
            raise InputError(
                f"score mode {self.score_mode!r}: the predictions' segments lack it; expected"
                " 'scores': {'detection': s, 'mean_confidence': s} in each"
            )
        if count:
            position = np.arange(count) + (np.int64(match.key) << 20)
            right = self._right(match, scores)
            self._chunks.append(match.pred_class.astype(np.int32), scores, position, right)

    def merge(self, other: "AveragePrecision") -> None:
        """Add what another process collected."""
        self.gt_count += other.gt_count
        self._chunks.append(*other._chunks.joined())

    def _right(self, match: ImageMatch, scores: np.ndarray) -> np.ndarray:
        """Return bool (P, T): is a prediction right at a threshold."""
        iou = match.apr_iou
        best = iou.max(0, initial=0.0)
        thresholds = np.asarray(self.thresholds)
        right = best[:, None] > thresholds[None, :]
        if self.matching == "unique":
            # From 0.5 on a segment and a prediction, both disjoint from their like, meet at most
            # one partner each, so order does not matter.
            for column in np.nonzero(thresholds < 0.5)[0]:
                pick = _largest_matching if self.score_mode == "oracle" else _greedy_matching
                right[:, column] = pick(iou > thresholds[column], iou, scores)
        return right

    def per_class(self) -> np.ndarray:
        """Return AP, float64 (C, T), 0 to 1; NaN for classes without ground truth."""
        pred_class, scores, position, right = self._chunks.joined()
        order = np.lexsort((position, -scores))
        pred_class, right = pred_class[order], right[order]
        result = np.full((len(self.classes), len(self.thresholds)), np.nan)
        for index, count in enumerate(self.gt_count):
            if count == 0:
                continue
            mine = right[pred_class == index].astype(np.float64)
            if self.score_mode == "oracle":
                result[index] = mine.sum(0) / count
            else:
                precision = mine.cumsum(0) / np.arange(1, len(mine) + 1)[:, None]
                result[index] = (mine * precision).sum(0) / count
        return result

    def results(self) -> dict[str, float]:
        """Return ``APr_vol`` and ``APr_<100 t>`` over all, ``_th`` and ``_st`` classes, in percent.

        Also ``APr_vol-<class>`` and the number of classes each mean covers, ``N``, ``N_th``,
        ``N_st`` (those with ground truth). A mean over none is NaN.
        """
        values = 100 * self.per_class()
        things = self.classes.thing_mask
        groups = {"": np.ones(len(things), bool), "_th": things, "_st": ~things}
        result: dict[str, float] = {}
        for suffix, group in groups.items():
            result["APr_vol" + suffix] = mean_or_nan(values[group].mean(1))
        for column, threshold in enumerate(self.thresholds):
            for suffix, group in groups.items():
                key = f"APr_{100 * threshold:g}{suffix}"
                result[key] = mean_or_nan(values[group, column])
        for suffix, group in groups.items():
            result["N" + suffix] = int((self.gt_count[group] > 0).sum())
        for name, row in zip(self.classes.names, values, strict=True):
            result[f"APr_vol-{name}"] = float(row.mean())
        return result


@dataclass(frozen=True)
class APrOptions:
    """How AP^r is computed.

    Attributes:
        thresholds: ``"A:B:STEP"``, both ends included, or ``"A,B,..."``.
        matching: ``"unique"`` or ``"paper"``.
        score_mode: which score ranks: ``score`` (the segment's own), ``detection``,
            ``mean_confidence``, ``both`` (detection score for things, mean confidence for stuff),
            ``one`` (all equal) or ``oracle``.
    """

    thresholds: str = DEFAULT_THRESHOLDS
    matching: str = "unique"
    score_mode: str = "score"


class APrByScore:
    """AP^r in the chosen score mode, and AP^r_vol in the modes of the paper's table 6 beside it.

    Args:
        classes: the dataset's classes.
        options: see :class:`APrOptions`.
    """

    def __init__(self, classes: ClassTable, options: APrOptions) -> None:
        thresholds = parse_thresholds(options.thresholds)
        self.main = AveragePrecision(classes, thresholds, options.matching, options.score_mode)
        self.compared = {
            mode: AveragePrecision(classes, thresholds, options.matching, mode)
            for mode in COMPARED_MODES
        }

    def update(self, match: ImageMatch) -> None:
        """Add one image; modes that its predictions have no score for are given up."""
        self.main.update(match)
        for mode in list(self.compared):
            if mode != "oracle" and mode not in match.scores:
                del self.compared[mode]
            else:
                self.compared[mode].update(match)

    def merge(self, other: "APrByScore") -> None:
        """Add what another process collected."""
        self.main.merge(other.main)
        for mode in list(self.compared):
            if mode in other.compared:
                self.compared[mode].merge(other.compared[mode])
            else:
                del self.compared[mode]

    def results(self) -> dict[str, float]:
        """Return :meth:`AveragePrecision.results`, and by each mode what tables compare.

        That is ``APr_vol_{all,th,st}-by-<mode>``, and of the things ``APr_<100 t>_th-by-<mode>``.
        """
        result = self.main.results()
        for mode, precision in self.compared.items():
            other = precision.results()
            for group, suffix in (("all", ""), ("th", "_th"), ("st", "_st")):
                result[f"APr_vol_{group}-by-{mode}"] = other["APr_vol" + suffix]
            for threshold in precision.thresholds:
                key = f"APr_{100 * threshold:g}_th"
                result[f"{key}-by-{mode}"] = other[key]
        return result


def _greedy_matching(candidate: np.ndarray, iou: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return bool (P,): by descending score each prediction takes its best free candidate."""
    right = np.zeros(candidate.shape[1], bool)
    free = np.ones(candidate.shape[0], bool)
    for column in np.argsort(-scores, kind="stable"):
        rows = np.nonzero(candidate[:, column] & free)[0]
        if rows.size:
            free[rows[np.argmax(iou[rows, column])]] = False
            right[column] = True
    return right


def _largest_matching(candidate: np.ndarray, iou: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return bool (P,): the predictions of a largest one-to-one matching (augmenting paths)."""
    owner = np.full(candidate.shape[0], -1)

    def place(column: int, tried: set[int]) -> bool:
        for row in np.nonzero(candidate[:, column])[0].tolist():
            if row not in tried:
                tried.add(row)
                if owner[row] < 0 or place(owner[row], tried):
                    owner[row] = column
                    return True
        return False

    for column in range(candidate.shape[1]):
        place(column, set())
    right = np.zeros(candidate.shape[1], bool)
    right[owner[owner >= 0]] = True
    return right
