# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Which metrics to compute, and their results in the layout of ``results.json``."""

from dataclasses import dataclass

from wsis_d2.evaluation.average_precision import AveragePrecision, parse_thresholds
from wsis_d2.evaluation.image_match import ImageMatch
from wsis_d2.structures.classes import ClassTable

DEFAULT_THRESHOLDS = "0.1:0.9:0.1"
# Modes that are reported beside the chosen one wherever the predictions carry their scores.
COMPARED_MODES = ("detection", "mean_confidence", "oracle")


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
