# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The instance subnetwork: labels, unary terms, CRF head, matching, loss, baseline merge."""

from wsis_d2.modeling.instance.box_merge import BoxMergeHead
from wsis_d2.modeling.instance.build import INSTANCE_HEAD_REGISTRY, build_instance_head
from wsis_d2.modeling.instance.crf_head import InstanceCRFHead
from wsis_d2.modeling.instance.labels import InstanceLabels, box_masks, make_labels
from wsis_d2.modeling.instance.loss import instance_loss
from wsis_d2.modeling.instance.matching import match_instances, to_matched_labels
from wsis_d2.modeling.instance.unaries import box_term, global_term, unary_scores

__all__ = [
    "INSTANCE_HEAD_REGISTRY",
    "BoxMergeHead",
    "InstanceCRFHead",
    "InstanceLabels",
    "box_masks",
    "box_term",
    "build_instance_head",
    "global_term",
    "instance_loss",
    "make_labels",
    "match_instances",
    "to_matched_labels",
    "unary_scores",
]
