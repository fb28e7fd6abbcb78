# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""A trained model to new pseudo ground truth: predict, refine, clean, store (paper 3.4)."""

import functools
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import nn

from wsis_d2.checkpoint.parts import WEIGHT_KEYS, load_trained, weight_files
from wsis_d2.data.datasets.own.custom import dataset_classes
from wsis_d2.data.mappers import build_mapper
from wsis_d2.data.records import load_records, supervision_of
from wsis_d2.engine.resume import plain_config
from wsis_d2.model_zoo.download import sha256_file
from wsis_d2.modeling.averaged import averaged_semantics
from wsis_d2.modeling.build import build_model
from wsis_d2.structures.classes import ClassTable
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.image_io import read_record
from wsis_d2.weak_labels import driver
from wsis_d2.weak_labels.clean import IGNORE, CleanOptions
from wsis_d2.weak_labels.label_prior import LabelPrior
from wsis_d2.weak_labels.merge import (
    Annotation,
    clean_options,
    clean_record,
    record_possible_classes,
)
from wsis_d2.weak_labels.refine import RefineOptions, labels_from_probabilities
from wsis_d2.weak_labels.reliability import load_reliability
from wsis_d2.weak_labels.store import LabelStore

logger = logging.getLogger(__name__)


class Relabeller:
    """Weak record to cleaned labels of a model's prediction; a labelling function of the driver.

    Args:
        model: gives ``sem_seg`` (C, H, W) probabilities in evaluation mode.
        mapper: record to test sample.
        annotation: the dataset's classes.
        clean, refine: options of both steps.
        masks: image id to the map of the box masks, (H, W) uint8; None: no merge.
        image_format: channel order in which images are read.
        prior: what earlier labels say, where ``refine`` uses it.
    """

    def __init__(
        self,
        model: nn.Module,
        mapper: Callable[[dict], dict],
        annotation: Annotation,
        clean: CleanOptions,
        refine: RefineOptions,
        masks: Callable[[int | str], np.ndarray] | None,
        image_format: str = "BGR",
        prior: LabelPrior | None = None,
    ) -> None:
        self.model = model
        self.mapper = mapper
        self.annotation = annotation
        self.clean = clean
        self.refine = refine
        self.masks = masks
        self.image_format = image_format
        self.prior = prior

    @torch.no_grad()
    def __call__(self, record: Mapping) -> driver.Labels:
        """Return the labels of one record; the model's mode is left as it was."""
        was_training = self.model.training
        self.model.eval()
        try:
            predicted = averaged_semantics(
                self.model, self.mapper(dict(record)), self.refine.scales, self.refine.flip
            )
        finally:
            self.model.train(was_training)
        image = read_record(record, self.image_format)
        possible = None
        if self.refine.within_annotation:
            possible = record_possible_classes(
                record, image.shape[:2], len(predicted), self.annotation, self.clean
            )
        factors = self.prior.factors(record["image_id"]) if self.prior is not None else None
        labels, scores = labels_from_probabilities(predicted, image, self.refine, possible, factors)
        masks = self.masks(record["image_id"]) if self.masks is not None else None
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
        return driver.Labels(result.semantic, result.instance, result.segments, counters)


class MaskSource:
    """Image id to the map of box masks, read from a label store.

    Args:
        store: a boxes store, or round-0 labels, whose things came from box masks.
        classes: the dataset's; classes that are no things are taken as "no mask".
    """

    def __init__(self, store: str | os.PathLike, classes: ClassTable) -> None:
        self.path = Path(store)
        self._store = LabelStore.open(store).in_classes(classes)
        self._things = np.zeros(256, bool)
        self._things[: len(classes)] = classes.thing_mask

    @property
    def recipe_hash(self) -> str:
        """Of the store."""
        return self._store.recipe_hash

    def __call__(self, image_id: int | str) -> np.ndarray:
        """Return the (H, W) uint8 map; 255 where there is no mask."""
        semantic = self._store.semantic(image_id)
        return np.where(self._things[semantic], semantic, IGNORE).astype(np.uint8)


