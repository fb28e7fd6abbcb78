# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""What tags and boxes say of a prediction, against values by hand."""

import math

import pytest
import torch

from wsis_d2.modeling.annotation_losses import AnnotationLosses

SKY, SEA, BOAT = 0, 1, 2


def losses(**options):
    return AnnotationLosses(3, [BOAT], **options)


def sample(height=48, width=48):
    """Sky and sea in the left half, sky alone in the right; a boat's box across both."""
    return {
        "image": torch.zeros(3, height, width),
        "crops": [(0, 0, 24, 48), (24, 0, 48, 48)],
        "crop_targets": torch.tensor([[1.0, 1.0, -1.0], [1.0, 0.0, 1.0]]),
        "boxes": [((16, 16, 32, 32), BOAT, False), ((0, 40, 8, 48), BOAT, True)],
        "has_boxes": True,
    }


def test_tags_and_boxes_say_where_a_class_is_possible():
    allowed = losses().possible(sample(), (12, 12))
    assert allowed[SKY].all()
    assert allowed[SEA, :, :6].all() and not allowed[SEA, :, 6:].any()
    boat = torch.zeros(12, 12, dtype=torch.bool)
    boat[4:8, 4:8] = True
    boat[10:12, 0:2] = True  # a group's box counts
    assert torch.equal(allowed[BOAT], boat)
    free = losses().possible({**sample(), "has_boxes": False}, (12, 12))
    assert free[BOAT].all()


def test_no_stuff_is_possible_where_no_window_tells_of_any():
    part = {
        **sample(),
        "crops": sample()["crops"][:1],
        "crop_targets": sample()["crop_targets"][:1],
    }
    allowed = losses().possible(part, (12, 12))
    assert allowed[[SKY, SEA], :, :6].all() and not allowed[[SKY, SEA], :, 6:].any()
    nothing = losses().possible({**sample(), "crops": [], "crop_targets": []}, (12, 12))
    assert not nothing[[SKY, SEA]].any() and nothing[BOAT].any()


def test_losses_by_hand():
    p = torch.zeros(3, 12, 12)
    p[SKY], p[SEA], p[BOAT] = 0.5, 0.3, 0.2
    p[:, :, 6:] = torch.tensor([0.6, 0.1, 0.3]).view(3, 1, 1)
    found = {k: float(v) for k, v in losses(tag_share=0.5, box_share=0.25)(p, sample()).items()}
    # Possible mass: left 0.8, in boxes 1 (8 + 4 cells); right 0.6, in the box 0.9 (8 cells).
    wanted = -(60 * math.log(0.8) + 12 * math.log(1.0) + 64 * math.log(0.6) + 8 * math.log(0.9))
    assert found["possible"] == pytest.approx(wanted / 144, rel=1e-5)
    wanted = -(math.log(0.5) + math.log(0.3) + math.log(0.6)) / 3
    assert found["tags"] == pytest.approx(wanted, rel=1e-5)
    assert found["boxes"] == pytest.approx(-math.log(0.3), rel=1e-5)

    def entropy(*shares):
        total = sum(shares)
        return -sum(s / total * math.log(s / total) for s in shares)

    wanted = 60 * entropy(0.5, 0.3) + 12 * entropy(0.5, 0.3, 0.2) + 8 * entropy(0.6, 0.3)
    assert found["entropy"] == pytest.approx(wanted / 144, rel=1e-4)


def test_weights_multiply_and_zero_leaves_out():
    p = torch.full((3, 12, 12), 1 / 3)
    plain = losses()(p, sample())
    weighted = losses(box_weight=0.5, entropy_weight=0.0)(p, sample())
    assert set(weighted) == {"possible", "tags", "boxes"}
    assert float(weighted["boxes"]) == pytest.approx(0.5 * float(plain["boxes"]))
    assert torch.equal(weighted["tags"], plain["tags"])


def test_what_a_crop_has_cut_tells_what_is_possible_and_not_what_must_show():
    """The image is the lower right quarter of a larger one: one window whole, two cut, one gone."""
    cut = {
        "image": torch.zeros(3, 48, 48),
        "crops": [(0, 0, 48, 48), (-24, 0, 24, 48), (24, -2, 48, 48), (-90, 0, -10, 48)],
        "crop_targets": torch.tensor(
            [[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
        ),
        "boxes": [((40, 40, 60, 60), BOAT, False), ((100, 100, 120, 120), BOAT, False)],
        "has_boxes": True,
    }
    allowed = losses().possible(cut, (12, 12))
    assert allowed[SEA].all() and not allowed[SKY, :, :6].any() and allowed[SKY, :, 6:].all()
    boat = torch.zeros(12, 12, dtype=torch.bool)
    boat[10:, 10:] = True
    assert torch.equal(allowed[BOAT], boat)
    p = torch.full((3, 12, 12), 0.2)
    p[SKY], p[SEA] = 0.5, 0.3
    found = losses()(p, cut)
    # The whole window's two classes, and the two of the window that lacks two of its fifty rows.
    wanted = -(2 * math.log(0.5) + 2 * math.log(0.3)) / 4
    assert float(found["tags"]) == pytest.approx(wanted, rel=1e-5)
    assert float(found["boxes"]) == 0.0  # neither box is whole


def test_gradients_against_finite_differences():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 12, 12, generator=generator, dtype=torch.float64, requires_grad=True)
    terms = losses(tag_share=0.1, box_share=0.5)
    names = sorted(terms.weights)

    def values(x):
        found = terms(x.softmax(0), sample())
        return torch.stack([found[name] for name in names])

    assert torch.autograd.gradcheck(values, logits)
