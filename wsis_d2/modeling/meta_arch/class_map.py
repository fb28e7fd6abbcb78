# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""A detector's classes as the run's, by name. Addition, not in the paper."""

import logging
from collections.abc import Sequence

from detectron2.data import MetadataCatalog

from wsis_d2.data.datasets.builtin.metadata import COCO_NAMES
from wsis_d2.utils.errors import InputError

logger = logging.getLogger(__name__)


def class_names(names: Sequence[str]) -> list[str]:
    """Return class names as given, or those of the one dataset that is named.

    Raises:
        InputError: one word that is no dataset with thing classes.
    """
    if len(names) != 1:
        return list(names)
    found = MetadataCatalog.get(names[0]).get("thing_classes") if _registered(names[0]) else None
    if not found:
        raise InputError(
            f"MODEL.WSIS.DETECTOR_CLASSES is {list(names)}, expected the detector's class names in "
            "order, or one registered dataset, e.g. ['coco_2017_val']"
        )
    return list(found)


def _registered(name: str) -> bool:
    # Asking for the metadata of an unknown name would register it.
    return name in MetadataCatalog.list()


def map_classes(theirs: Sequence[str], ours: Sequence[str]) -> list[int]:
    """Return for each of their classes our thing index, -1 where there is none.

    Names meet without regard to case, spaces and hyphens; VOC's names are COCO's.

    Raises:
        InputError: no class is shared.
    """
    places = {_plain(name): index for index, name in enumerate(ours)}
    result = [places.get(_plain(name), -1) for name in theirs]
    missing = [name for index, name in enumerate(ours) if index not in result]
    if len(missing) == len(ours):
        raise InputError(
            f"MODEL.WSIS.DETECTOR_CLASSES: none of the things {', '.join(ours)} is among the "
            f"detector's {len(theirs)} classes"
        )
    if missing:
        logger.warning("the detector has no class %s: no instances of it", ", ".join(missing))
    return result


def _plain(name: str) -> str:
    name = COCO_NAMES.get(name, name)
    return name.lower().replace(" ", "").replace("-", "").replace("_", "")
