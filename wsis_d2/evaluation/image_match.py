# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""What one image contributes to every metric: areas, intersections and scores of its segments.

All metrics are functions of the joint histogram of ground-truth and predicted segment ids, so each
image is reduced to that small table once and its pixels are dropped.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from wsis_d2.data.panoptic_format import MAX_ID, VOID_ID
from wsis_d2.structures.classes import ClassTable
from wsis_d2.structures.segments import picture_ids
from wsis_d2.utils.errors import InputError

RANKING_SCORES = ("score", "detection", "mean_confidence", "both", "one", "oracle")
_UNKNOWN, _VOID, _FIRST = 0, 1, 2


@dataclass(frozen=True)
class ImageMatch:
    """The table of one image with G ground-truth and P predicted segments.

    Attributes:
        gt_class: (G,) int64, unified class ids.
        gt_crowd: (G,) bool.
        gt_area: (G,) int64, pixels.
        pred_class: (P,) int64, unified class ids.
        pred_area: (P,) int64, pixels.
        intersection: (G, P) int64, pixels.
        pred_void: (P,) int64, pixels of a prediction that are void in the truth.
        gt_unpredicted: (G,) int64, pixels of the truth without predicted segment.
        scores: score mode to (P,) float64.
        key: place of the image among the ids of the truth, orders equal scores.
    """

    gt_class: np.ndarray
    gt_crowd: np.ndarray
    gt_area: np.ndarray
    pred_class: np.ndarray
    pred_area: np.ndarray
    intersection: np.ndarray
    pred_void: np.ndarray
    gt_unpredicted: np.ndarray
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    key: int = 0

    @cached_property
    def same_class(self) -> np.ndarray:
        """bool (G, P): the pair has one class and the truth is no crowd."""
        same = self.gt_class[:, None] == self.pred_class[None, :]
        return same & ~self.gt_crowd[:, None]

    @cached_property
    def pq_iou(self) -> np.ndarray:
        """float64 (G, P): IoU without the prediction's void pixels, 0 for pairs that cannot match.

        The definition of the panoptic quality paper as panopticapi computes it.
        """
        union = self.gt_area[:, None] + (self.pred_area - self.pred_void)[None, :]
        return _ratio(self.intersection, union - self.intersection, self.same_class)

    @cached_property
    def apr_iou(self) -> np.ndarray:
        """float64 (G, P): IoU after erasing ignored pixels from predictions, 0 for other classes.

        Ignored is what belongs to no ground-truth instance: void and crowd.
        """
        erased = self.pred_void + self.intersection[self.gt_crowd].sum(0)
        union = self.gt_area[:, None] + (self.pred_area - erased)[None, :]
        return _ratio(self.intersection, union - self.intersection, self.same_class)


def _ratio(intersection: np.ndarray, union: np.ndarray, valid: np.ndarray) -> np.ndarray:
    result = np.zeros(intersection.shape, np.float64)
    np.divide(intersection, union, out=result, where=valid & (union > 0))
    return result


class Matcher:
    """Turns two id maps with their segments into an :class:`ImageMatch`.

    Holds one look-up table over all 2^24 ids (32 MiB), so that pixels are relabelled without
    sorting; memory does not depend on how many images follow.

    Args:
        classes: the dataset's classes.
    """

    def __init__(self, classes: ClassTable) -> None:
        self.classes = classes
        self._table = np.zeros(MAX_ID + 1, np.uint16)

    def __call__(
        self,
        gt_ids: np.ndarray,
        gt_segments: Sequence[Mapping[str, Any]],
        pred_ids: np.ndarray,
        pred_segments: Sequence[Mapping[str, Any]],
        *,
        key: int = 0,
        gt_name: str = "ground truth",
        pred_name: str = "prediction",
        drop_empty: bool = False,
    ) -> ImageMatch:
        """Match one image.

        Args:
            gt_ids, pred_ids: integer (H, W), or uint8 (H, W, 3) as a PNG holds them; 0 = void,
                every other id stands in the segments.
            gt_segments, pred_segments: dicts with ``id``, ``category_id`` (of the file),
                optionally ``iscrowd``, ``score`` and ``scores``.
            key: place of the image among the ids of the truth.
            gt_name, pred_name: what to call the two in errors.
            drop_empty: leave out predicted segments without pixels instead of refusing them.

        Raises:
            InputError: sizes differ, a pixel's id has no segment, a predicted segment has no
                pixel, a score is not finite.
        """
        if gt_ids.shape[:2] != pred_ids.shape[:2]:
            raise InputError(
                f"{pred_name}: {_size(pred_ids)} (height x width), expected"
                f" {_size(gt_ids)} as in {gt_name}"
            )
        starts, lengths = joint_runs(gt_ids, pred_ids)
        gt_runs, pred_runs = _ids_at(gt_ids, starts), _ids_at(pred_ids, starts)
        rows = self._relabel(gt_runs, gt_segments, gt_name)
        columns = self._relabel(pred_runs, pred_segments, pred_name)
        joint = joint_histogram(
            rows, columns, len(gt_segments) + 2, len(pred_segments) + 2, weights=lengths
        )
        _refuse_unknown(joint[_UNKNOWN], rows, gt_runs, gt_name)
        _refuse_unknown(joint[:, _UNKNOWN], columns, pred_runs, pred_name)

        pred_area = joint[:, _FIRST:].sum(0)
        keep = np.ones(len(pred_segments), bool)
        if (pred_area == 0).any():
            if not drop_empty:
                empty = pred_segments[int(np.argmin(pred_area))]["id"]
                raise InputError(f"{pred_name}: segment id {empty} is in the JSON but has no pixel")
            keep = pred_area > 0
        kept = [segment for segment, keeps in zip(pred_segments, keep, strict=True) if keeps]
        index = self.classes.contiguous
        pred_class = np.array([index[s["category_id"]] for s in kept], np.int64)
        return ImageMatch(
            gt_class=np.array([index[s["category_id"]] for s in gt_segments], np.int64),
            gt_crowd=np.array([bool(s.get("iscrowd", 0)) for s in gt_segments], bool),
            gt_area=joint[_FIRST:].sum(1),
            pred_class=pred_class,
            pred_area=pred_area[keep],
            intersection=joint[_FIRST:, _FIRST:][:, keep],
            pred_void=joint[_VOID, _FIRST:][keep],
            gt_unpredicted=joint[_FIRST:, _VOID],
            scores=_scores(kept, self.classes.thing_mask[pred_class], pred_name),
            key=key,
        )

    def _relabel(
        self, ids: np.ndarray, segments: Sequence[Mapping[str, Any]], name: str
    ) -> np.ndarray:
        """Return uint16, shaped like ``ids``: 0 unknown id, 1 void, 2 + k the k-th segment."""
        if len(segments) > np.iinfo(np.uint16).max - _FIRST:
            raise InputError(f"{name}: {len(segments)} segments, more than this can hold (65533)")
        if ids.size and not 0 <= ids.min() <= ids.max() <= MAX_ID:
            raise InputError(
                f"{name}: segment ids {ids.min()} to {ids.max()}, expected 0 to {MAX_ID}"
            )
        numbers = np.array([segment["id"] for segment in segments], np.int64)
        table = self._table
        try:
            table[VOID_ID] = _VOID
            table[numbers] = np.arange(_FIRST, _FIRST + len(numbers), dtype=np.uint16)
            return table.take(ids)
        finally:
            table[VOID_ID] = 0
            table[numbers] = 0


