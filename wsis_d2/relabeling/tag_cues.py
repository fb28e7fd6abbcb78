# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Tags to cue labels: run a trained tag classifier's Grad-CAM (paper 3.3) over a dataset."""

import dataclasses
import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode

from wsis_d2.engine.run_classes import tell_unknown, trained_classes
from wsis_d2.modeling.grad_cam import GradCAM
from wsis_d2.modeling.meta_arch import TagClassifier
from wsis_d2.modeling.semantic.inference import in_groups
from wsis_d2.relabeling.region_cues import RegionCueLabeller
from wsis_d2.relabeling.tag_classifier import classifier_config, load_classifier
from wsis_d2.structures.annotation import AnnotatedClasses, record_crops
from wsis_d2.structures.classes import (
    ClassTable,
    in_order,
    match_classes,
    parse_categories,
    place_table,
    record_in_classes,
)
from wsis_d2.structures.labels import IGNORE
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.files import sha256_file
from wsis_d2.utils.image_io import image_tensor, read_record
from wsis_d2.weak_labels import driver
from wsis_d2.weak_labels.cam_labels import cue_labels, stitch_maps
from wsis_d2.weak_labels.driver import LabelRun
from wsis_d2.weak_labels.reliability import FILE as RELIABILITY_FILE
from wsis_d2.weak_labels.reliability import save_reliability
from wsis_d2.weak_labels.store import LabelStore
from wsis_d2.weak_labels.workers import Labels

#: Raised whenever the same classifier and keys would give other cues.
_ALGORITHM = 2


class CueLabeller:
    """Weak record to cue labels; the labelling function of the ``tags`` command.

    Args:
        classifier: in evaluation mode.
        layer: module whose activations are weighted.
        thing_ids: classes that get no cues: their masks come from boxes.
        threshold: see :func:`wsis_d2.weak_labels.cam_labels.cue_labels`.
        image_format: channel order of the classifier's input.
    """

    def __init__(
        self,
        classifier: TagClassifier,
        *,
        layer: str,
        thing_ids: frozenset[int],
        threshold: float = 0.5,
        image_format: str = "BGR",
    ) -> None:
        self.classifier = classifier
        self.cam = GradCAM(classifier, layer, classifier.logits)
        self.thing_ids = thing_ids
        self.threshold = threshold
        self.image_format = image_format

    @classmethod
    def from_config(
        cls, cfg: CfgNode, weights: str | os.PathLike, thing_ids: frozenset[int]
    ) -> "CueLabeller":
        """Build one from a classifier's config and weights."""
        return cls(
            load_classifier(cfg, weights, thing_ids),
            layer=cfg.CAM.LAYER,
            thing_ids=thing_ids,
            threshold=cfg.CAM.THRESHOLD,
            image_format=cfg.INPUT.FORMAT,
        )

    def maps(self, records: Sequence[Mapping]) -> list[dict[int, np.ndarray]]:
        """Return the stitched activation maps of the classes that each record's tags name.

        Crops of one size, of all records, run together.

        Returns:
            Class id to (H, W) float32 in [0, 1], of each record.
        """
        crops, views, classes, sizes = [], [], [], []
        for record in records:
            image = read_record(record, self.image_format)
            tensor = self.classifier.normalize(image_tensor(image))
            sizes.append(image.shape[:2])
            crops.append(record_crops(record))
            for x0, y0, x1, y1, tags in crops[-1]:
                views.append(tensor[:, y0:y1, x0:x1])
                classes.append(sorted(tags - self.thing_ids))

        def run(group: list[int]) -> list[torch.Tensor]:
            return self.cam(torch.stack([views[k] for k in group]), [classes[k] for k in group])

        named = [k for k, own in enumerate(classes) if own]
        maps = in_groups(named, lambda k: views[k].shape, run, max(1, len(named)))
        found: list[dict[int, np.ndarray]] = [{} for _ in views]
        for k, own in zip(named, maps, strict=True):
            found[k] = dict(zip(classes[k], own.numpy(), strict=True))
        parts = iter(found)
        return [
            stitch_maps(size, own, list(itertools.islice(parts, len(own))))
            for size, own in zip(sizes, crops, strict=True)
        ]

    def __call__(self, record: Mapping) -> Labels:
        """Return cue labels; there are no instances in them."""
        return self.batch([record])[0]

    def batch(self, records: Sequence[Mapping]) -> list[Labels]:
        """Return the cue labels of records whose images the classifier sees together."""
        return [self._labels(*pair) for pair in zip(records, self.maps(records), strict=True)]

    def _labels(self, record: Mapping, maps: dict[int, np.ndarray]) -> Labels:
        size = (int(record["height"]), int(record["width"]))
        cues = cue_labels(maps, size, self.threshold)
        counters = {
            "pixels": cues.size,
            "cue_pixels": int(np.count_nonzero(cues != IGNORE)),
            "tagged_classes": len(maps),
            "classes_without_cue": len(set(maps) - set(np.unique(cues).tolist())),
        }
        return Labels(cues, np.full(size, -1, np.int32), [], counters)


