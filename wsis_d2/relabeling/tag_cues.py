# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Tags to cue labels: run a trained tag classifier's Grad-CAM (paper 3.3) over a dataset."""

import dataclasses
import functools
import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from detectron2.config import CfgNode, get_cfg

from wsis_d2.checkpoint.parts import load_trained, only_weights
from wsis_d2.config import add_wsis_config
from wsis_d2.engine.run_classes import trained_classes
from wsis_d2.model_zoo.download import sha256_file
from wsis_d2.modeling.build import build_model
from wsis_d2.modeling.grad_cam import GradCAM
from wsis_d2.modeling.meta_arch import TagClassifier, TagSegmenter
from wsis_d2.relabeling.region_cues import RegionCueLabeller
from wsis_d2.structures.classes import (
    in_order,
    match_classes,
    parse_categories,
    place_table,
    record_in_classes,
)
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.image_io import read_record
from wsis_d2.weak_labels import driver
from wsis_d2.weak_labels.box_labels import boxes_recipe, make_box_store
from wsis_d2.weak_labels.cam_labels import IGNORE, cue_labels, record_crops, stitch_maps
from wsis_d2.weak_labels.merge import (
    Annotation,
    clean_options,
    make_merged_labels,
    merge_recipe,
)
from wsis_d2.weak_labels.reliability import FILE as RELIABILITY_FILE
from wsis_d2.weak_labels.reliability import save_reliability
from wsis_d2.weak_labels.store import LabelStore

logger = logging.getLogger(__name__)

#: Raised whenever the same classifier and keys would give other cues.
_ALGORITHM = 2

CLASSIFIERS = ("TagClassifier", "TagSegmenter")
TRAIN_COMMAND = "tools/train_net.py --config-file CLASSIFIER.yaml"


def classifier_config(cfg: CfgNode, weights: str | os.PathLike | None, num_classes: int) -> CfgNode:
    """Return the config that a classifier was trained with.

    Args:
        cfg: the command's config. If its meta-architecture is one of ``CLASSIFIERS``, it is used;
            otherwise the ``config.yaml`` that training wrote beside the weights, with the
            command's ``CAM`` section where that is not the default.
        weights: the classifier's checkpoint.
        num_classes: number of classes of the dataset.

    Raises:
        InputError: no weights, or no config that describes them.
    """
    if not weights:
        raise InputError(f"--classifier W.pth is missing; train one with: {TRAIN_COMMAND}")
    if not os.path.isfile(weights):
        raise InputError(f"--classifier {weights}: no such file; train one with: {TRAIN_COMMAND}")
    cfg = cfg.clone()
    cfg.defrost()
    if cfg.MODEL.META_ARCHITECTURE not in CLASSIFIERS:
        beside = Path(weights).parent / "config.yaml"
        if not beside.is_file():
            raise InputError(
                f"--classifier {weights}: no config.yaml beside it; name the config it was "
                "trained with: --config-file CLASSIFIER.yaml"
            )
        wanted = cfg.CAM.clone()
        try:
            cfg.merge_from_file(str(beside), allow_unsafe=False)
        except (KeyError, ValueError, AssertionError, yaml.YAMLError) as error:
            text = " ".join(str(error.args[0] if error.args else error).split())
            raise InputError(f"{beside}: is no config of this version ({text})") from None
        if wanted != _default_cam():
            cfg.CAM = wanted
        if cfg.MODEL.META_ARCHITECTURE not in CLASSIFIERS:
            raise InputError(
                f"{beside}: MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE!r}, expected "
                f"one of {CLASSIFIERS}"
            )
    cfg = only_weights(cfg)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = num_classes
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


def _default_cam() -> CfgNode:
    cfg = get_cfg()
    add_wsis_config(cfg)
    return cfg.CAM


