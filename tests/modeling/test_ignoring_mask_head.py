# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The mask loss with unknown pixels, against Detectron2's loss and by hand."""

import pytest
import torch
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_loss
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.nn.functional import softplus

from wsis_d2.modeling.ignoring_mask_head import mask_loss

SIDE = 4


def batch(ignore=None):
    """Two proposals that are their images' whole 4 x 4 pixels, and an image without any."""
    torch.manual_seed(0)
    instances = []
    for count in (2, 0):
        one = Instances((SIDE, SIDE))
        one.proposal_boxes = Boxes(torch.tensor([[0.0, 0.0, SIDE, SIDE]]).repeat(count, 1))
        one.gt_classes = torch.arange(count)
        one.gt_masks = BitMasks(torch.rand(count, SIDE, SIDE) > 0.5)
        if ignore is not None:
            one.gt_ignore = BitMasks(ignore[:count])
        instances.append(one)
    return torch.randn(2, 3, SIDE, SIDE, requires_grad=True), instances


@pytest.mark.parametrize("ignore", [None, torch.zeros(2, SIDE, SIDE, dtype=torch.bool)])
def test_with_all_known_it_is_detectron2s(ignore):
    logits, instances = batch(ignore)
    with EventStorage():
        expected = mask_rcnn_loss(logits, instances)
    torch.testing.assert_close(mask_loss(logits, instances), expected)
    agnostic = logits[:, :1]
    with EventStorage():
        expected = mask_rcnn_loss(agnostic, instances)
    torch.testing.assert_close(mask_loss(agnostic, instances), expected)


def test_unknown_pixels_do_not_count():
    ignore = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    ignore[0, :2], ignore[1] = True, True
    logits, instances = batch(ignore)
    loss = mask_loss(logits, instances)
    true = instances[0].gt_masks.tensor[0, 2:].float()
    seen = logits[0, 0, 2:]
    by_hand = (softplus(seen) - true * seen).mean()  # of the eight known pixels
    torch.testing.assert_close(loss, by_hand)
    loss.backward()
    assert (logits.grad[0, 0, 2:] != 0).all()
    assert logits.grad[0, 0, :2].abs().sum() == 0 and logits.grad[1].abs().sum() == 0


def test_nothing_known_is_no_loss():
    ignore = torch.ones(2, SIDE, SIDE, dtype=torch.bool)
    logits, instances = batch(ignore)
    assert mask_loss(logits, instances) == 0
    assert mask_loss(logits[:0], instances[1:]) == 0
