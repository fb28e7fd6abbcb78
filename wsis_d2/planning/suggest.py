# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Which weak images to annotate fully next: those whose masks are least known.

Addition, not in the paper.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wsis_d2.structures.annotation import touched_boxes, unboxed_classes
from wsis_d2.structures.labels import IGNORE


@dataclass(frozen=True)
class ImageGain:
    """What full masks of one image would tell, in objects' worth.

    Attributes:
        image_id, file_name: the image.
        objects: class id to the sum over its objects of how little is known of each, 0 to 1.
        count: class id to the number of objects.
        rest: the same of everything outside boxes, as one object.
        ignored, disagreement, uncertainty: means over the objects, 0 to 1; None: not to be told.
        refused: a person has refused the labels.
    """

    image_id: int | str
    file_name: str
    objects: dict[int, float]
    count: dict[int, int]
    rest: float
    ignored: float | None
    disagreement: float | None
    uncertainty: float | None
    refused: bool = False


def image_gain(
    record: Mapping,
    labels: np.ndarray,
    predicted: np.ndarray | None = None,
    confidence: np.ndarray | None = None,
    refused: bool = False,
) -> ImageGain:
    """Measure one image.

    An object counts with the mean of what can be told of: the share of its box that is ignored; 1
    minus the IoU, among the labelled pixels of the box, of its class in the labels and in the
    prediction; 1 minus the mean confidence of the prediction in the box. The rest counts with the
    ignored share of what lies outside all boxes, and the share of what is labelled there that is
    predicted otherwise.

    Args:
        record: the weak record; boxes of groups do not count.
        labels: (H, W) uint8, the pseudo labels, 255 = ignore.
        predicted: (H, W) uint8, a network's classes, 255 = none; None: there is no prediction.
        confidence: (H, W) float, 0 to 1, of the predicted segment of each pixel; or None.
        refused: see :class:`ImageGain`.
    """
    height, width = labels.shape
    known = labels != IGNORE
    outside = np.ones(labels.shape, bool)
    objects: dict[int, float] = {}
    count: dict[int, int] = {}
    told: dict[str, list[float]] = {"ignored": [], "disagreement": [], "uncertainty": []}
    boxes = [(b.class_id, b) for b in touched_boxes(record) if not b.is_group]
    for class_id, box in [*boxes, *((c, None) for c in unboxed_classes(record))]:
        window = (slice(0, height), slice(0, width))
        if box is not None:
            window = slice(max(box.y0, 0), box.y1 + 1), slice(max(box.x0, 0), box.x1 + 1)
            outside[window] = False
        if not labels[window].size:
            continue
        parts = {"ignored": float(np.mean(~known[window]))}
        if predicted is not None:
            parts["disagreement"] = _disagreement(labels[window], predicted[window], class_id)
        if confidence is not None:
            parts["uncertainty"] = 1 - float(np.clip(confidence[window], 0, 1).mean())
        for name, value in parts.items():
            told[name].append(value)
        objects[class_id] = objects.get(class_id, 0.0) + float(np.mean(list(parts.values())))
        count[class_id] = count.get(class_id, 0) + 1
    mean = {name: float(np.mean(values)) if values else None for name, values in told.items()}
    return ImageGain(
        record["image_id"], str(record["file_name"]), objects, count,
        _rest(labels, predicted, outside), mean["ignored"], mean["disagreement"],
        mean["uncertainty"], refused,
    )  # fmt: skip


def _disagreement(labels: np.ndarray, predicted: np.ndarray, class_id: int) -> float:
    known = labels != IGNORE
    own, other = (labels == class_id) & known, (predicted == class_id) & known
    union = np.count_nonzero(own | other)
    return 1.0 - np.count_nonzero(own & other) / union if union else 1.0


def _rest(labels: np.ndarray, predicted: np.ndarray | None, outside: np.ndarray) -> float:
    if not outside.any():
        return 0.0
    here = labels[outside]
    known = here != IGNORE
    parts = [float(np.mean(~known))]
    if predicted is not None and known.any():
        parts.append(float(np.mean(predicted[outside][known] != here[known])))
    return float(np.mean(parts)) * float(outside.mean())


def suggest(
    gains: Sequence[ImageGain], count: int, first: Collection[int | str] = ()
) -> list[tuple[ImageGain, float]]:
    """Choose images one after the other, each the one with the highest gain so far.

    The objects of a class count less the more of it is chosen already, by 1 / sqrt(1 + objects),
    which keeps classes in balance; so does the rest, by the number of images.

    Args:
        gains: the candidates.
        count: how many to choose.
        first: images that come first, such as those a person marked.

    Returns:
        The chosen ones in order, each with its gain at that moment.
    """
    classes = sorted({c for g in gains for c in g.objects})
    values = np.array([[g.objects.get(c, 0.0) for c in classes] + [g.rest] for g in gains])
    counts = np.array([[g.count.get(c, 0) for c in classes] + [1] for g in gains])
    values = values.reshape(len(gains), len(classes) + 1)
    marked = np.array([g.image_id in first for g in gains], bool)
    left = np.ones(len(gains), bool)
    chosen = np.zeros(len(classes) + 1)
    result = []
    for _ in range(min(count, len(gains))):
        gain = values @ (1 / np.sqrt(1 + chosen))
        candidates = left & marked if (left & marked).any() else left
        best = int(np.argmax(np.where(candidates, gain, -1.0)))
        left[best] = False
        chosen += counts[best]
        result.append((gains[best], float(gain[best])))
    return result
