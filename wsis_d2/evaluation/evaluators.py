# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Detectron2 evaluators of panoptic models: PQ, AP^r, AP of instances and semantic IoU.

Each reads truth from the dataset's metadata (``panoptic_json``, ``panoptic_root``), keeps sums
only, gathers them across processes, and never asks for more than a model's standard output.
"""

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from wsis_d2.data.panoptic_format import (
    PREDICTION_FOLDER,
    PREDICTION_JSON,
    SEMANTIC_FOLDER,
    write_json,
    write_panoptic_png,
    write_png,
    write_semantic_classes,
)
from wsis_d2.evaluation.instance_ap import InstanceAP
from wsis_d2.evaluation.metrics import APrByScore, APrOptions
from wsis_d2.evaluation.panoptic_quality import PanopticQuality
from wsis_d2.evaluation.panoptic_truth import PanopticTruth
from wsis_d2.evaluation.semantic_iou import SemanticIoU, semantic_results
from wsis_d2.utils.errors import InputError

logger = logging.getLogger(__name__)


class PanopticTruthEvaluator(DatasetEvaluator):
    """What the evaluators share: the truth, which images came by, gathering.

    Args:
        dataset_name: a registered dataset with panoptic truth.
        truth: shared with other evaluators of the dataset; None opens its own.
    """

    def __init__(self, dataset_name: str, truth: PanopticTruth | None = None) -> None:
        self.truth = truth if truth is not None else PanopticTruth(dataset_name)
        self._seen: list[str] = []

    def reset(self) -> None:
        """Forget all images."""
        self._seen = []

    def _see(self, record: Mapping[str, Any]) -> str:
        key = self.truth.key(record)
        self._seen.append(key)
        return key

    def _gather(self, state: Any) -> list[Any] | None:
        """Return every process's state on the main process, None elsewhere.

        Raises:
            InputError: an image was evaluated twice.
        """
        comm.synchronize()
        gathered = comm.gather((self._seen, state))
        if not comm.is_main_process():
            return None
        seen = [key for keys, _ in gathered for key in keys]
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
        return [state for _, state in gathered]


class PanopticQualityEvaluator(PanopticTruthEvaluator):
    """PQ, SQ and DQ of the ``panoptic_seg`` output; can write the prediction file.

    Args:
        dataset_name: a registered dataset with panoptic truth.
        output_folder: where ``panoptic_pred.json`` and ``panoptic_pred/*.png`` go (COCO panoptic
            with ``score`` and ``scores``); None writes nothing. All processes share it.
        variant: ``"coco"`` or ``"paper"``, see :class:`PanopticQuality`.
        truth: shared with other evaluators of the dataset.
    """

    def __init__(
        self,
        dataset_name: str,
        output_folder: str | Path | None = None,
        *,
        variant: str = "coco",
        truth: PanopticTruth | None = None,
    ) -> None:
        super().__init__(dataset_name, truth)
        self.variant = variant
        self.output_folder = Path(output_folder) if output_folder is not None else None
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        super().reset()
        self._quality: PanopticQuality | None = None
        self._annotations: list[dict[str, Any]] = []

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Add a batch of images."""
        for record, output in zip(inputs, outputs, strict=True):
            key = self._see(record)
            match, ids, segments = self.truth.match(record, output)
            self._ensure().update(match)
            if self.output_folder is not None:
                name = self.truth.file.annotations[key]["file_name"]
                name = str(Path(name).with_suffix(".png"))
                write_panoptic_png(self.output_folder / PREDICTION_FOLDER / name, ids)
                for segment, area in zip(segments, match.pred_area, strict=True):
                    segment["area"] = int(area)
                image_id = self.truth.file.annotations[key]["image_id"]
                self._annotations.append(
                    {"image_id": image_id, "file_name": name, "segments_info": segments}
                )

    def _ensure(self) -> PanopticQuality:
        if self._quality is None:
            self._quality = PanopticQuality(self.truth.classes, self.variant)
        return self._quality

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Return ``{"panoptic_seg": {...}}`` on the main process."""
        states = self._gather((self._ensure(), self._annotations))
        if states is None:
            return None
        quality = PanopticQuality(self.truth.classes, self.variant)
        for state, _ in states:
            quality.merge(state)
        if self.output_folder is not None:
            position = self.truth.file.position
            annotations = [annotation for _, part in states for annotation in part]
            annotations.sort(key=lambda annotation: position[str(annotation["image_id"])])
            path = self.output_folder / PREDICTION_JSON
            write_json(path, self._prediction_json(annotations))
            logger.info("wrote the predictions to %s", path)
        return OrderedDict(panoptic_seg=quality.results())

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
        self.options = APrOptions(thresholds, matching, score_mode)
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        super().reset()
        self._precision: APrByScore | None = None

    def _ensure(self) -> APrByScore:
        if self._precision is None:
            self._precision = APrByScore(self.truth.classes, self.options)
        return self._precision

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Add a batch of images."""
        for record, output in zip(inputs, outputs, strict=True):
            self._see(record)
            self._ensure().update(self.truth.match(record, output)[0])

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Return ``{"apr": {...}}`` on the main process."""
        states = self._gather(self._ensure())
        if states is None:
            return None
        total = APrByScore(self.truth.classes, self.options)
        for state in states:
            total.merge(state)
        return OrderedDict(apr=total.results())


class InstanceAPEvaluator(PanopticTruthEvaluator):
    """AP of things in the ``panoptic_seg`` output, by COCO's or Cityscapes' protocol.

    Args:
        dataset_name: a registered dataset with panoptic truth.
        protocol: ``"coco"`` or ``"cityscapes"``, see :class:`InstanceAP`.
        truth: shared with other evaluators of the dataset.
    """

    def __init__(
        self, dataset_name: str, protocol: str = "coco", *, truth: PanopticTruth | None = None
    ) -> None:
        super().__init__(dataset_name, truth)
        self.protocol = protocol
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        super().reset()
        self._precision: InstanceAP | None = None

    def _ensure(self) -> InstanceAP:
        if self._precision is None:
            self._precision = InstanceAP(self.truth.classes, self.protocol)
        return self._precision

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Add a batch of images."""
        for record, output in zip(inputs, outputs, strict=True):
            self._see(record)
            self._ensure().update(self.truth.match(record, output)[0])

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Return ``{"segm": {...}}`` on the main process."""
        states = self._gather(self._ensure())
        if states is None:
            return None
        total = InstanceAP(self.truth.classes, self.protocol)
        for state in states:
            total.merge(state)
        return OrderedDict(segm=total.results())


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

    def __init__(
        self,
        dataset_name: str,
        output_folder: str | Path | None = None,
        *,
        truth: PanopticTruth | None = None,
    ) -> None:
        super().__init__(dataset_name, truth)
        self.output_folder = Path(output_folder) if output_folder is not None else None
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        super().reset()
        self._state: dict[str, SemanticIoU] = {}

    def _ensure(self, source: str) -> SemanticIoU:
        if source not in self._state:
            self._state[source] = SemanticIoU(self.truth.classes)
        return self._state[source]

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Add a batch of images."""
        for record, output in zip(inputs, outputs, strict=True):
            key = self._see(record)
            if output.get("panoptic_seg") is not None:
                self._ensure("union").update_match(self.truth.match(record, output)[0])
            if output.get("sem_seg") is None:
                continue
            labels = output["sem_seg"].argmax(0).to(torch.uint8).cpu().numpy()
            name = f"the model's sem_seg of {record.get('file_name')}"
            self._ensure("sem_seg").update_maps(self.truth.semantic(key), labels, name)
            if self.output_folder is not None:
                png = Path(self.truth.file.annotations[key]["file_name"]).with_suffix(".png")
                write_png(self.output_folder / SEMANTIC_FOLDER / png, labels)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Return ``{"sem_seg": {...}}`` on the main process."""
        states = self._gather(self._state)
        if states is None:
            return None
        if self.output_folder is not None:
            write_semantic_classes(self.output_folder / SEMANTIC_FOLDER, self.truth.classes)
        total: dict[str, SemanticIoU] = {}
        for state in states:
            for source, part in state.items():
                total.setdefault(source, SemanticIoU(self.truth.classes)).merge(part)
        return OrderedDict(sem_seg=semantic_results(total.get("sem_seg"), total.get("union")))
