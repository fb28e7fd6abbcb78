# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Where the box masks of later rounds come from."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode

from wsis_d2.data.datasets.own.custom import dataset_classes
from wsis_d2.structures.classes import ClassTable
from wsis_d2.structures.labels import keep_table
from wsis_d2.utils.errors import InputError
from wsis_d2.weak_labels.store import LabelStore


class MaskSource:
    """Weak record to the map of its box masks, read from a label store.

    Args:
        store: a boxes store, or round-0 labels, whose things came from box masks.
        classes: the dataset's; classes that are no things are taken as "no mask".
    """

    def __init__(self, store: str | os.PathLike, classes: ClassTable) -> None:
        self.path = Path(store)
        self._store = LabelStore.open(store).in_classes(classes)
        self._things = keep_table(np.flatnonzero(classes.thing_mask))

    @property
    def recipe_hash(self) -> str:
        """Of the store."""
        return self._store.recipe_hash

    def __call__(self, record: Mapping) -> np.ndarray:
        """Return the (H, W) uint8 map; 255 where there is no mask.

        Raises:
            InputError: the masks are missing, or were made from other boxes.
        """
        self._store.check(record)
        return self._things[self._store.semantic(record["image_id"])]


def masks_store(cfg: CfgNode, name: str, first_store: str | os.PathLike) -> Path | None:
    """Return where the box masks of a dataset come from in later rounds; None: it has none.

    Labels made of tags alone hold no thing. Merged with them, every predicted thing would be
    deleted as one beside its mask.

    Args:
        cfg: ``ITERATIVE.BOX_STORES`` is read.
        name: the dataset.
        first_store: its label store of round 0.

    Raises:
        InputError: ``ITERATIVE.BOX_STORES`` names a store without box masks.
    """
    named = dict(cfg.ITERATIVE.BOX_STORES)
    if name in named:
        if not _holds_box_masks(named[name]):
            raise InputError(
                f"ITERATIVE.BOX_STORES: {named[name]} was made from tags alone and holds no box "
                f"masks; make them with: tools/make_weak_labels.py boxes --dataset {name} "
                "--output STORE"
            )
        return Path(named[name])
    parts = Path(first_store) / "parts" / "boxes"
    if (parts / "manifest.json").is_file():
        return parts
    return Path(first_store) if _holds_box_masks(first_store) else None


def check_masks(cfg: CfgNode, first_stores: Mapping[str, Path]) -> None:
    """Check where later rounds take box masks from, before any training.

    Args:
        cfg: the run's config.
        first_stores: the weak sets and their labels of round 0.

    Raises:
        InputError: ``ITERATIVE.BOX_STORES`` names a set that is not relabelled, or a store that is
            missing, holds no box masks or is of other classes.
    """
    for name, _ in cfg.ITERATIVE.BOX_STORES:
        if name not in first_stores:
            raise InputError(
                f"ITERATIVE.BOX_STORES: {name!r} is no weak set of DATASETS.TRAIN, expected some "
                f"of {', '.join(first_stores)}"
            )
    for name, first in first_stores.items():
        store = masks_store(cfg, name, first) if cfg.CLEAN.MERGE else None
        if store is not None:
            MaskSource(store, dataset_classes(name))


def _holds_box_masks(store: str | os.PathLike) -> bool:
    return LabelStore.open(store).recipe.get("kind") != "tags"
