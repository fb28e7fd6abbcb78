# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""All metrics from files alone: any model's COCO panoptic predictions against panoptic truth."""

import concurrent.futures
import logging
import multiprocessing
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from wsis_d2.data.panoptic_format import (
    PanopticFile,
    semantic_map,
    semantic_table,
)
from wsis_d2.evaluation.average_precision import MATCHINGS, APrByScore, APrOptions, parse_thresholds
from wsis_d2.evaluation.image_match import RANKING_SCORES, Matcher
from wsis_d2.evaluation.instance_ap import PROTOCOLS, InstanceAP
from wsis_d2.evaluation.panoptic_quality import PQ_VARIANTS, PanopticQuality
from wsis_d2.evaluation.semantic_iou import SemanticSources
from wsis_d2.structures.segments import picture_ids
from wsis_d2.utils.errors import InputError, check_choice
from wsis_d2.utils.image_io import read_label_png
from wsis_d2.utils.processes import end_with_parent, usable_cores
from wsis_d2.utils.progress import progress

logger = logging.getLogger(__name__)
_CHUNK = 16


@dataclass(frozen=True)
class FileOptions:
    """What to compute from files.

    Attributes:
        pq: ``"coco"`` or ``"paper"``.
        apr: options of AP^r.
        instance_ap: ``"coco"``, ``"cityscapes"`` or ``"none"``.
        semantic_folder: folder of uint8 PNGs of unified ids, named like the truth's PNGs, the
            semantic network's own output; classes meet by name where FOLDER.json beside it has
            ``categories``. None measures the union of segments alone.
        allow_missing: count an image without prediction as wholly missed instead of refusing.
        workers: processes; 0 takes all usable cores, up to 8.
    """

    pq: str = "coco"
    apr: APrOptions = field(default_factory=APrOptions)
    instance_ap: str = "coco"
    semantic_folder: Path | None = None
    allow_missing: bool = False
    workers: int = 0

    def check(self) -> None:
        """Refuse what no metric knows.

        Raises:
            InputError: naming the option and its choices.
        """
        parse_thresholds(self.apr.thresholds)
        for name, value, choices in (
            ("PQ", self.pq, PQ_VARIANTS),
            ("matching", self.apr.matching, MATCHINGS),
            ("score mode", self.apr.score_mode, RANKING_SCORES),
            ("instance AP", self.instance_ap, (*PROTOCOLS, "none")),
        ):
            check_choice(name, value, choices)


class _Sums:
    """Everything that grows with images; made empty, updated, merged."""

    def __init__(self, truth: PanopticFile, options: FileOptions) -> None:
        classes = truth.classes
        self.quality = PanopticQuality(classes, options.pq)
        self.precision = APrByScore(classes, options.apr)
        self.semantic = SemanticSources(classes)
        for source in ("union", *(["sem_seg"] if options.semantic_folder else [])):
            self.semantic.of(source)  # also of a truth without images
        self.instances = None
        if options.instance_ap != "none":
            self.instances = InstanceAP(classes, options.instance_ap)

    def merge(self, other: "_Sums") -> None:
        for name, part in vars(self).items():
            if part is not None:
                part.merge(getattr(other, name))

    def results(self) -> dict[str, dict[str, float]]:
        result = {
            "panoptic_seg": self.quality.results(),
            "apr": self.precision.results(),
            "sem_seg": self.semantic.results(),
        }
        if self.instances is not None:
            result["segm"] = self.instances.results()
        return result


class _Worker:
    """Evaluates lists of images; one a process."""

    def __init__(self, truth: PanopticFile, prediction: PanopticFile, options: FileOptions):
        self.truth, self.prediction, self.options = truth, prediction, options
        self.matcher = Matcher(truth.classes)
        if options.semantic_folder is not None:
            self.semantic_table = semantic_table(options.semantic_folder, truth.classes)

    def __call__(self, keys: Sequence[str]) -> _Sums:
        sums = _Sums(self.truth, self.options)
        for key in keys:
            self.add(sums, key)
        return sums

    def add(self, sums: _Sums, key: str) -> None:
        """Add one image to ``sums``."""
        truth, prediction = self.truth, self.prediction
        gt_picture, gt_segments = truth.picture(key), truth.segments(key)
        if key in prediction.annotations:
            pred_picture, pred_segments = prediction.picture(key), prediction.segments(key)
            name = str(prediction.png(key))
        else:
            pred_picture, pred_segments, name = np.zeros_like(gt_picture), [], f"image_id {key}"
        match = self.matcher(
            gt_picture, gt_segments, pred_picture, pred_segments,
            key=truth.position[key], gt_name=str(truth.png(key)), pred_name=name,
        )  # fmt: skip
        sums.quality.update(match)
        sums.precision.update(match)
        sums.semantic.of("union").update_match(match)
        if sums.instances is not None:
            sums.instances.update(match)
        if self.options.semantic_folder is not None:
            png = PurePosixPath(truth.annotations[key]["file_name"]).with_suffix(".png")
            path = self.options.semantic_folder / png
            labels = semantic_map(picture_ids(gt_picture), gt_segments, truth.classes)
            predicted = self.semantic_table[read_label_png(path)]
            sums.semantic.of("sem_seg").update_maps(labels, predicted, str(path))


