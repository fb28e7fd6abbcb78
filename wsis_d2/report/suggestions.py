# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Images to annotate next, from a label store and predictions: what is measured, and the page.

Addition, not in the paper.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsis_d2.data.panoptic_format import PanopticFile
from wsis_d2.planning.suggest import ImageGain, image_gain
from wsis_d2.report.html import write_report
from wsis_d2.report.sources import (
    DataSource,
    annotation_layer,
    class_names,
    image_name,
    segments_layer,
    store_layer,
)
from wsis_d2.structures.labels import IGNORE
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.image_io import read_record
from wsis_d2.utils.progress import progress
from wsis_d2.visualization.layers import LabelLayer
from wsis_d2.weak_labels.store import LabelStore

logger = logging.getLogger(__name__)


class Predictions:
    """A network's output on the weak images, by image.

    Args:
        file: COCO panoptic predictions, ``score`` a segment, in the dataset's classes.
        data: the images. Pictures are met by name where the file has names (``tools/demo.py``
            numbers its own), else by id.
    """

    def __init__(self, file: PanopticFile, data: DataSource) -> None:
        self._file = file
        self._unified = {c["id"]: k for k, c in enumerate(data.classes)}
        self._named = {str(i["id"]) for i in file.images if isinstance(i.get("file_name"), str)}

    def _key(self, record: Mapping) -> str | None:
        """Return the file's key of an image, None where it is missing."""
        named = self._file.pictures.ids(str(record["file_name"]))
        key = next(iter(named)) if len(named) == 1 else str(record["image_id"])
        other = key not in named and key in self._named
        return None if other or key not in self._file.annotations else key

    def check(self, records: Sequence[Mapping]) -> None:
        """Tell how many images have no prediction.

        Raises:
            InputError: none has one.
        """
        missing = sum(self._key(record) is None for record in records)
        if records and missing == len(records):
            raise InputError(f"{self._file.json_file}: holds predictions of none of the images")
        if missing:
            logger.warning(
                "%s: lacks %d of the %d images, which their labels alone rank",
                self._file.json_file, missing, len(records),
            )  # fmt: skip

    def __call__(self, record: Mapping) -> tuple[LabelLayer | None, np.ndarray | None]:
        """Return the labels and (H, W) float32 confidence of an image; None where it is missing."""
        key = self._key(record)
        if key is None:
            return None, None
        ids, segments = self._file.ids(key), self._file.segments(key)
        if ids.shape != (record["height"], record["width"]):
            raise InputError(
                f"{self._file.png(key)}: has {ids.shape[1]} x {ids.shape[0]} pixels, the image "
                f"{record['file_name']} {record['width']} x {record['height']}"
            )
        layer = segments_layer(ids, segments, self._unified)
        if any(s.get("score") is None for s in segments):
            return layer, None
        confidence = np.zeros(ids.shape, np.float32)
        for segment in segments:
            confidence[ids == segment["id"]] = segment["score"]
        return layer, confidence


def measure(
    records: Sequence[Mapping], store: LabelStore, predictions: Predictions | None
) -> Iterator[ImageGain]:
    """Yield what full masks of each image would tell (:func:`image_gain`)."""
    for record in progress(records, desc="images"):
        image_id = record["image_id"]
        store.check(record)
        layer, confidence = predictions(record) if predictions else (None, None)
        predicted = None if layer is None else layer.semantic
        refused = bool(store.counters(image_id).get("refused"))
        yield image_gain(record, store.semantic(image_id), predicted, confidence, refused)


def suggestion_report(
    output: str | Path,
    data: DataSource,
    store: LabelStore,
    chosen: Sequence[tuple[ImageGain, float]],
    predictions: Predictions | None,
) -> Path:
    """Write a page with the chosen images in their order: labels, prediction, and why."""
    records = {r["image_id"]: r for r in data.records}

    def items() -> Iterator[dict[str, Any]]:
        for rank, (found, gain) in enumerate(chosen, start=1):
            record = records[found.image_id]
            labels = store_layer(store, found.image_id)
            layers = {
                "image": read_record(record),
                "annotation": annotation_layer(record),
                "pseudo label": labels,
            }
            if predictions is not None:
                layers["prediction"] = predictions(record)[0]
            yield {
                "name": f"{rank}. {image_name(record)}",
                "layers": layers,
                "scores": {"gain": gain, "ignored": found.ignored,
                           "disagreement": found.disagreement, "uncertainty": found.uncertainty},
                "classes": class_names(labels, record, data.classes),
                "caption": "refused in the review" if found.refused else "",
            }  # fmt: skip

    ignored = [float(np.mean(store.semantic(f.image_id) == IGNORE)) for f, _ in chosen]
    rows = [["images", len(chosen)], ["ignored % of their pixels", 100 * float(np.mean(ignored))]]
    for place, entry in enumerate(data.classes):
        objects = sum(f.count.get(place, 0) for f, _ in chosen)
        if objects:
            rows.append([f"objects: {entry['name']}", objects])
    return write_report(
        output,
        "Images to annotate fully next",
        items(),
        classes=data.classes,
        subtitle=f"{len(chosen)} of {len(data.records)} images of {Path(data.name).name}, the one "
        "whose masks tell most first.",
        tables=[{"title": "Chosen", "columns": ["", "number"], "rows": rows}] if chosen else [],
    )