def joint_runs(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return runs of pixels, in reading order, in which two pictures are constant.

    Pictures of segments have some ten thousand runs where they have millions of pixels.

    Args:
        first, second: (H, W) or (H, W, 3), of one height and width.

    Returns:
        Index of each run's first pixel in the flattened picture, and its length, int64 (runs,).
    """
    count = math.prod(first.shape[:2])
    change = np.zeros(count, bool)
    change[:1] = True
    for picture in (first, second):
        channels = picture.size // count if count else 1
        values = picture.ravel()
        differs = np.flatnonzero(values[channels:] != values[:-channels])
        change[differs // channels + 1] = True
    starts = np.flatnonzero(change)
    return starts, np.diff(starts, append=count)


def _ids_at(picture: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the ids of a picture at places of the flattened one."""
    if picture.ndim == 2:
        return picture.ravel()[places]
    return picture_ids(picture.reshape(-1, 3)[places])


def joint_histogram(
    rows: np.ndarray, columns: np.ndarray, n: int, m: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """Count by (row label, column label).

    Args:
        rows: integers, values 0 to n - 1.
        columns: integers of the same shape, values 0 to m - 1.
        weights: how many pixels each stands for; None: one.

    Returns:
        int64 (n, m).
    """
    joint = rows.astype(np.int64).ravel()
    joint *= m
    joint += columns.ravel()
    # Sums of pixel counts are exact in float64.
    return np.bincount(joint, weights, minlength=n * m).astype(np.int64).reshape(n, m)


def _refuse_unknown(counts: np.ndarray, labels: np.ndarray, ids: np.ndarray, name: str) -> None:
    if counts.any():
        number = ids[labels == _UNKNOWN][0]
        raise InputError(
            f"{name}: segment id {number} is in the picture ({counts.sum()} pixels)"
            " but not in the JSON's segments_info"
        )


def _size(array: np.ndarray) -> str:
    return " x ".join(str(length) for length in array.shape[:2])


def _scores(
    segments: Sequence[Mapping[str, Any]], isthing: np.ndarray, name: str
) -> dict[str, np.ndarray]:
    """Return the modes that every segment has a score for; a missing plain score counts as 1."""
    result = {"score": _column([s.get("score", 1.0) for s in segments], segments, "score", name)}
    result["one"] = np.ones(len(segments))
    for mode in ("detection", "mean_confidence"):
        values = [(s.get("scores") or {}).get(mode) for s in segments]
        if all(value is not None for value in values):
            result[mode] = _column(values, segments, f"scores.{mode}", name)
    if "detection" in result and "mean_confidence" in result:
        result["both"] = np.where(isthing, result["detection"], result["mean_confidence"])
    return result


def _column(
    values: list[Any], segments: Sequence[Mapping[str, Any]], key: str, name: str
) -> np.ndarray:
    for value, segment in zip(values, segments, strict=True):
        number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        if not number or not math.isfinite(value):
            raise InputError(
                f"{name}: segment {segment['id']} has {key} {value!r}, expected a finite number"
            )
    return np.array(values, np.float64)