def prediction_config(cfg: CfgNode) -> CfgNode:
    """Return the config of the model that predicts: the semantic subnetwork alone where it can."""
    cfg = cfg.clone()
    cfg.defrost()
    if cfg.MODEL.META_ARCHITECTURE == "WeakPanopticRCNN":
        if cfg.MODEL.WSIS.STAGE == "detector":
            raise InputError(
                "MODEL.WSIS.STAGE is 'detector', which predicts no semantics; iterate with "
                "'semantic', 'instance_piecewise' or 'end_to_end'"
            )
        cfg.MODEL.WSIS.STAGE = "semantic"
    cfg.freeze()
    return cfg


def load_predictor(cfg: CfgNode, weights: str | os.PathLike) -> nn.Module:
    """Build the predicting model of :func:`prediction_config` and load a trained checkpoint."""
    model = build_model(cfg)
    load_trained(model, os.fspath(weights), key="the round's checkpoint")
    return model.eval()


def _make_relabeller(
    cfg_text: str,
    weights: str,
    classes: ClassTable,
    annotation: Annotation,
    clean: CleanOptions,
    masks_store: Path | None,
    last_store: Path,
    first_store: Path,
) -> Relabeller:
    """Build the labelling function in the process that uses it."""
    cfg = CfgNode.load_cfg(cfg_text)
    return Relabeller(
        load_predictor(cfg, weights),
        build_mapper(cfg, is_train=False),
        annotation,
        clean,
        RefineOptions.from_config(cfg),
        MaskSource(masks_store, classes) if masks_store is not None else None,
        cfg.INPUT.FORMAT,
        label_prior(cfg, classes, last_store, first_store),
    )


def label_prior(
    cfg: CfgNode,
    classes: ClassTable,
    last_store: str | os.PathLike,
    first_store: str | os.PathLike,
) -> LabelPrior | None:
    """Return what earlier labels say, None where the ``REFINE`` section does not ask for it."""
    refine = RefineOptions.from_config(cfg)
    if not refine.uses_prior:
        return None
    first = LabelStore.open(first_store).in_classes(classes)
    return LabelPrior(
        refine.class_balance,
        refine.first_labels_vote,
        LabelStore.open(last_store).in_classes(classes),
        first,
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        _trust(refine, first),
    )


def _trust(refine: RefineOptions, first: LabelStore) -> np.ndarray | None:
    """Return the factor of each class that round 0's reliability gives, None where it is off."""
    if not refine.reliability_power:
        return None
    return load_reliability(first.path, first.classes.names) ** refine.reliability_power


def check_refinement(cfg: CfgNode, first_stores: Mapping[str, Path]) -> None:
    """Check the ``REFINE`` section and what it needs of round 0's labels, before any training.

    Raises:
        InputError: a value that means nothing, or a store that does not know its reliability.
    """
    refine = RefineOptions.from_config(cfg)
    for name, path in first_stores.items():
        _trust(refine, LabelStore.open(path).in_classes(dataset_classes(name)))


def weak_datasets(cfg: CfgNode) -> list[str]:
    """Return the training sets that have weak records, in order.

    Raises:
        InputError: there is none, or one has no label store to begin with.
    """
    names = []
    for name in cfg.DATASETS.TRAIN:
        if any(supervision_of(record) == "weak" for record in load_records([name])):
            if not MetadataCatalog.get(name).get("label_store"):
                raise InputError(
                    f"dataset {name!r} has no label store to begin with; make one with "
                    f"tools/make_weak_labels.py all --dataset {name} --output STORE and name it: "
                    f"DATASETS.LABEL_STORES \"[['{name}', 'STORE']]\" (own data: labels=STORE)"
                )
            names.append(name)
    if not names:
        raise InputError(
            f"DATASETS.TRAIN: no weak images in {list(cfg.DATASETS.TRAIN)}; nothing to relabel"
        )
    return names


def masks_store(cfg: CfgNode, name: str, first_store: str | os.PathLike) -> Path:
    """Return where the box masks of a dataset come from in later rounds.

    Args:
        cfg: ``ITERATIVE.BOX_STORES`` is read.
        name: the dataset.
        first_store: its label store of round 0.
    """
    named = {entry[0]: entry[1] for entry in cfg.ITERATIVE.BOX_STORES}
    if name in named:
        return Path(named[name])
    parts = Path(first_store) / "parts" / "boxes"
    return parts if (parts / "manifest.json").is_file() else Path(first_store)


