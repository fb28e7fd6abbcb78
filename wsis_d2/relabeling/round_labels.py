# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""A trained model to the label stores of one round."""

import dataclasses
import functools
import logging
import os
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm

from wsis_d2.data.datasets.own.custom import dataset_classes
from wsis_d2.data.mappers import build_mapper
from wsis_d2.data.records import load_records, supervision_of
from wsis_d2.relabeling.earlier_labels import prior_factors, trust
from wsis_d2.relabeling.mask_source import MaskSource, masks_store
from wsis_d2.relabeling.prediction_model import load_predictor, prediction_config
from wsis_d2.relabeling.relabeller import Relabeller
from wsis_d2.structures.annotation import AnnotatedClasses
from wsis_d2.structures.classes import ClassTable
from wsis_d2.utils.errors import InputError
from wsis_d2.weak_labels import driver
from wsis_d2.weak_labels.clean import CleanOptions
from wsis_d2.weak_labels.merge import clean_options
from wsis_d2.weak_labels.refine import RefineOptions
from wsis_d2.weak_labels.store import LabelStore

logger = logging.getLogger(__name__)


def first_stores(cfg: CfgNode) -> dict[str, Path]:
    """Return the labels that the weak training sets begin with, by dataset, in order.

    Raises:
        InputError: no set has weak records, or one has no label store.
    """
    stores = {}
    for name in cfg.DATASETS.TRAIN:
        if any(supervision_of(record) == "weak" for record in load_records([name])):
            store = MetadataCatalog.get(name).get("label_store")
            if not store:
                raise InputError(
                    f"dataset {name!r} has no label store to begin with; make one with "
                    f"tools/make_weak_labels.py all --dataset {name} --output STORE and name it: "
                    f"DATASETS.LABEL_STORES \"[['{name}', 'STORE']]\" (own data: labels=STORE)"
                )
            stores[name] = Path(store)
    if not stores:
        raise InputError(
            f"DATASETS.TRAIN: no weak images in {list(cfg.DATASETS.TRAIN)}; nothing to relabel"
        )
    return stores


def relabel(
    cfg: CfgNode,
    name: str,
    output: str | os.PathLike,
    *,
    round_number: int,
    first_store: str | os.PathLike,
    lineage: str,
    last_store: str | os.PathLike | None = None,
    weights: str | os.PathLike,
) -> LabelStore:
    """Write the labels of one round of one dataset; what is written already stays.

    Called in every process of a run; each labels its share of the images.

    Args:
        cfg: the run's config.
        name: the weak dataset.
        output: the round's store.
        round_number: 1 for the labels that the first trained model makes.
        first_store: the store of round 0, for its box masks.
        last_store: the store that the model learned from; None: ``first_store``.
        lineage: identifies what the model was trained with; part of the store's recipe.
        weights: the trained checkpoint; processes load it.

    Returns:
        The store, finished in the main process.

    Raises:
        InputError: an image could not be labelled.
    """
    metadata = MetadataCatalog.get(name)
    classes = dataset_classes(name)
    annotation = AnnotatedClasses.of_dataset(metadata)
    clean = clean_options(cfg, annotation, round_number)
    refine = RefineOptions.from_config(cfg)
    source = masks_store(cfg, name, first_store) if clean.merge else None
    records = [r for r in load_records([name]) if supervision_of(r) == "weak"]
    if clean.merge and (source is None or not any(r["annotations"] for r in records)):
        logger.info("%s: no boxes in %s, so no merge: predicted things stay", name, first_store)
        source, clean = None, dataclasses.replace(clean, merge=False)
    recipe = {
        "kind": "round",
        "round": round_number,
        "lineage": lineage,
        "clean": dataclasses.asdict(clean),
        "refine": dataclasses.asdict(refine),
        "masks": MaskSource(source, classes).recipe_hash if source else None,
    }
    last_store = Path(last_store or first_store)
    if refine.uses_prior:
        stores = [LabelStore.open(p).in_classes(classes) for p in (last_store, first_store)]
        recipe["prior"] = [prior_store.recipe_hash for prior_store in stores]
        factors = trust(refine, stores[1])
        recipe["trust"] = None if factors is None else factors.round(6).tolist()
    if comm.is_main_process():
        LabelStore.create(output, recipe, [dict(c) for c in classes.categories])
    comm.synchronize()
    store = LabelStore.open(output, writable=True)
    make = functools.partial(
        _make_relabeller, prediction_config(cfg).dump(), os.fspath(weights), classes, annotation,
        clean, source, last_store, Path(first_store),
    )  # fmt: skip
    threads = torch.get_num_threads()
    batch = cfg.TEST.IMS_PER_BATCH
    desc = f"labels {round_number}"
    result = None
    try:
        if comm.get_world_size() > 1:
            driver.run_share(
                make, records, store, comm.get_rank(), comm.get_world_size(), desc, batch
            )
            comm.synchronize()
        if comm.is_main_process():
            result = driver.run(
                make, records, store, workers=cfg.ITERATIVE.WORKERS, desc=desc, batch=batch
            )
        comm.synchronize()
    finally:
        torch.set_num_threads(threads)
    if result is not None and result.failed:
        image_id, message = next(iter(result.failed.items()))
        raise InputError(
            f"{output}: {len(result.failed)} of {len(records)} images could not be labelled, the "
            f"first is {image_id!r}: {message}; correct it and run the same command with --resume"
        )
    return store


def _make_relabeller(
    cfg_text: str,
    weights: str,
    classes: ClassTable,
    annotation: AnnotatedClasses,
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
        prior_factors(cfg, classes, last_store, first_store),
    )
