# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""What earlier labels say of a prediction, as the ``REFINE`` section asks.

Addition, not in the paper.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode

from wsis_d2.data.datasets.own.custom import dataset_classes
from wsis_d2.structures.classes import ClassTable
from wsis_d2.weak_labels.label_prior import class_factors
from wsis_d2.weak_labels.refine import RefineOptions
from wsis_d2.weak_labels.reliability import load_reliability
from wsis_d2.weak_labels.store import LabelStore


def prior_factors(
    cfg: CfgNode,
    classes: ClassTable,
    last_store: str | os.PathLike,
    first_store: str | os.PathLike,
) -> np.ndarray | None:
    """Return the factors of the class probabilities, (C,) float32.

    None where the ``REFINE`` section does not ask for any.
    """
    refine = RefineOptions.from_config(cfg)
    if not refine.uses_prior:
        return None
    return class_factors(
        refine.class_balance,
        LabelStore.open(last_store).in_classes(classes),
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        trust(refine, LabelStore.open(first_store).in_classes(classes)),
    )


def trust(refine: RefineOptions, first: LabelStore) -> np.ndarray | None:
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
        trust(refine, LabelStore.open(path).in_classes(dataset_classes(name)))
