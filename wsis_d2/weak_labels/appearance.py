# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""How each class looks in one photograph, learnt from a first guess of where it is.

Addition, not in the paper.

A segmenter of all photographs cannot know that this street's pavement is lighter than its road.
GrabCut (Rother et al., 2004) learns the colours of an object and of its surroundings from a guess
of both; here every class of the photograph has such a model: a mixture of Gaussians of colour and
local contrast.
"""

import cv2
import numpy as np

from wsis_d2.utils.errors import InputError

#: Deviation in pixels of the blur of colours, and of the windows of contrast.
_COLOUR_BLUR, _CONTRAST_BLUR = 1.0, 2.0
#: What contrast is multiplied by to count like a difference of colour.
_CONTRAST = 3.0
#: Colours are known to this deviation, in steps of 255: no Gaussian is narrower.
_NARROWEST = 4.0
#: Pixels (sum of probabilities) below which a class has no model.
_FEWEST = 30.0
#: Pixels that a mixture is fitted to at most, evenly spread.
_MOST = 4000
_FITS = 4
_TINY = 1e-9


def weigh_by_appearance(
    distribution: np.ndarray,
    image: np.ndarray,
    weight: float = 1.0,
    components: int = 2,
    iterations: int = 3,
) -> np.ndarray:
    """Multiply a distribution by how likely each class has the pixel's looks, in this image.

    Each iteration fits a mixture to each class, weighted by the last result, and multiplies the
    given distribution by the likelihoods. Classes are not added: what has no probability keeps
    none. A class of fewer than 30 pixels has no model; at each pixel it is taken to be e times as
    unlikely as the likeliest class.

    Args:
        distribution: (C, H, W) float, 0 or above; sums of 1 over C, or 0 where nothing is known.
        image: (H, W, 3) uint8; with one component the order of its channels does not matter, with
            more a fit begins in the order of the first channel, so keep to one.
        weight: power of the likelihoods, 0 or above; 0: the distribution as it is.
        components: Gaussians of a class.
        iterations: of fitting and weighing.

    Returns:
        (C, H, W) float32, sums of 1 or 0 over C.

    Raises:
        InputError: a weight below 0.
        ValueError: shapes that do not fit.
    """
    check_weight(weight, "weight")
    if distribution.ndim != 3 or image.shape != (*distribution.shape[1:], 3):
        raise ValueError(
            f"distribution: shape {distribution.shape}, image: {image.shape}; expected (C, H, W) "
            "and (H, W, 3)"
        )
    given = distribution.reshape(len(distribution), -1).astype(np.float32)
    if weight == 0:
        return given.reshape(distribution.shape)
    looks = _looks(image)
    result = np.zeros_like(given)
    classes = np.flatnonzero(given.any(1))
    if not len(classes):
        return result.reshape(distribution.shape)
    own = given[classes]
    possible = own > 0
    logs = np.log(own, where=possible, out=np.full(own.shape, -np.inf, np.float32))
    share = own
    for _ in range(iterations):
        modelled = share.sum(1) >= _FEWEST
        if not modelled.any():
            break
        powers = np.full(own.shape, -np.inf, np.float32)
        for number in np.flatnonzero(modelled):
            where = possible[number]
            mixture = _fit(looks[where], share[number, where], components)
            powers[number, where] = _densities(looks[where], mixture)
        best = powers.max(0)
        best[~np.isfinite(best)] = 0.0
        powers[~modelled] = best - 1.0
        powers -= best
        powers *= np.float32(weight)
        powers += logs
        top = powers.max(0)
        powers -= np.where(np.isfinite(top), top, 0.0)
        share = np.exp(powers, out=powers)
        share /= np.maximum(share.sum(0), _TINY)
    result[classes] = share
    return result.reshape(distribution.shape)


def check_weight(weight: float, key: str) -> None:
    """Raise InputError for a weight that means nothing."""
    if not weight >= 0:
        raise InputError(f"{key} is {weight}, expected 0 (off) or more")


def _looks(image: np.ndarray) -> np.ndarray:
    """Return blurred colours and local contrast of each pixel, (H * W, 4) float32."""
    colours = image.astype(np.float32)
    grey = colours.mean(2)
    edges = np.abs(grey - _blur(grey, _CONTRAST_BLUR))
    contrast = _CONTRAST * _blur(edges, _CONTRAST_BLUR)
    return np.dstack([_blur(colours, _COLOUR_BLUR), contrast]).reshape(grey.size, 4)


def _blur(planes: np.ndarray, deviation: float) -> np.ndarray:
    return cv2.GaussianBlur(planes, (0, 0), deviation)


def _fit(looks: np.ndarray, weights: np.ndarray, components: int) -> list[tuple]:
    """Return (log share, mean, inverse Cholesky factor) of each Gaussian of weighted pixels.

    Expectation maximisation, begun from parts of equal weight in the order of the first channel.
    """
    kept = weights > 1e-3 * weights.max()
    looks, weights = looks[kept], weights[kept].astype(np.float64)
    step = len(looks) // _MOST + 1
    looks, weights = looks[::step].astype(np.float64), weights[::step]
    order = np.argsort(looks[:, 0], kind="stable")
    below = np.cumsum(weights[order]) / weights.sum()
    part = np.minimum((below * components).astype(int), components - 1)
    shares = np.zeros((components, len(looks)))
    shares[part, order] = 1.0
    mixture: list[tuple] = []
    for _ in range(_FITS if components > 1 else 1):
        if mixture:
            logs = np.stack([_log_density(looks, *gaussian) for gaussian in mixture])
            shares = np.exp(logs - logs.max(0))
            shares /= shares.sum(0)
        mixture = []
        for own in shares * weights:
            total = own.sum()
            if total < 1e-3:
                continue
            mean = own @ looks / total
            offsets = looks - mean
            covariance = (offsets * own[:, None]).T @ offsets / total
            factor = np.linalg.cholesky(covariance + _NARROWEST**2 * np.eye(len(mean)))
            mixture.append((np.log(total / weights.sum()), mean, np.linalg.inv(factor)))
    return mixture


def _densities(looks: np.ndarray, mixture: list[tuple]) -> np.ndarray:
    """Return the log density of a mixture at each pixel, up to a constant of all mixtures."""
    return np.logaddexp.reduce([_log_density(looks, *gaussian) for gaussian in mixture])


def _log_density(
    looks: np.ndarray, share: float, mean: np.ndarray, inverse: np.ndarray
) -> np.ndarray:
    whitened = (looks - mean.astype(looks.dtype)) @ inverse.T.astype(looks.dtype)
    constant = share + np.log(np.diag(inverse)).sum()
    return looks.dtype.type(constant) - np.einsum("nd,nd->n", whitened, 0.5 * whitened)
