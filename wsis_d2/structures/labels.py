# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Label maps and the ids in them.

A class has up to three ids, and an object one:

- *category id*: of the annotation file, any integer; in JSON files and ``panoptic.json``;
- *contiguous id*: the place among the file's categories in ascending order, things and stuff in one
  space; in semantic maps, weak records and everywhere in the code
  (:class:`wsis_d2.structures.classes.ClassTable` converts);
- *thing id*: the place of a thing among the things, 0 to T - 1; what a Detectron2 detector predicts
  (``MODEL.WSIS.THING_IDS`` lists their contiguous ids);
- *instance id*: of an object in an instance map, from 1; 0 is no instance.
"""

from collections.abc import Iterable, Mapping

import numpy as np

IGNORE = 255
"""Pixels without a label in semantic maps, uint8 (H, W) of contiguous ids."""
INSTANCE_IGNORE = -1
"""The same in instance maps, int32 (H, W)."""


def id_table(ids: Mapping[int, int], rest: int = IGNORE) -> np.ndarray:
    """Return a table of new ids by old ones, ``rest`` for every id that has none.

    Returns:
        (256,) uint8, to be indexed with a semantic map.
    """
    table = np.full(256, rest, np.uint8)
    table[list(ids)] = list(ids.values())
    return table


def keep_table(class_ids: Iterable[int]) -> np.ndarray:
    """Return :func:`id_table` that keeps contiguous ids and makes every other one ignore."""
    return id_table({class_id: class_id for class_id in class_ids})


def member_table(class_ids: Iterable[int]) -> np.ndarray:
    """Return whether an id is one of these: (256,) bool, to be indexed with a semantic map."""
    table = np.zeros(256, bool)
    table[list(class_ids)] = True
    return table
