# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Panoptic segmentation from cheap annotation, an extension of Detectron2.

Importing the package registers its datasets, models and mappers with Detectron2.
"""

from wsis_d2.utils.requirements import check_detectron2

check_detectron2()

from wsis_d2 import data, modeling  # noqa: E402, F401
from wsis_d2.config import add_wsis_config  # noqa: E402, F401

__version__ = "0.1.0"
