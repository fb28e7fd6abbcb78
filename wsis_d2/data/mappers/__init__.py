# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Dataset mappers; importing this registers them."""

from .panoptic_mapper import PanopticMapper
from .tag_mapper import TagMapper
from .tag_region_mapper import TagRegionMapper

__all__ = ["PanopticMapper", "TagMapper", "TagRegionMapper"]
