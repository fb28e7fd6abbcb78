# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""A prediction to the cleaned labels of a weak record: predict, refine, clean (paper 3.4)."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from wsis_d2.relabeling.prediction_model import predict_semantics
from wsis_d2.structures.annotation import AnnotatedClasses
from wsis_d2.structures.labels import IGNORE
from wsis_d2.utils.image_io import read_record
from wsis_d2.weak_labels.clean import CleanOptions
from wsis_d2.weak_labels.merge import clean_record, record_possible_classes
from wsis_d2.weak_labels.refine import RefineOptions, labels_from_probabilities
from wsis_d2.weak_labels.workers import Labels


class Relabeller:
    """Weak record to cleaned labels of a model's prediction; a labelling function of the driver.

    Args:
        model: gives ``sem_seg`` (C, H, W) probabilities in evaluation mode.
        mapper: record to test sample.
        annotation: the dataset's classes.
        clean, refine: options of both steps.
        masks: weak record to the map of its box masks, (H, W) uint8; None: no merge.
        image_format: channel order in which images are read.
        factors: of the class probabilities, (C,) float32, from earlier labels; None: none.
    """

    def __init__(
        self,
        model: nn.Module,
        mapper: Callable[[dict], dict],
        annotation: AnnotatedClasses,
        clean: CleanOptions,
        refine: RefineOptions,
        masks: Callable[[Mapping], np.ndarray] | None,
        image_format: str = "BGR",
        factors: np.ndarray | None = None,
    ) -> None:
        self.model = model
        self.mapper = mapper
        self.annotation = annotation
        self.clean = clean
        self.refine = refine
        self.masks = masks
        self.image_format = image_format
        self.factors = factors

    def __call__(self, record: Mapping) -> Labels:
        """Return the labels of one record; the model's mode is left as it was."""
        return self.batch([record])[0]

    @torch.no_grad()
    def batch(self, records: Sequence[Mapping]) -> list[Labels]:
        """Return the labels of records whose images the model sees together."""
        samples = [self.mapper(dict(record)) for record in records]
        was_training = self.model.training
        self.model.eval()
        try:
            found = predict_semantics(self.model, samples)
        finally:
            self.model.train(was_training)
        return [self._labels(*pair) for pair in zip(records, found, strict=True)]

    def _labels(self, record: Mapping, predicted: torch.Tensor) -> Labels:
        image = read_record(record, self.image_format)
        possible = None
        if self.refine.within_annotation:
            possible = record_possible_classes(
                record, image.shape[:2], len(predicted), self.annotation, self.clean
            )
        labels, scores = labels_from_probabilities(
            predicted, image, self.refine, possible, self.factors
        )
        masks = self.masks(record) if self.masks is not None else None
        result = clean_record(record, labels, self.annotation, self.clean, scores, masks)
        ignored = result.semantic == IGNORE
        counters = {
            "pixels": int(ignored.size),
            "ignored_pixels": int(np.count_nonzero(ignored)),
            "instances": len(result.segments),
        }
        before = labels
        for name, after in result.stages.items():
            counters[f"changed_by_{name}"] = int(np.count_nonzero(before != after))
            before = after
        return Labels(result.semantic, result.instance, result.segments, counters)