def load_classifier(
    cfg: CfgNode, weights: str | os.PathLike, thing_ids: frozenset[int]
) -> TagClassifier | TagSegmenter:
    """Build the classifier and load its weights, all of them.

    Raises:
        InputError: the checkpoint does not fit.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WSIS.THING_IDS = sorted(thing_ids)
    model = build_model(cfg)
    load_trained(
        model,
        os.fspath(weights),
        key="--classifier",
        hint=f"train one for the config and the dataset's classes with: {TRAIN_COMMAND}",
    )
    return model.eval()


class CueLabeller:
    """Weak record to cue labels; the labelling function of the ``tags`` command.

    Args:
        classifier: in evaluation mode.
        layer: module whose activations are weighted.
        thing_ids: classes that get no cues unless ``things``.
        threshold, scales, flip, things: the ``CAM`` section.
        image_format: channel order of the classifier's input.
    """

    def __init__(
        self,
        classifier: TagClassifier,
        *,
        layer: str,
        thing_ids: frozenset[int],
        threshold: float = 0.5,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        things: bool = False,
        image_format: str = "BGR",
    ) -> None:
        self.classifier = classifier
        self.cam = GradCAM(classifier, layer, classifier.logits)
        self.left_out = frozenset() if things else thing_ids
        self.threshold = threshold
        self.scales = tuple(scales)
        self.flip = flip
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
            scales=cfg.CAM.SCALES,
            flip=cfg.CAM.FLIP,
            things=cfg.CAM.THINGS,
            image_format=cfg.INPUT.FORMAT,
        )

    def maps(self, record: Mapping) -> dict[int, np.ndarray]:
        """Return the stitched activation maps of the classes that the record's tags name.

        Returns:
            Class id to (H, W) float32 in [0, 1].
        """
        image = read_record(record, self.image_format)
        size = image.shape[:2]
        tensor = self.classifier.normalize(torch.from_numpy(image.transpose(2, 0, 1).copy()))
        crops = record_crops(record)
        classes = [sorted(crop[4] - self.left_out) for crop in crops]
        found: list[dict[int, np.ndarray]] = [{} for _ in crops]
        shapes: dict[tuple[int, int], list[int]] = {}
        for k, (x0, y0, x1, y1, _) in enumerate(crops):
            if classes[k]:
                shapes.setdefault((y1 - y0, x1 - x0), []).append(k)
        for group in shapes.values():
            batch = torch.stack(
                [tensor[:, crops[k][1] : crops[k][3], crops[k][0] : crops[k][2]] for k in group]
            )
            maps = self.cam(batch, [classes[k] for k in group], self.scales, self.flip)
            for k, own in zip(group, maps, strict=True):
                found[k] = dict(zip(classes[k], own.numpy(), strict=True))
        return stitch_maps(size, crops, found)

    def __call__(self, record: Mapping) -> driver.Labels:
        """Return cue labels; there are no instances in them."""
        size = (int(record["height"]), int(record["width"]))
        maps = self.maps(record)
        cues = cue_labels(maps, size, self.threshold)
        counters = {
            "pixels": cues.size,
            "cue_pixels": int(np.count_nonzero(cues != IGNORE)),
            "tagged_classes": len(maps),
            "classes_without_cue": len(set(maps) - set(np.unique(cues).tolist())),
        }
        return driver.Labels(cues, np.full(size, -1, np.int32), [], counters)


class ReorderedLabeller:
    """A labelling function whose classifier lists the dataset's classes in another order.

    Args:
        labeller: of the classifier, in its order.
        places: the dataset's class of each of the classifier's (:func:`match_classes`).
    """

    def __init__(self, labeller: CueLabeller | RegionCueLabeller, places: Sequence[int]) -> None:
        self.labeller = labeller
        self._table = place_table(places)
        self._own = [list(places).index(place) for place in range(len(places))]

    def __call__(self, record: Mapping) -> driver.Labels:
        """Return cue labels of the dataset's classes; there are no instances in them."""
        labels = self.labeller(record_in_classes(record, self._own))
        return dataclasses.replace(labels, semantic=self._table[labels.semantic])

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
    if list(cfg.CAM.SCALES) != [1.0]:
        raise InputError(
            f"CAM.SCALES is {list(cfg.CAM.SCALES)}; a TagSegmenter sees every image in one size, "
            "MODEL.TAG_SEGMENTER.SIZE: leave it at [1.0]"
        )
    return RegionCueLabeller(
        load_classifier(cfg, weights, thing_ids),
        threshold=cfg.CAM.THRESHOLD,
        flip=cfg.CAM.FLIP,
        things=cfg.CAM.THINGS,
        image_format=cfg.INPUT.FORMAT,
        has_boxes=has_boxes,
        appearance_weight=cfg.CAM.APPEARANCE_WEIGHT,
    )


def _make_labeller(cfg_text: str, *arguments) -> Callable[[Mapping], driver.Labels]:
    """Build the labelling function in a worker process."""
    return build_labeller(CfgNode.load_cfg(cfg_text), *arguments)


def tags_recipe(cfg: CfgNode, weights: str | os.PathLike) -> dict:
    """Return what cue labels depend on: the classifier's file, its architecture, the CAM keys."""
    digest = sha256_file(weights)
    architecture = hashlib.sha256((cfg.MODEL.dump() + cfg.INPUT.FORMAT).encode()).hexdigest()
    return {
        "kind": "tags",
        "algorithm": _ALGORITHM,
        "classifier": digest,
        "architecture": architecture,
        "layer": cfg.CAM.LAYER,
        "threshold": float(cfg.CAM.THRESHOLD),
        "scales": [float(scale) for scale in cfg.CAM.SCALES],
        "flip": bool(cfg.CAM.FLIP),
        "things": bool(cfg.CAM.THINGS),
        "appearance_weight": float(cfg.CAM.APPEARANCE_WEIGHT),
    }


