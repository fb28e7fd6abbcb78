# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Average precision of a multi-label classifier, per class and in the mean.

Addition, not in the paper.
"""

import itertools
import logging
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

logger = logging.getLogger(__name__)


def ranking_average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Return the average precision of a ranking: the mean, over positives, of the precision there.

    Equal scores form one step, so the order of the samples does not matter.

    Args:
        scores: (N,) float, higher is more likely.
        positive: (N,) bool.

    Returns:
        A share in [0, 1]; NaN without positives.
    """
    total = int(positive.sum())
    if total == 0:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ranked, scores = positive[order], scores[order]
    last_of_step = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    hits = np.cumsum(ranked)[last_of_step]
    precision = hits / (last_of_step + 1)
    gained = np.diff(np.append(0, hits))
    return float((precision * gained).sum() / total)


class TagEvaluator(DatasetEvaluator):
    """Per-class average precision and mAP, over crops where there are crop tags, else images.

    Results: ``{"tags": {"mAP", "AP-<class>" ..., "classes", "samples"}}``, in percent; a class
    without positives is NaN and left out of the mean. Targets below 0 (unknown) do not count.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        """
        Args:
            class_names: by contiguous id.
        """
        self._names = list(class_names)
        self.reset()

    def reset(self) -> None:
        """Forget everything seen."""
        self._scores: list[np.ndarray] = []
        self._targets: list[np.ndarray] = []

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict]) -> None:
        """Take a batch: samples of the tag mapper in test mode, and the classifier's output."""
        for sample, output in zip(inputs, outputs, strict=True):
            if "crop_targets" in sample:
                scores, targets = output["crop_tags"], sample["crop_targets"]
            else:
                scores, targets = output["tags"][None], sample["tags"][None]
            self._scores.append(scores.cpu().numpy())
            self._targets.append(targets.cpu().numpy())

    def evaluate(self) -> OrderedDict | None:
        """Return the results on the main process, None on the others."""
        comm.synchronize()
        scores = list(itertools.chain(*comm.gather(self._scores)))
        targets = list(itertools.chain(*comm.gather(self._targets)))
        if not comm.is_main_process():
            return None
        count = len(self._names)
        score = np.concatenate(scores) if scores else np.zeros((0, count))
        target = np.concatenate(targets) if targets else np.zeros((0, count))
        precisions = []
        for k in range(count):
            known = target[:, k] >= 0
            precisions.append(ranking_average_precision(score[known, k], target[known, k] > 0))
        valid = [p for p in precisions if not np.isnan(p)]
        results = {"mAP": 100 * float(np.mean(valid)) if valid else float("nan")}
        for name, precision in zip(self._names, precisions, strict=True):
            results[f"AP-{name}"] = 100 * precision
        results["classes"] = len(valid)
        results["samples"] = len(score)
        logger.info(
            "tags: mAP %.2f over %d classes, %d samples; %s",
            results["mAP"],
            len(valid),
            len(score),
            ", ".join(f"{n} {100 * p:.1f}" for n, p in zip(self._names, precisions, strict=True)),
        )
        return OrderedDict({"tags": results})
