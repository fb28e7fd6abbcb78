# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""How classes look in one photograph: beside SciPy's Gaussians, and on pictures of known parts."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import multivariate_normal

from wsis_d2.utils.errors import InputError
from wsis_d2.weak_labels.appearance import weigh_by_appearance


def street(rng, noise=6.0):
    """A grey road with a lighter pavement on its right, slanting; and where they are."""
    rows, columns = np.mgrid[:60, :80]
    pavement = columns > 40 + rows / 3
    image = np.where(pavement[..., None], (150, 145, 140), (110, 110, 112)).astype(float)
    image += rng.normal(0, noise, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), pavement


def test_a_rough_guess_takes_the_outline_of_the_colours():
    image, pavement = street(np.random.default_rng(0))
    guess = np.full((3, 60, 80), 0.5, np.float32)
    guess[2] = 0.0  # a class that annotation rules out
    guess[1, :, 62:], guess[0, :, 62:] = 0.7, 0.3
    guess[1, :, :30], guess[0, :, :30] = 0.3, 0.7
    found = weigh_by_appearance(guess, image)
    assert (guess.argmax(0) == pavement).mean() < 0.87
    assert (found.argmax(0) == pavement).mean() > 0.95
    surer = weigh_by_appearance(guess, image, components=1, iterations=6)
    assert (surer.argmax(0) == pavement).mean() > 0.98
    assert found.dtype == np.float32 and not found[2].any()
    np.testing.assert_allclose(found.sum(0), 1.0, rtol=1e-5)


def test_a_class_of_two_colours_needs_two_gaussians():
    rng = np.random.default_rng(1)
    image = rng.normal(0, 4, (40, 90, 3)) + 100
    image[:, :30] += 60  # class 0 is light on the left and dark on the right of class 1
    image[:, 60:] -= 60
    image = image.astype(np.uint8)
    guess = np.full((2, 40, 90), 0.5)
    guess[0, :, :25] = guess[0, :, 65:] = 0.65
    guess[0, :, 35:55] = 0.35
    guess[1] = 1 - guess[0]
    truth = np.ones((40, 90), int)
    truth[:, :30] = truth[:, 60:] = 0
    one = weigh_by_appearance(guess, image, components=1).argmax(0)
    two = weigh_by_appearance(guess, image, components=2).argmax(0)
    assert (one == truth).mean() < 0.75  # its mean is the colour of the other class
    inside = np.r_[0:26, 34:56, 64:90]  # contrast tells an edge's pixels from both
    np.testing.assert_array_equal(two[:, inside], truth[:, inside])


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_one_gaussian_and_one_iteration_are_those_of_scipy(weight):
    rng = np.random.default_rng(2)
    image, _ = street(rng, noise=20.0)
    guess = rng.dirichlet([1.0, 1.0, 1.0], (60, 80)).transpose(2, 0, 1)
    guess[2, :30] = 0.0
    guess /= guess.sum(0)
    colours = image.astype(float)
    blurred = gaussian_filter(colours, (1, 1, 0), mode="mirror")
    grey = colours.mean(2)
    contrast = np.abs(grey - gaussian_filter(grey, 2, mode="mirror"))
    contrast = 3 * gaussian_filter(contrast, 2, mode="mirror")
    looks = np.dstack([blurred, contrast]).reshape(-1, 4)
    wanted = np.zeros((3, 4800))
    for class_id, own in enumerate(guess.reshape(3, -1)):
        fitted = looks[own > 1e-3 * own.max()]
        weights = own[own > 1e-3 * own.max()]
        step = len(fitted) // 4000 + 1  # of many pixels every other one is looked at
        fitted, weights = fitted[::step], weights[::step]
        covariance = np.cov(fitted.T, aweights=weights, ddof=0) + 16 * np.eye(4)
        mean = np.average(fitted, axis=0, weights=weights)
        wanted[class_id] = own * multivariate_normal(mean, covariance).pdf(looks) ** weight
    wanted /= wanted.sum(0)
    found = weigh_by_appearance(guess, image, weight, components=1, iterations=1)
    np.testing.assert_allclose(found.reshape(3, -1), wanted, atol=2e-3)


def test_the_order_of_the_channels_does_not_matter_for_one_gaussian():
    rng = np.random.default_rng(3)
    image, _ = street(rng)
    guess = rng.dirichlet([1.0, 1.0], (60, 80)).transpose(2, 0, 1)
    one = weigh_by_appearance(guess, image, components=1)
    other = weigh_by_appearance(guess, image[:, :, ::-1].copy(), components=1)
    np.testing.assert_allclose(one, other, atol=1e-3)


def test_what_is_not_known_stays_unknown_and_small_classes_have_no_model():
    rng = np.random.default_rng(4)
    image, pavement = street(rng)
    guess = np.zeros((3, 60, 80), np.float32)
    guess[0] = ~pavement
    guess[1] = pavement
    guess[:, :10] = 0.0  # nothing is known
    guess[:, 20, 5:10] = [[0.5], [0.0], [0.5]]  # 2.5 pixels of class 2
    found = weigh_by_appearance(guess, image)
    assert not found[:, :10].any()
    # No model: e times as unlikely as the likeliest class.
    np.testing.assert_allclose(found[2, 20, 5:10], 1 / (1 + np.e), rtol=1e-4)
    np.testing.assert_array_equal(found[1, 10:] > 0.5, pavement[10:])
    np.testing.assert_array_equal(weigh_by_appearance(guess, image, 0.0), guess)
    assert not weigh_by_appearance(np.zeros_like(guess), image).any()


def test_refuses_what_makes_no_sense():
    image, _ = street(np.random.default_rng(5))
    with pytest.raises(InputError, match="weight is -1"):
        weigh_by_appearance(np.zeros((2, 60, 80)), image, -1)
    with pytest.raises(ValueError, match=r"\(2, 60, 79\)"):
        weigh_by_appearance(np.zeros((2, 60, 79)), image)