def make_tag_labels(
    cfg: CfgNode,
    records: Sequence[Mapping],
    categories: list[dict],
    output: str | os.PathLike,
    *,
    classifier: str | os.PathLike | None,
    has_boxes: bool = True,
    workers: int | None = None,
    limit: int | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> int:
    """The ``tags`` command: a trained classifier and tags to a store of cue labels.

    Args:
        cfg: the ``CAM`` section is read, and the model where it is the classifier's own config.
        records: weak records.
        categories: the annotation file's categories.
        output: the store to write.
        classifier: the classifier's checkpoint.
        has_boxes: whether the dataset's boxes are complete.
        workers: processes; None is one a core, or one where the classifier runs on a GPU.
        limit: only the first so many records.
        force: throw away a store of another recipe.
        dry_run: say what would be done.

    Returns:
        The exit status: 0, or 1 if images failed.

    Raises:
        InputError: the classifier cannot be used or is of other classes, or no record has tags.
    """
    ordered = sorted(categories, key=lambda c: c["id"])
    thing_ids = frozenset(i for i, c in enumerate(ordered) if c.get("isthing", 1))
    if not any(record.get("image_tags") or record.get("crop_tags") for record in records):
        raise InputError(
            f"{len(records)} images and none has image_tags or crop_tags; the boxes command needs "
            "none, this one has nothing to work with"
        )
    own = classifier_config(cfg, classifier, len(ordered))
    recipe = tags_recipe(own, classifier)
    if dry_run:
        logger.info("would write cues of %d images to %s: %s", len(records), output, recipe)
        return 0
    places = None
    trained = trained_classes(os.fspath(classifier))
    if trained is not None:
        places = match_classes(parse_categories(categories, "the annotated data"), trained)
        places = None if in_order(places) else places
    # Errors now, not by image.
    labeller = build_labeller(own, classifier, thing_ids, has_boxes, places)
    store = LabelStore.create(output, recipe, categories, force)
    if workers is None and own.MODEL.DEVICE != "cpu":
        workers = 1
    make = functools.partial(
        _make_labeller, own.dump(), os.fspath(classifier), thing_ids, has_boxes, places
    )
    reliability = store.path / RELIABILITY_FILE
    if driver.plan(records, store, limit):  # wherever this stops, no file tells of other labels
        reliability.unlink(missing_ok=True)
    result = driver.run(make, records, store, workers=workers, limit=limit, desc="tag cues")
    if own.MODEL.META_ARCHITECTURE == "TagSegmenter" and not reliability.is_file():
        names = [category["name"] for category in ordered]
        save_reliability(store.path, names, labeller.reliability(records[:limit]))
    return result.exit_status


def make_all_labels(
    cfg: CfgNode,
    records: Sequence[Mapping],
    categories: list[dict],
    output: str | os.PathLike,
    *,
    classifier: str | os.PathLike | None = None,
    outside_boxes: int | str = "ignore",
    has_boxes: bool = True,
    workers: int | None = None,
    limit: int | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> int:
    """The ``all`` command: boxes, tags and merge; the parts stay in ``output/parts``.

    Args:
        cfg: the sections ``WEAK_LABELS``, ``CAM`` and ``CLEAN`` are read.
        records: weak records.
        categories: the annotation file's categories.
        output: the store of merged labels.
        classifier: the tag classifier's checkpoint; not needed where no record tags any stuff but
            the class outside boxes.
        outside_boxes: "ignore" or the class outside all boxes.
        has_boxes: see :class:`wsis_d2.weak_labels.merge.Annotation`.
        workers, limit, force, dry_run: as for each part.

    Returns:
        The exit status: 0, or 1 if images failed.

    Raises:
        InputError: stuff is tagged and there is no classifier; or a part's error.
    """
    annotation = Annotation.of(categories, outside_boxes, has_boxes)
    known = annotation.thing_ids | annotation.outside_classes
    tagged = any(
        set(tags) - known
        for record in records
        for tags in [
            record.get("image_tags") or (),
            *[crop["tags"] for crop in record.get("crop_tags") or ()],
        ]
    )
    if tagged and not classifier:
        raise InputError(
            f"--classifier W.pth is missing, and images have tags of stuff; train one with: "
            f"{TRAIN_COMMAND}; or make labels of boxes alone with: tools/make_weak_labels.py boxes"
        )
    parts = Path(output) / "parts"
    common = {"workers": workers, "limit": limit, "force": force, "dry_run": dry_run}
    tags = None
    if tagged:
        tags = tags_recipe(classifier_config(cfg, classifier, len(categories)), classifier)
    if not dry_run:
        # Before its parts: a folder with files in it is no new store.
        recipe = merge_recipe(
            boxes_recipe(cfg, outside_boxes),
            tags,
            clean_options(cfg, annotation),
            cfg.CLEAN.INSTANCES_FROM,
        )
        LabelStore.create(output, recipe, categories, force)
    status = make_box_store(
        cfg, records, categories, parts / "boxes", outside_boxes=outside_boxes, **common
    )
    if tagged:
        status |= make_tag_labels(
            cfg,
            records,
            categories,
            parts / "tags",
            classifier=classifier,
            has_boxes=has_boxes,
            **common,
        )
    if dry_run:
        logger.info("would merge both into %s", output)
        return status
    status |= make_merged_labels(
        cfg,
        records,
        categories,
        output,
        boxes=parts / "boxes",
        tags=parts / "tags" if tagged else None,
        outside_boxes=outside_boxes,
        has_boxes=has_boxes,
        workers=workers,
        limit=limit,
    )
    return status
