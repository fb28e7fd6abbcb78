# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Meta architectures."""

from wsis_d2.modeling.meta_arch.tag_classifier import TagClassifier
from wsis_d2.modeling.meta_arch.tag_segmenter import TagSegmenter
from wsis_d2.modeling.meta_arch.weak_panoptic_rcnn import TRAIN_BOXES, WeakPanopticRCNN

__all__ = ["TRAIN_BOXES", "TagClassifier", "TagSegmenter", "WeakPanopticRCNN"]
