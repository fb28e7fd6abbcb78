# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""A registered dataset's panoptic truth and a model's output, brought to one table an image."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from detectron2.data import MetadataCatalog

from wsis_d2.data.panoptic_format import PanopticFile, semantic_map
from wsis_d2.evaluation.image_match import ImageMatch, Matcher
from wsis_d2.structures.classes import ClassTable
from wsis_d2.utils.errors import InputError


class PanopticTruth:
    """Truth of one dataset, opened on first use and shared by its evaluators.

    It is read in the dataset's classes, which are the model's. The last image's table is kept, so
    that several evaluators match each image once.

    Args:
        dataset_name: a registered dataset with ``panoptic_json`` and ``panoptic_root``.
    """

    def __init__(self, dataset_name: str) -> None:
        self.dataset_name = dataset_name
        self.metadata = MetadataCatalog.get(dataset_name)
        self._file: PanopticFile | None = None
        self._matcher: Matcher | None = None
        self._last: tuple[Any, str, ImageMatch, np.ndarray, list[dict[str, Any]]] | None = None
        self._last_truth: tuple[str, np.ndarray] | None = None

    @property
    def file(self) -> PanopticFile:
        """The truth's files.

        Raises:
            InputError: the dataset has no panoptic truth, or truth of other classes.
        """
        if self._file is None:
            json_file = self.metadata.get("panoptic_json", None)
            folder = self.metadata.get("panoptic_root", None)
            if not json_file or not folder:
                raise InputError(
                    f"dataset {self.dataset_name}: its metadata has no panoptic_json and"
                    " panoptic_root, so there is no truth to evaluate against; register it with"
                    " panoptic_json=... and panoptic_dir=..."
                )
            file = PanopticFile(json_file, folder)
            classes = ClassTable.of_metadata(self.metadata, f"dataset {self.dataset_name}")
            self._file = file if classes is None else file.in_classes(classes)
        return self._file

    @property
    def classes(self) -> ClassTable:
        """The dataset's classes in unified order."""
        return self.file.classes

    def key(self, record: Mapping[str, Any]) -> str:
        """Return the truth's key of a dataset record.

        Raises:
            InputError: the truth does not list the image, or under another id.
        """
        key = str(record["image_id"])
        if key not in self.file.annotations:
            raise InputError(
                f"{self.file.json_file}: no truth for image_id {key} of dataset"
                f" {self.dataset_name} ({record.get('file_name')})"
            )
        self.file.pictures.check(key, record.get("file_name"), f"dataset {self.dataset_name}")
        return key

    def match(
        self, record: Mapping[str, Any], output: Mapping[str, Any]
    ) -> tuple[ImageMatch, np.ndarray, list[dict[str, Any]]]:
        """Return an image's table, its predicted ids and segments (see
        :func:`panoptic_prediction`)."""
        key = self.key(record)
        panoptic = output["panoptic_seg"][0]
        if self._last is not None and self._last[0] is panoptic and self._last[1] == key:
            return self._last[2:]
        if self._matcher is None:
            self._matcher = Matcher(self.classes)
        ids, segments = panoptic_prediction(
            output["panoptic_seg"], self.classes, self.metadata.get("label_divisor", 1000)
        )
        match = self._matcher(
            self.ids(key), self.file.segments(key), ids, segments,
            key=self.file.position[key], gt_name=str(self.file.png(key)),
            pred_name=f"the model's panoptic_seg of {record.get('file_name')}",
        )  # fmt: skip
        self._last = (panoptic, key, match, ids, segments)
        return match, ids, segments

    def ids(self, key: str) -> np.ndarray:
        """Return the truth's segment ids of an image; the last image's are kept."""
        if self._last_truth is None or self._last_truth[0] != key:
            self._last_truth = (key, self.file.ids(key))
        return self._last_truth[1]

    def semantic(self, key: str) -> np.ndarray:
        """Return the truth as a uint8 map of unified ids (H, W), 255 = void."""
        return semantic_map(self.ids(key), self.file.segments(key), self.classes)


def panoptic_prediction(
    panoptic_seg: tuple[Any, list[Mapping[str, Any]] | None],
    classes: ClassTable,
    label_divisor: int,
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Return a model's ``panoptic_seg`` as int32 ids 1..N (0 = void) and its segments.

    Segments without pixels are dropped.

    Args:
        panoptic_seg: integer picture (H, W) and segments with unified ``category_id``; without
            segments (None) the picture encodes ``class * label_divisor + k``, -1 = void.
        classes: the dataset's classes; the returned segments carry the file's category ids.
        label_divisor: see above.

    Raises:
        InputError: a pixel's id has no segment or a class is unknown.
    """
    picture, segments = panoptic_seg
    picture = _numpy(picture)
    numbers = np.unique(picture)
    void = 0
    if segments is None:
        segments = [
            {"id": int(n), "category_id": int(n) // label_divisor} for n in numbers if n >= 0
        ]
        void = -1
    by_id = {int(segment["id"]): segment for segment in segments}
    new_ids = np.zeros(len(numbers), np.int32)
    result: list[dict[str, Any]] = []
    for position, number in enumerate(numbers.tolist()):
        segment = by_id.get(number)
        if segment is not None:
            new_ids[position] = len(result) + 1
            result.append(_file_segment(segment, len(result) + 1, classes))
        elif number != void:
            raise InputError(
                f"the model's panoptic_seg has id {number}, which no segments_info lists"
            )
    return new_ids[np.searchsorted(numbers, picture)], result


def _file_segment(segment: Mapping[str, Any], number: int, classes: ClassTable) -> dict[str, Any]:
    unified = int(segment["category_id"])
    if not 0 <= unified < len(classes):
        raise InputError(
            f"the model's segment has category_id {unified}, expected a unified class id"
            f" 0 to {len(classes) - 1}"
        )
    result: dict[str, Any] = {
        "id": number,
        "category_id": classes.ids[unified],
        "isthing": int(classes.isthing[unified]),
    }
    if segment.get("score") is not None:
        result["score"] = float(segment["score"])
    if segment.get("scores"):
        result["scores"] = {name: float(value) for name, value in segment["scores"].items()}
    return result


def _numpy(array: Any) -> np.ndarray:
    return array.cpu().numpy() if isinstance(array, torch.Tensor) else np.asarray(array)
