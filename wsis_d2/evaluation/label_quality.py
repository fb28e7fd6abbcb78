# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""How good are weak labels? Compared with true masks, for a report only.

Addition, not in the paper.

Nothing here writes where training reads: true masks come in, numbers go out.
"""

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from wsis_d2.data.panoptic_format import PanopticFile, semantic_map
from wsis_d2.evaluation.image_match import ImageMatch, Matcher
from wsis_d2.evaluation.panoptic_quality import PanopticQuality
from wsis_d2.evaluation.semantic_iou import SemanticIoU
from wsis_d2.structures.classes import ClassTable
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.image_io import read_record
from wsis_d2.utils.progress import progress
from wsis_d2.weak_labels.store import LabelStore

if TYPE_CHECKING:
    from wsis_d2.weak_labels.proposals import ProposalSet, ProposalSource

#: Upper ends of object sizes in true pixels, COCO's.
SIZES = {"small": 32**2, "medium": 96**2, "large": float("inf")}
BUDGETS = (100, 250, 500, 1000, 2000, 4000, 6000)


def evaluate_store(
    store: LabelStore | str | os.PathLike,
    panoptic_json: str | os.PathLike,
    panoptic_root: str | os.PathLike,
) -> dict:
    """Compare a label store with panoptic truth, over the images that both hold.

    Args:
        store: the labels.
        panoptic_json, panoptic_root: truth in COCO panoptic format; its classes and the store's
            meet by name.

    Returns:
        In percent, NaN where nothing was to measure::

            {"images": n,
             "summary": {"mIoU", "PQ", "PQ_th", "PQ_st", "pixel_precision", "coverage", "ignored",
                         "precision", "recall", "IoU", "empty"},   # the last four: thing objects
             "classes": {name: {"precision", "recall", "IoU", "coverage", "ignored",
                                "truth_pixels"}},   # semantic map
             "objects": {name or "all": {size or "all": {"precision", "recall", "IoU", "empty",
                                                         "coverage", "ignored", "count"}}}}

        Semantic: precision among labelled pixels; recall, IoU and coverage over the true pixels
        that are not void, where an ignored pixel is a missed one. Objects: each true object (no
        crowd) against the labelled segment of its class with the highest IoU; precision is the
        mean over objects that have any, the others count as 0 in recall and IoU; ``empty`` is
        the share without any; ``coverage`` is the mean share of an object's pixels that carry a
        label of any segment, ``ignored`` the rest. Sizes are COCO's, in true pixels; "not small"
        is everything above the smallest.

    Raises:
        InputError: the classes differ, or no image is in both.
    """
    if not isinstance(store, LabelStore):
        store = LabelStore.open(store)
    classes = store.classes
    truth = PanopticFile(panoptic_json, panoptic_root).in_classes(classes)
    image_ids = [i for i in store.image_ids() if str(i) in truth.annotations]
    if not image_ids:
        raise InputError(f"{store.path}: none of its images is in {panoptic_json}")
    for image_id in image_ids:
        truth.pictures.check(image_id, store.file_name(image_id), str(store.path))
    matcher, quality = Matcher(classes), PanopticQuality(classes)
    semantic = SemanticIoU(classes)
    objects = ObjectTally(classes.names, classes.isthing)
    for image_id in progress(image_ids, desc="comparing"):
        key = str(image_id)
        ids, segments = truth.ids(key), truth.segments(key)
        labels, label_segments = store.instance(image_id)
        for segment in label_segments:
            segment["category_id"] = classes.ids[segment["category_id"]]
        match = matcher(
            ids,
            segments,
            np.maximum(labels, 0),
            label_segments,
            gt_name=str(truth.png(key)),
            pred_name=f"{store.path}: image {image_id}",
            drop_empty=True,
        )
        quality.update(match)
        objects.add(match)
        name = f"{store.path}: image {image_id}"
        true = semantic_map(ids, segments, classes)
        semantic.update_maps(true, store.semantic(image_id), name)
    return _results(semantic.confusion, quality.results(), objects, classes, len(image_ids))


class ObjectTally:
    """Precision, recall and IoU of true objects, by class and size."""

    def __init__(self, names: Sequence[str], isthing: Sequence[bool]) -> None:
        self._names = names
        self._isthing = np.asarray(isthing, bool)
        self._rows: list[tuple[int, int, float, float, float, float]] = []

    def add(self, match: ImageMatch) -> None:
        """Add the objects of one image (:class:`wsis_d2.evaluation.image_match.ImageMatch`)."""
        for row in range(len(match.gt_class)):
            class_id, area = int(match.gt_class[row]), int(match.gt_area[row])
            if match.gt_crowd[row] or not self._isthing[class_id] or not area:
                continue
            shared = match.intersection[row] * (match.pred_class == class_id)
            # Void pixels of the truth belong to no object and do not count against a label.
            own = match.pred_area - match.pred_void
            iou = shared / np.maximum(own + area - shared, 1)
            best = int(np.argmax(iou)) if iou.size else -1
            found = np.nan, 0.0, 0.0
            if best >= 0 and shared[best]:
                found = shared[best] / own[best], shared[best] / area, iou[best]
            self._rows.append((class_id, area, *found, match.gt_unpredicted[row] / area))

    def results(self) -> dict:
        """Return the table, see :func:`evaluate_store`."""
        rows = np.array(self._rows, float).reshape(-1, 6)
        table = {"all": self._sizes(rows)}
        for class_id in np.unique(rows[:, 0]).astype(int):
            table[self._names[class_id]] = self._sizes(rows[rows[:, 0] == class_id])
        return table

    @staticmethod
    def _sizes(rows: np.ndarray) -> dict:
        out, low = {"all": _object_means(rows)}, 0.0
        for name, high in SIZES.items():
            out[name] = _object_means(rows[(rows[:, 1] > low) & (rows[:, 1] <= high)])
            low = high
        out["not small"] = _object_means(rows[rows[:, 1] > SIZES["small"]])
        return out


def oracle_overlaps(
    proposals: "ProposalSet", truth: Iterable[np.ndarray], budgets: Sequence[int] = BUDGETS
) -> np.ndarray:
    """Return the best IoU that any proposal has with each true object (J_i).

    Args:
        proposals: a :class:`ProposalSet` of one image.
        truth: masks, (H, W) bool each, not empty.
        budgets: numbers of proposals, ascending, for the curve. Trees' proposals are freed from
            near-copies (IoU over 0.95) and ordered first; others are taken as they come.

    Returns:
        (objects, budgets + 1): at each budget, and with all proposals as they are.
    """
    from wsis_d2.weak_labels.proposals.deduplicate import distinct_proposals
    from wsis_d2.weak_labels.proposals.proposal_set import TreeProposals

    chosen = np.arange(len(proposals))
    if isinstance(proposals, TreeProposals):
        chosen = distinct_proposals(proposals, limit=max(budgets))
    rows = []
    for mask in truth:
        shared = proposals.mask_intersections(mask)
        iou = shared / np.maximum(proposals.areas + mask.sum() - shared, 1e-9)
        ordered = iou[chosen]
        rows.append([*(ordered[:b].max(initial=0.0) for b in budgets), iou.max(initial=0.0)])
    return np.array(rows).reshape(-1, len(budgets) + 1)


def evaluate_proposals(
    source: "ProposalSource",
    records: Sequence[dict],
    panoptic_json: str | os.PathLike,
    panoptic_root: str | os.PathLike,
    classes: ClassTable,
) -> dict:
    """Return the oracle quality J_i of a proposal source, in percent.

    Args:
        source: a :class:`wsis_d2.weak_labels.proposals.ProposalSource`.
        records: weak records; those without truth are left out.
        panoptic_json, panoptic_root: truth.
        classes: the dataset's, which the truth's meet by name.

    Returns:
        ``objects`` and ``images``, counted; ``raw``, the mean number of proposals; ``J_i``, by
        budget and for ``all``, the mean over true objects of the best IoU; ``J_i not small``, the
        same over objects above the smallest size.
    """
    truth = PanopticFile(panoptic_json, panoptic_root).in_classes(classes)
    things = {
        i for i, isthing in zip(truth.classes.ids, truth.classes.isthing, strict=True) if isthing
    }
    rows, counts, areas = [], [], []
    known = [r for r in records if str(r["image_id"]) in truth.annotations]
    for record in progress(known, desc="proposals"):
        key = str(record["image_id"])
        truth.pictures.check(key, record["file_name"], "the dataset")
        ids = truth.ids(key)
        masks = [
            ids == s["id"]
            for s in truth.segments(key)
            if s["category_id"] in things and not s.get("iscrowd", 0)
        ]
        proposals = source(read_record(record, "BGR"), record)
        if proposals is None:
            raise InputError("WEAK_LABELS.PROPOSALS.NAME none: there are no proposals to measure")
        counts.append(len(proposals))
        masks = [m for m in masks if m.any()]
        areas += [int(m.sum()) for m in masks]
        rows.append(oracle_overlaps(proposals, masks))
    if not known:
        raise InputError(f"{panoptic_json}: holds none of the dataset's images")
    table = np.concatenate(rows)
    names = [*map(str, BUDGETS), "all"]

    def curve(rows: np.ndarray) -> dict:
        return {name: _percent(rows[:, k]) for k, name in enumerate(names)}

    return {
        "images": len(known),
        "objects": len(table),
        "raw": float(np.mean(counts)),
        "J_i": curve(table),
        "J_i not small": curve(table[np.array(areas) > SIZES["small"]]),
    }


def _results(
    confusion: np.ndarray, quality: dict, objects: ObjectTally, classes: ClassTable, images: int
) -> dict:
    right = np.diag(confusion).astype(float)
    true_pixels, labelled = confusion.sum(axis=1), confusion[:, :-1].sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = right / labelled, right / true_pixels
        iou = right / (true_pixels + labelled - right)
        covered = 1 - confusion[:, -1] / true_pixels
    table = objects.results()
    total = confusion.sum()
    known = confusion[:, :-1].sum()
    over_all = table["all"]["all"]
    return {
        "images": images,
        "summary": {
            "mIoU": _percent(iou[true_pixels > 0]),
            "PQ": quality["PQ"],
            "PQ_th": quality["PQ_th"],
            "PQ_st": quality["PQ_st"],
            "pixel_precision": 100 * float(right.sum() / known) if known else float("nan"),
            "coverage": 100 * float(known / total) if total else float("nan"),
            "ignored": 100 * float(1 - known / total) if total else float("nan"),
            **{k: over_all[k] for k in ("precision", "recall", "IoU", "empty")},
        },
        "classes": {
            name: {
                "precision": 100 * float(precision[k]),
                "recall": 100 * float(recall[k]),
                "IoU": 100 * float(iou[k]),
                "coverage": 100 * float(covered[k]),
                "ignored": 100 * float(1 - covered[k]),
                "truth_pixels": int(true_pixels[k]),
            }
            for k, name in enumerate(classes.names)
        },
        "objects": table,
    }


def _object_means(rows: np.ndarray) -> dict:
    return {
        "precision": _percent(rows[:, 2]),
        "recall": _percent(rows[:, 3]),
        "IoU": _percent(rows[:, 4]),
        "empty": _percent(np.isnan(rows[:, 2]).astype(float)),
        "coverage": _percent(1 - rows[:, 5]),
        "ignored": _percent(rows[:, 5]),
        "count": len(rows),
    }


def _percent(values: np.ndarray) -> float:
    """Return the mean of the values that are numbers, in percent; NaN where there is none."""
    values = values[~np.isnan(values)]
    return 100 * float(values.mean()) if values.size else float("nan")