def relabel(
    cfg: CfgNode,
    name: str,
    output: str | os.PathLike,
    *,
    round_number: int,
    first_store: str | os.PathLike,
    lineage: str,
    last_store: str | os.PathLike | None = None,
    weights: str | os.PathLike | None = None,
    model: nn.Module | None = None,
) -> LabelStore:
    """Write the labels of one round of one dataset; what is written already stays.

    Args:
        cfg: the run's config.
        name: the weak dataset.
        output: the round's store.
        round_number: 1 for the labels that the first trained model makes.
        first_store: the store of round 0, for its box masks.
        last_store: the store that the model learned from; None: ``first_store``.
        lineage: identifies what the model was trained with; part of the store's recipe.
        weights: the trained checkpoint; processes load it.
        model: or the live model itself, for the training hook; one process.

    Returns:
        The finished store.

    Raises:
        InputError: an image could not be labelled.
    """
    metadata = MetadataCatalog.get(name)
    classes = dataset_classes(name)
    annotation = Annotation.of_dataset(metadata)
    clean = clean_options(cfg, annotation, round_number)
    refine = RefineOptions.from_config(cfg)
    source = masks_store(cfg, name, first_store) if clean.merge else None
    recipe = {
        "kind": "round",
        "round": round_number,
        "lineage": lineage,
        "clean": clean.as_dict(),
        "refine": {k: v for k, v in vars(refine).items()},
        "masks": MaskSource(source, classes).recipe_hash if source else None,
    }
    last_store = Path(last_store or first_store)
    if refine.uses_prior:
        stores = [LabelStore.open(p).in_classes(classes) for p in (last_store, first_store)]
        recipe["prior"] = [prior_store.recipe_hash for prior_store in stores]
        trust = _trust(refine, stores[1])
        recipe["trust"] = None if trust is None else trust.round(6).tolist()
    store = LabelStore.create(output, recipe, [dict(c) for c in classes.categories])
    records = [r for r in load_records([name]) if supervision_of(r) == "weak"]
    if model is not None:
        own = prediction_config(cfg)
        masks = MaskSource(source, classes) if source else None
        mapper = build_mapper(own, is_train=False)
        prior = label_prior(own, classes, last_store, first_store)
        labeller = Relabeller(
            model, mapper, annotation, clean, refine, masks, cfg.INPUT.FORMAT, prior
        )

        def make() -> Relabeller:
            return labeller

        workers = 1
    else:
        own = prediction_config(cfg)
        make = functools.partial(
            _make_relabeller, own.dump(), os.fspath(weights), classes, annotation, clean, source,
            last_store, Path(first_store),
        )  # fmt: skip
        workers = cfg.ITERATIVE.WORKERS
    threads = torch.get_num_threads()
    try:
        result = driver.run(make, records, store, workers=workers, desc=f"labels {round_number}")
    finally:
        torch.set_num_threads(threads)
    if result.failed:
        image_id, message = next(iter(result.failed.items()))
        raise InputError(
            f"{output}: {len(result.failed)} of {len(records)} images could not be labelled, the "
            f"first is {image_id!r}: {message}; mend it and run the same command with --resume"
        )
    return store


# Keys that hold paths; what they lead to is known by its hash.
_PATH_KEYS = (
    "DATASETS.OWN",
    "DATASETS.LABEL_STORES",
    "ITERATIVE.BOX_STORES",
    *WEIGHT_KEYS,
)


def config_fingerprint(cfg: CfgNode, store_hashes: Mapping[str, str]) -> str:
    """Identify what a run's labels depend on, wherever its files lie.

    Args:
        cfg: the run's config.
        store_hashes: dataset to the recipe hash of its round-0 labels.
    """
    weights = []
    for path in weight_files(cfg):
        if path and os.path.isfile(path):
            weights.append(sha256_file(path))
        else:
            weights.append(path)
    text = json.dumps(
        [plain_config(cfg, _PATH_KEYS), sorted(store_hashes.items()), weights], sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]