class ReorderedLabeller:
    """A labelling function whose classifier lists the dataset's classes in another order.

    Args:
        labeller: of the classifier, in its order.
        places: the dataset's class of each of the classifier's (:func:`match_classes`).
    """

    def __init__(self, labeller: Any, places: Sequence[int]) -> None:
        self.labeller = labeller
        self._table = place_table(places)
        self._own = [list(places).index(place) for place in range(len(places))]

    def __call__(self, record: Mapping) -> Labels:
        """Return cue labels of the dataset's classes; there are no instances in them."""
        return self.batch([record])[0]

    def batch(self, records: Sequence[Mapping]) -> list[Labels]:
        """Return the cue labels of records whose images the network sees together."""
        found = self.labeller.batch([record_in_classes(record, self._own) for record in records])
        return [dataclasses.replace(own, semantic=self._table[own.semantic]) for own in found]

    def reliability(self, records: Sequence[Mapping]) -> np.ndarray:
        """See :meth:`RegionCueLabeller.reliability`."""
        records = [record_in_classes(record, self._own) for record in records]
        return self.labeller.reliability(records)[self._own]


def build_labeller(
    cfg: CfgNode,
    weights: str | os.PathLike,
    thing_ids: frozenset[int],
    has_boxes: bool = True,
    places: Sequence[int] | None = None,
) -> CueLabeller | RegionCueLabeller | ReorderedLabeller:
    """Build the labelling function of a trained classifier or segmenter.

    Args:
        cfg: its config, with the ``CAM`` section.
        weights: its checkpoint.
        thing_ids: contiguous ids of the things.
        has_boxes: whether the dataset's boxes are complete.
        places: the dataset's class of each of the classifier's; None: they are in one order.

    Raises:
        InputError: the checkpoint does not fit, or a key that this kind cannot follow.
    """
    if places is not None:
        own = frozenset(k for k, place in enumerate(places) if place in thing_ids)
        return ReorderedLabeller(build_labeller(cfg, weights, own, has_boxes), places)
    if cfg.MODEL.META_ARCHITECTURE == "TagClassifier":
        if cfg.CAM.APPEARANCE_WEIGHT:
            raise InputError(
                f"CAM.APPEARANCE_WEIGHT is {cfg.CAM.APPEARANCE_WEIGHT}; a TagClassifier's "
                "activation maps are no distribution that it could weigh: leave it at 0"
            )
        return CueLabeller.from_config(cfg, weights, thing_ids)
    return RegionCueLabeller(
        load_classifier(cfg, weights, thing_ids),
        threshold=cfg.CAM.THRESHOLD,
        image_format=cfg.INPUT.FORMAT,
        has_boxes=has_boxes,
        appearance_weight=cfg.CAM.APPEARANCE_WEIGHT,
    )


def _make_labeller(cfg_text: str, *arguments: Any) -> Callable[[Mapping], Labels]:
    """Build the labelling function in a worker process."""
    return build_labeller(CfgNode.load_cfg(cfg_text), *arguments)


