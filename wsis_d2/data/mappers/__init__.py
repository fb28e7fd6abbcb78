# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Dataset mappers; importing this registers them."""

from wsis_d2.data.mappers.build import DATASET_MAPPER_REGISTRY, build_mapper
from wsis_d2.data.mappers.panoptic_mapper import PanopticMapper
from wsis_d2.data.mappers.tag_mapper import TagMapper
from wsis_d2.data.mappers.tag_region_mapper import TagRegionMapper

__all__ = [
    "DATASET_MAPPER_REGISTRY",
    "PanopticMapper",
    "TagMapper",
    "TagRegionMapper",
    "build_mapper",
]
