# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Detectron2 evaluators of panoptic models: PQ, AP^r, AP of instances and semantic IoU.

Each reads truth from the dataset's metadata (``panoptic_json``, ``panoptic_root``), keeps sums
only, gathers them across processes, and never asks for more than a model's standard output.
"""

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from wsis_d2.data.panoptic_format import (
    PREDICTION_FOLDER,
    PREDICTION_JSON,
    SEMANTIC_FOLDER,
    write_panoptic_png,
    write_png,
    write_semantic_classes,
)
from wsis_d2.evaluation.average_precision import APrByScore, APrOptions, parse_thresholds
from wsis_d2.evaluation.image_match import ImageMatch
from wsis_d2.evaluation.instance_ap import InstanceAP
from wsis_d2.evaluation.panoptic_quality import PanopticQuality
from wsis_d2.evaluation.panoptic_truth import PanopticTruth
from wsis_d2.evaluation.semantic_iou import SemanticSources
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.json_io import write_json

logger = logging.getLogger(__name__)


class _Sums(Protocol):
    """What grows with images: :class:`PanopticQuality` and its like."""

    def update(self, match: ImageMatch) -> None: ...
    def merge(self, other: Any) -> None: ...
    def results(self) -> dict[str, float]: ...


class PanopticTruthEvaluator(DatasetEvaluator):
    """What the evaluators share: the truth, which images came by, sums over them, gathering.

    A subclass names its ``task`` in the results and makes empty sums (:meth:`_empty`).

    Args:
        dataset_name: a registered dataset with panoptic truth.
        truth: shared with other evaluators of the dataset; None opens its own.
    """

    task: str

    def __init__(self, dataset_name: str, truth: PanopticTruth | None = None) -> None:
        self.truth = truth if truth is not None else PanopticTruth(dataset_name)
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._seen: list[str] = []
        self._sums: Any = None

    def _empty(self) -> _Sums:
        raise NotImplementedError

    @property
    def sums(self) -> Any:
        """This process's sums; made when first asked for, since they need the truth's classes."""
        if self._sums is None:
            self._sums = self._empty()
        return self._sums

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Add a batch of images."""
        for record, output in zip(inputs, outputs, strict=True):
            key = self.truth.key(record)
            self._seen.append(key)
            self._add(key, record, output)

    def _add(self, key: str, record: Mapping[str, Any], output: Mapping[str, Any]) -> None:
        self.sums.update(self.truth.match(record, output)[0])

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Return ``{task: {...}}`` on the main process, None elsewhere.

        Raises:
            InputError: an image was evaluated twice.
        """
        comm.synchronize()
        gathered = comm.gather((self._seen, self.sums))
        if not comm.is_main_process():
            return None
        self._check_seen([key for keys, _ in gathered for key in keys])
        total = self._empty()
        for _, sums in gathered:
            total.merge(sums)
        return OrderedDict({self.task: total.results()})

    def _check_seen(self, seen: list[str]) -> None:
        if len(set(seen)) != len(seen):
            twice = next(key for key in seen if seen.count(key) > 1)
            raise InputError(
                f"dataset {self.truth.dataset_name}: image_id {twice} was evaluated twice"
            )
        missing = len(self.truth.file) - len(seen)
        if missing:
            logger.warning(
                "%s: %d of %d images of the truth were not predicted; they do not count",
                self.truth.dataset_name, missing, len(self.truth.file),
            )  # fmt: skip


class PanopticQualityEvaluator(PanopticTruthEvaluator):
    """PQ, SQ and DQ of the ``panoptic_seg`` output; can write the prediction file.

    Args:
        dataset_name: a registered dataset with panoptic truth.
        output_folder: where ``panoptic_pred.json`` and ``panoptic_pred/*.png`` go (COCO panoptic
            with ``score`` and ``scores``); None writes nothing. All processes share it.
        variant: ``"coco"`` or ``"paper"``, see :class:`PanopticQuality`.
        truth: shared with other evaluators of the dataset.
    """

    task = "panoptic_seg"

    def __init__(
        self,
        dataset_name: str,
        output_folder: str | Path | None = None,
        *,
        variant: str = "coco",
        truth: PanopticTruth | None = None,
    ) -> None:
        self.variant = variant
        self.output_folder = Path(output_folder) if output_folder is not None else None
        super().__init__(dataset_name, truth)

    def reset(self) -> None:
        """Forget all images."""
        super().reset()
        self._annotations: list[dict[str, Any]] = []

    def _empty(self) -> PanopticQuality:
        return PanopticQuality(self.truth.classes, self.variant)

    def _add(self, key: str, record: Mapping[str, Any], output: Mapping[str, Any]) -> None:
        match, ids, segments = self.truth.match(record, output)
        self.sums.update(match)
        if self.output_folder is None:
            return
        truth = self.truth.file.annotations[key]
        name = str(Path(truth["file_name"]).with_suffix(".png"))
        write_panoptic_png(self.output_folder / PREDICTION_FOLDER / name, ids)
        for segment, area in zip(segments, match.pred_area, strict=True):
            segment["area"] = int(area)
        self._annotations.append(
            {"image_id": truth["image_id"], "file_name": name, "segments_info": segments}
        )

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """As all evaluators; writes the predictions' JSON file too."""
        results = super().evaluate()
        if self.output_folder is None:
            return results
        gathered = comm.gather(self._annotations)
        if results is not None:
            position = self.truth.file.position
            annotations = [annotation for part in gathered for annotation in part]
            annotations.sort(key=lambda annotation: position[str(annotation["image_id"])])
            path = self.output_folder / PREDICTION_JSON
            write_json(path, self._prediction_json(annotations))
            logger.info("wrote the predictions to %s", path)
        return results

    def _prediction_json(self, annotations: list[dict[str, Any]]) -> dict[str, Any]:
        predicted = {str(annotation["image_id"]) for annotation in annotations}
        images = [i for i in self.truth.file.images if str(i.get("id")) in predicted]
        return {
            "images": images,
            "annotations": annotations,
            "categories": self.truth.classes.categories,
        }


class APrEvaluator(PanopticTruthEvaluator):
    """AP^r at each threshold and AP^r_vol of the ``panoptic_seg`` output (paper 4.1).

    Args:
        dataset_name: a registered dataset with panoptic truth.
        thresholds: ``"A:B:STEP"``; None takes the metadata's ``apr_thresholds``.
        matching: ``"unique"`` or ``"paper"``.
        score_mode: which score ranks, see :class:`APrOptions`.
        truth: shared with other evaluators of the dataset.
    """

    task = "apr"

    def __init__(
        self,
        dataset_name: str,
        *,
        thresholds: str | None = None,
        matching: str = "unique",
        score_mode: str = "score",
        truth: PanopticTruth | None = None,
    ) -> None:
        super().__init__(dataset_name, truth)
        if not thresholds:
            thresholds = self.truth.metadata.get("apr_thresholds", APrOptions.thresholds)
        parse_thresholds(thresholds)  # what cannot be read is told now, not after training
        self.options = APrOptions(thresholds, matching, score_mode)

    def _empty(self) -> APrByScore:
        return APrByScore(self.truth.classes, self.options)


class InstanceAPEvaluator(PanopticTruthEvaluator):
    """AP of things in the ``panoptic_seg`` output, by COCO's or Cityscapes' protocol.

    Args:
        dataset_name: a registered dataset with panoptic truth.
        protocol: ``"coco"`` or ``"cityscapes"``, see :class:`InstanceAP`.
        truth: shared with other evaluators of the dataset.
    """

    task = "segm"

    def __init__(
        self, dataset_name: str, protocol: str = "coco", *, truth: PanopticTruth | None = None
    ) -> None:
        super().__init__(dataset_name, truth)
        self.protocol = protocol

    def _empty(self) -> InstanceAP:
        return InstanceAP(self.truth.classes, self.protocol)


class SemSegIoUEvaluator(PanopticTruthEvaluator):
    """IoU of classes, from the ``sem_seg`` output and from the union of ``panoptic_seg``.

    A model without one of the two is measured on the other alone: ``mIoU`` is that of ``sem_seg``
    where it exists, ``mIoU_union`` that of the segments; with segments only, both are theirs.

    Args:
        dataset_name: a registered dataset with panoptic truth.
        output_folder: where ``semantic_pred/*.png`` (uint8 unified ids) and ``semantic_pred.json``
            (their classes) go; None writes nothing.
        truth: shared with other evaluators of the dataset.
    """

    task = "sem_seg"

    def __init__(
        self,
        dataset_name: str,
        output_folder: str | Path | None = None,
        *,
        truth: PanopticTruth | None = None,
    ) -> None:
        super().__init__(dataset_name, truth)
        self.output_folder = Path(output_folder) if output_folder is not None else None

    def _empty(self) -> Any:
        return SemanticSources(self.truth.classes)

    def _add(self, key: str, record: Mapping[str, Any], output: Mapping[str, Any]) -> None:
        if output.get("panoptic_seg") is not None:
            self.sums.of("union").update_match(self.truth.match(record, output)[0])
        if output.get("sem_seg") is None:
            return
        labels = output["sem_seg"].argmax(0).to(torch.uint8).cpu().numpy()
        name = f"the model's sem_seg of {record.get('file_name')}"
        self.sums.of("sem_seg").update_maps(self.truth.semantic(key), labels, name)
        if self.output_folder is not None:
            png = Path(self.truth.file.annotations[key]["file_name"]).with_suffix(".png")
            write_png(self.output_folder / SEMANTIC_FOLDER / png, labels)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """As all evaluators; writes the file of the maps' classes too."""
        results = super().evaluate()
        if results is not None and self.output_folder is not None:
            named = (entry["file_name"] for entry in self.truth.file.annotations.values())
            pngs = [Path(name).with_suffix(".png").as_posix() for name in named]
            write_semantic_classes(
                self.output_folder / SEMANTIC_FOLDER, self.truth.classes, sorted(pngs)
            )
        return results