def class_places(weights: str | os.PathLike, classes: ClassTable) -> list[int] | None:
    """Return the dataset's class of each of a classifier's; None: one order, or nothing tells.

    Raises:
        InputError: they are other classes.
    """
    trained = trained_classes(os.fspath(weights))
    places = None if trained is None else match_classes(classes, trained)
    return None if places is None or in_order(places) else places


def tags_recipe(
    cfg: CfgNode, weights: str | os.PathLike, categories: list[dict], has_boxes: bool = True
) -> dict:
    """Return what cue labels depend on: the classifier's file, its classes, the CAM keys."""
    places = class_places(weights, parse_categories(categories, "the annotated data"))
    more: dict = {} if places is None else {"class_places": places}
    if not has_boxes and cfg.MODEL.META_ARCHITECTURE == "TagSegmenter":
        more["has_boxes"] = False
    digest = sha256_file(weights)
    architecture = hashlib.sha256((cfg.MODEL.dump() + cfg.INPUT.FORMAT).encode()).hexdigest()
    return {
        "kind": "tags",
        "algorithm": _ALGORITHM,
        "classifier": digest,
        "architecture": architecture,
        "layer": cfg.CAM.LAYER,
        "threshold": float(cfg.CAM.THRESHOLD),
        "appearance_weight": float(cfg.CAM.APPEARANCE_WEIGHT),
        **more,
    }


def make_tag_labels(
    cfg: CfgNode,
    records: Sequence[Mapping],
    categories: list[dict],
    output: str | os.PathLike,
    *,
    classifier: str | os.PathLike | None,
    has_boxes: bool = True,
    run: LabelRun = LabelRun(),
) -> int:
    """The ``tags`` command: a trained classifier and tags to a store of cue labels.

    Args:
        cfg: the ``CAM`` section is read, and the model where it is the classifier's own config.
        records: weak records.
        categories: the annotation file's categories.
        output: the store to write.
        classifier: the classifier's checkpoint.
        has_boxes: whether the dataset's boxes are complete.
        run: how to run; a task of ray takes a GPU where the classifier runs on one.

    Returns:
        The exit status: 0, or 1 if images failed.

    Raises:
        InputError: the classifier cannot be used or is of other classes, or no record has tags.
    """
    ordered = sorted(categories, key=lambda c: c["id"])
    thing_ids = AnnotatedClasses.of(categories).thing_ids
    if not any(record.get("image_tags") or record.get("crop_tags") for record in records):
        raise InputError(
            f"{len(records)} images and none has image_tags or crop_tags, which this command "
            "needs; labels of boxes alone: tools/make_weak_labels.py boxes"
        )
    own = classifier_config(cfg, classifier, len(ordered))
    recipe = tags_recipe(own, classifier, categories, has_boxes)
    if run.dry_run:
        driver.report_plan(records, categories, recipe, output, run)
        return 0
    if trained_classes(os.fspath(classifier)) is None:
        tell_unknown(
            "--classifier",
            os.fspath(classifier),
            parse_categories(categories, "the annotated data"),
        )
    places = recipe.get("class_places")
    # Errors now, not by image.
    labeller: Any = build_labeller(own, classifier, thing_ids, has_boxes, places)
    store = LabelStore.create(output, recipe, categories, run.force)
    on_gpu = own.MODEL.DEVICE != "cpu"
    workers = run.workers
    if workers is None and on_gpu and run.ray_address is None:
        workers = 1
    make = functools.partial(
        _make_labeller, own.dump(), os.fspath(classifier), thing_ids, has_boxes, places
    )
    reliability = store.path / RELIABILITY_FILE
    if driver.plan(records, store, run.limit):  # wherever this stops, no file tells of other labels
        reliability.unlink(missing_ok=True)
    result = driver.run(
        make, records, store, workers=workers, limit=run.limit, desc="tag cues",
        ray_address=run.ray_address, image_seconds=run.image_seconds, gpus=int(on_gpu),
        batch=cfg.TEST.IMS_PER_BATCH,
    )  # fmt: skip
    if own.MODEL.META_ARCHITECTURE == "TagSegmenter" and not reliability.is_file():
        names = [category["name"] for category in ordered]
        save_reliability(store.path, names, labeller.reliability(records[: run.limit]))
    return result.exit_status
