# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Datasets: what the pictures and annotations are. Importing this registers the built-in ones."""

import os

from wsis_d2.data.datasets.builtin.registration import register_all_builtin
from wsis_d2.data.datasets.own.custom import (
    register_own_datasets,
    register_weak_panoptic,
    set_label_store,
)
from wsis_d2.data.datasets.own.weak import (
    WEAK_ANNOTATION_FIELDS,
    WEAK_RECORD_FIELDS,
    load_weak_json,
)
from wsis_d2.data.datasets.sample.dataset import register_all_sample
from wsis_d2.structures.classes import ClassTable, parse_categories

__all__ = [
    "WEAK_ANNOTATION_FIELDS",
    "WEAK_RECORD_FIELDS",
    "ClassTable",
    "load_weak_json",
    "parse_categories",
    "register_all_builtin",
    "register_own_datasets",
    "register_weak_panoptic",
    "set_label_store",
]

_root = os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets"))
register_all_sample(_root)
register_all_builtin(_root)
