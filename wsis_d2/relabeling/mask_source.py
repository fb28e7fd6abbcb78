# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Where the box masks of later rounds come from."""

import os
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode

from wsis_d2.weak_labels.clean import IGNORE
from wsis_d2.weak_labels.store import LabelStore


class MaskSource:
    """Image id to the map of box masks, read from a label store.

    Args:
        store: a boxes store, or round-0 labels, whose things came from box masks.
        thing_ids: other classes are taken as "no mask".
    """

    def __init__(self, store: str | os.PathLike, thing_ids: frozenset[int]) -> None:
        self.path = Path(store)
        self._store = LabelStore.open(store)
        self._things = np.zeros(256, bool)
        self._things[list(thing_ids)] = True

    @property
    def recipe_hash(self) -> str:
        """Of the store."""
        return self._store.recipe_hash

    def __call__(self, image_id: int | str) -> np.ndarray:
        """Return the (H, W) uint8 map; 255 where there is no mask."""
        semantic = self._store.semantic(image_id)
        return np.where(self._things[semantic], semantic, IGNORE).astype(np.uint8)


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