_worker: _Worker | None = None


def _start_worker(truth: PanopticFile, prediction: PanopticFile, options: FileOptions) -> None:
    global _worker
    end_with_parent()
    _worker = _Worker(truth, prediction, options)


def _run_worker(keys: Sequence[str]) -> _Sums:
    assert _worker is not None
    return _worker(keys)


def usable_workers(asked: int, chunks: int) -> int:
    """Return how many processes to use: as asked, or the usable cores up to 8; one a chunk."""
    if asked < 0:
        raise InputError(f"workers {asked}, expected 0 (all cores) or more")
    return max(1, min(asked or min(usable_cores(), 8), chunks))


def evaluate_files(
    pred_json: str | Path,
    pred_dir: str | Path,
    gt_json: str | Path,
    gt_dir: str | Path,
    options: FileOptions | None = None,
) -> dict[str, dict[str, float]]:
    """Return ``{"panoptic_seg", "apr", "sem_seg", "segm"}`` of a prediction file, in percent.

    Images stream through; what stays in memory is a few numbers a segment.

    Args:
        pred_json, pred_dir: COCO panoptic predictions; segments may carry ``score`` and
            ``scores: {detection, mean_confidence}``; a missing ``score`` counts as 1. The file's
            ``categories`` meet those of the truth by name; without any, ids are the truth's.
        gt_json, gt_dir: COCO panoptic truth.
        options: see :class:`FileOptions`.

    Raises:
        InputError: a file is missing, truncated, of another kind, or the two do not fit.
    """
    options = options or FileOptions()
    options.check()
    truth = PanopticFile(gt_json, gt_dir)
    prediction = PanopticFile(pred_json, pred_dir, truth.classes).in_classes(truth.classes)
    _check_images(truth, prediction, options.allow_missing)
    keys = list(truth)
    chunks = [keys[i : i + _CHUNK] for i in range(0, len(keys), _CHUNK)]
    total = _Sums(truth, options)
    workers = usable_workers(options.workers, len(chunks))
    if workers == 1:
        worker = _Worker(truth, prediction, options)
        for key in progress(keys, desc="evaluating"):
            worker.add(total, key)
        return total.results()
    # Forked workers share the parsed JSON; the pool ends with the block, whatever happens.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context(method), _start_worker, (truth, prediction, options)
    )
    try:
        results = pool.map(_run_worker, chunks)
        for sums in progress(results, total=len(chunks), desc="evaluating", unit="chunk"):
            total.merge(sums)
    except BrokenProcessPool:
        raise InputError(
            "a process that evaluated has died, usually for lack of memory; use fewer --workers"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return total.results()


def _check_images(truth: PanopticFile, prediction: PanopticFile, allow_missing: bool) -> None:
    unknown = [key for key in prediction if key not in truth.annotations]
    if unknown:
        raise InputError(
            f"{prediction.json_file}: image_id {unknown[0]} ({len(unknown)} in all) is not in"
            f" {truth.json_file}"
        )
    for image in prediction.images:
        if isinstance(image, dict) and str(image.get("id")) in truth.annotations:
            truth.pictures.check(image["id"], image.get("file_name"), str(prediction.json_file))
    missing = [key for key in truth if key not in prediction.annotations]
    if missing and not allow_missing:
        raise InputError(
            f"{prediction.json_file}: no prediction for image_id {missing[0]} ({len(missing)} of"
            f" {len(truth)} missing); --allow-missing counts such images as missed"
        )
    if missing:
        logger.warning("%d images have no prediction and count as missed", len(missing))
    unscored = sum("score" not in s for key in prediction for s in prediction.segments(key))
    if unscored:
        logger.warning(
            "%s: %d segments have no 'score', it counts as 1", prediction.json_file, unscored
        )
