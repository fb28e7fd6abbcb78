# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Probabilities to labels: with and without the dense CRF."""

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg

from wsis_d2.config import add_wsis_config
from wsis_d2.utils.errors import InputError
from wsis_d2.weak_labels.refine import RefineOptions, labels_from_probabilities


@pytest.fixture
def case():
    """A picture of two colours whose probabilities have holes."""
    generator = torch.Generator().manual_seed(0)
    image = np.zeros((24, 32, 3), np.uint8)
    image[:, 16:] = (200, 120, 40)
    truth = torch.zeros(24, 32, dtype=torch.long)
    truth[:, 16:] = 1
    probabilities = torch.full((3, 24, 32), 0.1)
    probabilities.scatter_(0, truth[None], 0.8)
    wrong = torch.rand(24, 32, generator=generator) < 0.1
    flipped = probabilities[[1, 0, 2]]
    return torch.where(wrong, flipped, probabilities), image, truth.numpy(), wrong.numpy()


def test_without_refinement_labels_are_the_most_probable(case):
    probabilities, image, truth, wrong = case
    labels, scores = labels_from_probabilities(probabilities, image, RefineOptions(enabled=False))
    assert labels.dtype == np.uint8 and scores.dtype == np.float32
    np.testing.assert_array_equal(labels, np.where(wrong, 1 - truth, truth))
    np.testing.assert_allclose(scores, 0.8, rtol=1e-6)


def test_refinement_follows_the_picture(case):
    probabilities, image, truth, wrong = case
    labels, scores = labels_from_probabilities(probabilities, image, RefineOptions())
    assert wrong.sum() > 30
    np.testing.assert_array_equal(labels, truth)
    assert 0.5 < scores.min() and scores.max() <= 1


def test_scores_are_those_of_the_refined_map(case):
    probabilities, image, _, wrong = case
    _, before = labels_from_probabilities(probabilities, image, RefineOptions(enabled=False))
    _, after = labels_from_probabilities(probabilities, image, RefineOptions())
    assert not np.allclose(before, after)
    assert after[~wrong].mean() > before.mean()


def test_the_defaults_are_deeplabs_and_come_from_the_config():
    cfg = get_cfg()
    add_wsis_config(cfg)
    options = RefineOptions.from_config(cfg)
    assert options == RefineOptions()
    assert (options.bilateral_weight, options.bilateral_xy, options.bilateral_rgb) == (4, 49, 5)
    assert (options.gaussian_weight, options.gaussian_xy, options.iterations) == (3, 3, 10)


def test_agrees_with_the_optional_package(case):
    pytest.importorskip("pydensecrf")
    probabilities, image, _, _ = case
    ours, _ = labels_from_probabilities(probabilities, image, RefineOptions())
    theirs, _ = labels_from_probabilities(probabilities, image, RefineOptions(backend="pydensecrf"))
    assert (ours == theirs).mean() > 0.99


def test_shapes_that_do_not_fit_are_named(case):
    probabilities, image, _, _ = case
    with pytest.raises(ValueError, match="image: shape \\(24, 31, 3\\)"):
        labels_from_probabilities(probabilities, image[:, 1:], RefineOptions())
    with pytest.raises(ValueError, match="probabilities: shape \\(24, 32\\)"):
        labels_from_probabilities(probabilities[0], image, RefineOptions())


def test_what_a_class_cannot_have_goes_to_those_that_can():
    probabilities = torch.tensor([0.5, 0.3, 0.2]).view(3, 1, 1).expand(3, 4, 6)
    image = np.zeros((4, 6, 3), np.uint8)
    possible = np.ones((3, 4, 6), bool)
    possible[0, :, 3:] = False
    possible[:, 0, 0] = False  # crops contradict: as predicted
    off = RefineOptions(enabled=False)
    labels, scores = labels_from_probabilities(probabilities, image, off, possible)
    assert (labels[:, :3] == 0).all() and (labels[:, 3:] == 1).all()
    np.testing.assert_allclose(scores[:, :3], 0.5, rtol=1e-6)
    np.testing.assert_allclose(scores[:, 3:], 0.6, rtol=1e-6)
    with pytest.raises(ValueError, match="possible: shape \\(3, 4, 5\\)"):
        labels_from_probabilities(probabilities, image, off, possible[..., 1:])


def test_refinement_does_not_bring_back_what_was_ruled_out(case):
    probabilities, image, truth, _ = case
    possible = np.ones(tuple(probabilities.shape), bool)
    possible[1, :, 16:24] = False  # the right half is class 1
    without, _ = labels_from_probabilities(probabilities, image, RefineOptions())
    within, _ = labels_from_probabilities(probabilities, image, RefineOptions(), possible)
    assert (without[:, 16:24] == 1).all()
    assert not (within[:, 16:24] == 1).any() and (within[:, 24:] == 1).mean() > 0.9


def test_factors_weigh_the_classes_and_the_sum_is_one_again():
    probabilities = torch.tensor([0.6, 0.3, 0.1]).view(3, 1, 1).expand(3, 4, 6)
    image = np.zeros((4, 6, 3), np.uint8)
    factors = np.array([1, 4, 1], np.float32)
    possible = np.ones((3, 4, 6), bool)
    possible[1, 0] = False
    off = RefineOptions(enabled=False)
    labels, scores = labels_from_probabilities(probabilities, image, off, possible, factors)
    assert (labels[1:] == 1).all() and (labels[0] == 0).all()
    np.testing.assert_allclose(scores[1:], 1.2 / 1.9, rtol=1e-6)
    np.testing.assert_allclose(scores[0], 6 / 7, rtol=1e-6)
    with pytest.raises(ValueError, match="factors: shape \\(2,\\), 3 classes"):
        labels_from_probabilities(probabilities, image, off, None, factors[1:])


def test_appearance_weighs_what_annotation_allows_before_the_crf(case):
    probabilities, image, truth, _ = case
    guess = torch.full_like(probabilities, 1 / 3)
    guess[:, :, :8] = torch.tensor([0.4, 0.2, 0.4])[:, None, None]
    guess[:, :, 24:] = torch.tensor([0.2, 0.4, 0.4])[:, None, None]
    possible = np.ones(guess.shape, bool)
    possible[2] = False
    off = RefineOptions(enabled=False)
    plain, _ = labels_from_probabilities(guess, image, off, possible)
    assert (plain != truth).mean() > 0.2
    looks = RefineOptions(enabled=False, appearance_weight=1.0)
    labels, scores = labels_from_probabilities(guess, image, looks, possible)
    flat = np.r_[0:12, 20:32]  # away from the edge, where contrast is nobody's
    np.testing.assert_array_equal(labels[:, flat], truth[:, flat])
    assert scores[:, flat].min() > 0.9
    both, _ = labels_from_probabilities(
        guess, image, RefineOptions(appearance_weight=1.0), possible
    )
    np.testing.assert_array_equal(both, truth)


@pytest.mark.parametrize(
    ("key", "value"),
    [("class_balance", -0.1), ("appearance_weight", -1.0)],
)
def test_refuses_factors_that_make_no_sense(key, value):
    with pytest.raises(InputError, match=f"(REFINE.{key.upper()}|{key}) is {value}"):
        RefineOptions(**{key: value})
