# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Intersection over union of classes, from label maps or from the union of segments."""

import numpy as np

from wsis_d2.evaluation.image_match import ImageMatch, joint_histogram
from wsis_d2.evaluation.panoptic_quality import mean_or_nan
from wsis_d2.structures.classes import ClassTable
from wsis_d2.utils.errors import InputError


class SemanticIoU:
    """A confusion matrix that grows image by image.

    Void pixels of the truth do not count; crowd segments count as their class. A class that
    occurs neither in truth nor in prediction has no IoU (NaN) and is left out of the mean, as in
    cityscapesscripts.

    Args:
        classes: the dataset's classes.
    """

    def __init__(self, classes: ClassTable) -> None:
        self.classes = classes
        # Rows: truth; columns: prediction, the last one is "no class predicted".
        self.confusion = np.zeros((len(classes), len(classes) + 1), np.int64)

    def update_maps(self, truth: np.ndarray, prediction: np.ndarray, name: str) -> None:
        """Add one image given as label maps.

        Args:
            truth: integer (H, W) of unified ids, 255 or more = ignore.
            prediction: integer (H, W) of unified ids, 255 = no class.
            name: the prediction, for errors.

        Raises:
            InputError: sizes differ or a predicted id is no class.
        """
        if truth.shape != prediction.shape:
            raise InputError(
                f"{name}: semantic map of size {prediction.shape}, the truth's is {truth.shape}"
            )
        count = len(self.classes)
        bad = (prediction < 0) | ((prediction >= count) & (prediction != 255))
        if bad.any():
            raise InputError(
                f"{name}: semantic id {prediction[bad][0]}, expected 0 to {count - 1} or 255"
            )
        rows = np.where((truth >= 0) & (truth < count), truth, count)
        columns = np.where(prediction < count, prediction, count)
        self.confusion += joint_histogram(rows, columns, count + 1, count + 1)[:count]

    def update_match(self, match: ImageMatch) -> None:
        """Add one image as the union of its predicted segments."""
        count = len(self.classes)
        rows = np.repeat(match.gt_class, len(match.pred_class))
        columns = np.tile(match.pred_class, len(match.gt_class))
        np.add.at(self.confusion, (rows, columns), match.intersection.ravel())
        np.add.at(self.confusion[:, count], match.gt_class, match.gt_unpredicted)

    def merge(self, other: "SemanticIoU") -> None:
        """Add what another process counted."""
        self.confusion += other.confusion

    def per_class(self) -> np.ndarray:
        """Return IoU (C,) in percent, NaN for classes that never occur."""
        count = len(self.classes)
        right = np.diagonal(self.confusion)[:count].astype(np.float64)
        union = self.confusion.sum(1) + self.confusion[:, :count].sum(0) - right
        return 100 * np.where(union > 0, right / np.maximum(union, 1), np.nan)

    def results(self, suffix: str = "") -> dict[str, float]:
        """Return ``mIoU``, its things and stuff parts, and ``IoU-<class>``, in percent.

        Args:
            suffix: put behind ``mIoU`` and ``IoU``, to tell two sources apart.
        """
        values = self.per_class()
        things = self.classes.thing_mask
        result = {
            f"mIoU{suffix}": mean_or_nan(values),
            f"mIoU{suffix}_th": mean_or_nan(values[things]),
            f"mIoU{suffix}_st": mean_or_nan(values[~things]),
        }
        for name, value in zip(self.classes.names, values, strict=True):
            result[f"IoU{suffix}-{name}"] = float(value)
        return result


class SemanticSources:
    """IoU of the two sources of a semantic map, each from the first image that has it.

    ``"sem_seg"`` is the semantic network's own output, ``"union"`` the union of the segments.

    Args:
        classes: the dataset's classes.
    """

    def __init__(self, classes: ClassTable) -> None:
        self.classes = classes
        self._parts: dict[str, SemanticIoU] = {}

    def of(self, source: str) -> SemanticIoU:
        """Return one source's sums, ``"sem_seg"`` or ``"union"``."""
        return self._parts.setdefault(source, SemanticIoU(self.classes))

    def merge(self, other: "SemanticSources") -> None:
        """Add what another process counted."""
        for source, part in other._parts.items():
            self.of(source).merge(part)

    def results(self) -> dict[str, float]:
        """Return ``mIoU`` (of ``sem_seg``, else of the union) and ``mIoU_union``, with their parts.

        A source that no image had is left out.
        """
        union = self._parts.get("union")
        main = self._parts.get("sem_seg", union)
        result = main.results() if main is not None else {}
        if union is not None:
            result.update(union.results("_union"))
        return result
