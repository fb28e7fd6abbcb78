# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Panoptic segmentation from cheap annotation, an extension of Detectron2."""

__version__ = "0.1.0"
