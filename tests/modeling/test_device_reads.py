# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""What a training step computes reads no values from the device on its way.

Tensors of torch's FakeTensorMode have no values: an operator whose result's size depends on them,
or a read of one, raises.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from wsis_d2.modeling.annotation_losses import AnnotationLosses
from wsis_d2.modeling.instance.labels import make_labels
from wsis_d2.modeling.instance.matching import mask_iou, tight_boxes, to_matched_labels
from wsis_d2.modeling.postprocessing import panoptic_result, segments_to_instances


class Reads(TorchDispatchMode):
    """Counts reads of single values."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "_local_scalar_dense" in str(func) or "nonzero" in str(func)
        return func(*args, **(kwargs or {}))


def test_fake_tensors_refuse_a_read():
    with FakeTensorMode():
        mask = torch.ones(4, 4) > 0
        for read in (lambda: float(mask.sum()), lambda: mask.nonzero()):
            with pytest.raises(Exception, match="."):
                read()


def test_matching_and_annotation_losses():
    with FakeTensorMode():
        regions = torch.zeros(8, 9, dtype=torch.int64)
        assert mask_iou(regions, 3, regions, 4).shape == (3, 4)
        assert tight_boxes(regions, 3).shape == (3, 4)
        assert to_matched_labels(regions, torch.zeros(3, dtype=torch.int64)).shape == (8, 9)
        sample = {
            "image": torch.zeros(3, 8, 9), "crops": [], "crop_targets": [],
            "boxes": [((1, 1, 5, 5), 0, False)], "has_boxes": True,
        }  # fmt: skip
        losses = AnnotationLosses(3, [0])(torch.zeros(3, 8, 9), sample)
        assert all(loss.shape == () for loss in losses.values())


def test_segments_of_an_image_are_read_together():
    """As often for many labels as for few."""
    counts = []
    for things in (2, 40):
        boxes = torch.tensor([[0.0, 0, 9, 9]]).repeat(things, 1)
        classes = torch.zeros(things, dtype=torch.int64)
        labels = make_labels(boxes, torch.rand(things), classes, [1], (30, 30))
        assignment = torch.arange(900).view(30, 30) % len(labels)
        probabilities = torch.rand(2, 30, 30)
        with Reads() as reads:
            segmentation, segments = panoptic_result(assignment, probabilities, labels)
            segments_to_instances(segmentation, segments)
        assert len(segments) == len(labels)
        counts.append(reads.count)
    assert counts[0] == counts[1]
