# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Contour strength of an image: how likely a pixel lies on the outline of something.

Addition, not in the paper: MCG's own detector is a structured forest, whose weights are not free.
Soft histograms of colour and texture energies are smoothed at several widths; the structure
tensor of each map tells how strongly it changes there, and how much in one direction: a quick
relative of comparing the halves of a disc (gPb). A small network, trained on generated scenes
(``tools/train_contours.py``), weighs these. Without weights, the colour gradient serves.
"""

import functools
import hashlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from wsis_d2.utils.errors import InputError
from wsis_d2.utils.files import file_stamp
from wsis_d2.weak_labels.proposals.compiled import njit

WEIGHTS = Path(__file__).with_name("contour_weights.npz")
#: Widths of smoothing in pixels, each with the factor the maps are scaled down by for it.
_SIGMAS = ((1.0, 1), (2.0, 2), (4.0, 4), (8.0, 8))
_BINS = 6
_MOST_BYTES = 64 << 20  # of a file of weights, unpacked
_EDGE = {"borderType": cv2.BORDER_REPLICATE}
#: Half the side of the surroundings that fine strength is compared with, pixels.
_CONTEXT = 24
NUM_FEATURES = 4 * (2 * len(_SIGMAS) + 1) + len(_SIGMAS)


def to_lab(image: np.ndarray) -> np.ndarray:
    """Return an image, (H, W, 3) uint8 BGR, as CIE Lab, float32."""
    return cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_BGR2LAB)


def gradient_contours(image: np.ndarray) -> np.ndarray:
    """Contours without learned weights: the colour gradient over two widths.

    Args:
        image: (H, W, 3) uint8 BGR.

    Returns:
        (H, W) float32 in [0, 1].
    """
    lab = to_lab(image)
    squares = np.zeros(lab.shape[:2], np.float32)
    for sigma in (1.0, 2.0):
        smooth = _blur(lab, sigma)
        for order in ((1, 0), (0, 1)):
            slope = cv2.Scharr(smooth, cv2.CV_32F, *order, scale=1 / 32, **_EDGE)
            squares += sigma**2 * (slope**2).sum(axis=2)
    strength = np.sqrt(squares)
    return strength / (strength + 10.0)


class Contours:
    """A contour detector: (H, W, 3) uint8 BGR to (H, W) float32 in [0, 1].

    Attributes:
        digest: what it is, for recipes.
    """

    def __init__(self, detect: Callable[[np.ndarray], np.ndarray], digest: str) -> None:
        self._detect = detect
        self.digest = digest

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return contour strength."""
        return self._detect(image)


def make_contours(name: str, weights: str = "") -> Contours:
    """Return a detector by name: "learned", "gradient" or "structured".

    Args:
        name: which.
        weights: a file; "" is the shipped network. "structured" has none of its own.

    Raises:
        InputError: no such detector, or its file or OpenCV module is not there.
    """
    return _made(name, weights, file_stamp(weights or WEIGHTS))


@functools.lru_cache(maxsize=4)
def _made(name: str, weights: str, stamp: tuple[int, ...]) -> Contours:
    if name == "gradient":
        if weights:
            raise InputError(
                f"WEAK_LABELS.PROPOSALS.PATH is {weights!r}, and contours by gradient have no "
                "weights; leave it empty, or set PROPOSALS.CONTOURS learned"
            )
        return Contours(gradient_contours, "gradient")
    if name == "learned":
        net = load_weights(weights or WEIGHTS, stamp)
        return Contours(lambda image: net(contour_features(image)), net.digest)
    if name == "structured":
        return _structured(weights)
    raise InputError(
        f"WEAK_LABELS.PROPOSALS.CONTOURS: {name!r}, expected learned, gradient or structured"
    )


def _structured(path: str) -> Contours:
    """Load a structured forest through OpenCV; such models have licences of their own."""
    if not hasattr(cv2, "ximgproc"):
        raise InputError(
            "WEAK_LABELS.PROPOSALS.CONTOURS structured: OpenCV's contrib modules are missing; "
            "replace opencv-python-headless by opencv-contrib-python-headless"
        )
    if not path or not os.path.exists(path):
        raise InputError(
            f"WEAK_LABELS.PROPOSALS.PATH: {path!r}, expected the file of a structured "
            "forest (model.yml.gz)"
        )
    forest = cv2.ximgproc.createStructuredEdgeDetection(path)
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]

    def detect(image: np.ndarray) -> np.ndarray:
        rgb = cv2.cvtColor(image, cv2.COLOR_BGR2RGB).astype(np.float32) / 255
        return np.clip(forest.detectEdges(rgb), 0, 1).astype(np.float32)

    return Contours(detect, digest)


class ContourWeights:
    """A perceptron over :func:`contour_features`; ``layers`` are (weight, bias) pairs."""

    def __init__(self, layers: list[tuple[np.ndarray, np.ndarray]], digest: str) -> None:
        self.layers = layers
        self.digest = digest

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Return contour strength, (H, W) float32 in [0, 1], of (H, W, F) float32 features."""
        x = features.reshape(-1, features.shape[2])
        for number, (weight, bias) in enumerate(self.layers):
            x = x @ weight
            x += bias
            if number < len(self.layers) - 1:
                np.maximum(x, 0, out=x)
        np.clip(x, -30, 30, out=x)
        return (1 / (1 + np.exp(-x))).reshape(features.shape[:2]).astype(np.float32)


@functools.lru_cache(maxsize=2)
def load_weights(path: str | os.PathLike = WEIGHTS, stamp: tuple[int, ...] = ()) -> ContourWeights:
    """Read weights written by ``tools/train_contours.py``, once while ``stamp`` is one.

    Raises:
        InputError: not such a file, or made for other features.
    """
    try:
        content = Path(path).read_bytes()
        with zipfile.ZipFile(path) as archive:
            if sum(part.file_size for part in archive.infolist()) > _MOST_BYTES:
                raise ValueError(f"it unpacks to more than {_MOST_BYTES >> 20} MB")
        with np.load(path, allow_pickle=False) as file:
            count = sum(name.startswith("weight") for name in file.files)
            layers = [
                (file[f"weight{k}"].astype(np.float32), file[f"bias{k}"].astype(np.float32))
                for k in range(count)
            ]
        widths = [NUM_FEATURES, *(len(bias) for _, bias in layers)]
        for (weight, bias), inputs in zip(layers, widths, strict=False):
            if weight.shape != (inputs, *bias.shape) and weight is not layers[0][0]:
                raise ValueError("its layers do not fit one another")
            if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
                raise ValueError("its numbers are not finite")
        if layers and layers[-1][1].shape != (1,):
            raise ValueError("its last layer gives more than one number")
    except Exception as error:  # NumPy's reader raises almost anything over a broken file
        raise InputError(
            f"{path}: no contour weights ({str(error)[:120]}); make some with "
            "tools/train_contours.py, or set WEAK_LABELS.PROPOSALS.CONTOURS gradient"
        ) from None
    if not layers or layers[0][0].shape[0] != NUM_FEATURES:
        raise InputError(
            f"{path}: contour weights for other features than this version's {NUM_FEATURES}; train "
            "them again with tools/train_contours.py"
        )
    return ContourWeights(layers, hashlib.sha256(content).hexdigest()[:16])


def contour_features(image: np.ndarray) -> np.ndarray:
    """Return what the network sees of each pixel, (H, W, F) float32.

    For L, a, b and texture, and each width: strength (square root of the structure tensor's large
    eigenvalue) and share of one direction; then the fine strength against its surroundings; then
    the plain Lab gradient of each width.
    """
    height, width = image.shape[:2]
    lab = to_lab(image)
    cues = [
        _soft_histogram(lab[..., 0], 0, 100),
        _soft_histogram(lab[..., 1], -60, 60),
        _soft_histogram(lab[..., 2], -60, 60),
        texture_energies(lab[..., 0]),
    ]
    maps = np.concatenate([*cues, lab / 25], axis=2)
    ends = np.cumsum([0, *(c.shape[2] for c in cues), 3])
    out = np.empty((height, width, NUM_FEATURES), np.float32)
    column = 0
    for sigma, factor in _SIGMAS:
        if factor > 1:
            maps = _halve(maps)
        strengths, shares = _structure(_blur(maps, sigma / factor), ends, sigma / factor)
        for k in range(5):
            strength, share = strengths[k], shares[k]
            if factor != 1:
                strength = cv2.resize(strength, (width, height), interpolation=cv2.INTER_LINEAR)
                share = cv2.resize(share, (width, height), interpolation=cv2.INTER_LINEAR)
            out[..., column] = strength
            column += 1
            if k < 4:
                out[..., column] = share
                column += 1
    for k in range(4):
        fine = out[..., 2 * k]
        around = cv2.blur(fine, (2 * _CONTEXT + 1,) * 2, **_EDGE)
        out[..., column] = fine / (fine + around + 0.02)
        column += 1
    return out


def _soft_histogram(plane: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return how much each pixel belongs to each of a few evenly spaced values, (H, W, B)."""
    position = np.clip((plane - low) / (high - low), 0, 1) * (_BINS - 1)
    centres = np.arange(_BINS, dtype=np.float32)
    return np.maximum(0, 1 - np.abs(position[..., None] - centres))


def texture_energies(lightness: np.ndarray) -> np.ndarray:
    """Return energies of oriented filters at two widths, (H, W, 8), of lightness (0..100)."""
    planes = []
    for sigma in (1.0, 2.0):
        smooth = _blur(lightness / 25, sigma)
        xx = cv2.Sobel(smooth, cv2.CV_32F, 2, 0, ksize=3, **_EDGE)
        yy = cv2.Sobel(smooth, cv2.CV_32F, 0, 2, ksize=3, **_EDGE)
        xy = cv2.Sobel(smooth, cv2.CV_32F, 1, 1, ksize=3, **_EDGE)
        for second in (xx, yy, (xx + yy) / 2 + xy, (xx + yy) / 2 - xy):
            energy = cv2.blur(np.abs(second), (5, 5), **_EDGE)
            planes.append(np.sqrt(np.maximum(sigma * energy, 0)))  # running sums dip below 0
    return np.stack(planes, axis=2)


def _blur(maps: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(maps, (0, 0), sigma, **_EDGE)


def _halve(maps: np.ndarray) -> np.ndarray:
    """Return means of 2 x 2 pixels; an odd last row or column is repeated first."""
    odd = (0, maps.shape[0] % 2), (0, maps.shape[1] % 2), (0, 0)
    if maps.shape[0] % 2 or maps.shape[1] % 2:
        maps = np.pad(maps, odd, mode="edge")
    return (maps[::2, ::2] + maps[1::2, ::2] + maps[::2, 1::2] + maps[1::2, 1::2]) / 4


@njit(error_model="numpy")
def _structure(maps, ends, scale):
    """Return strength and share of one direction of each group of maps, both (G, H, W).

    Group g is ``maps[..., ends[g]:ends[g + 1]]``. Derivatives are central differences, the
    outermost pixels repeated.
    """
    height, width, _ = maps.shape
    groups = len(ends) - 1
    strengths = np.empty((groups, height, width), np.float32)
    shares = np.empty((groups, height, width), np.float32)
    for y in range(height):
        above, below = max(y - 1, 0), min(y + 1, height - 1)
        for x in range(width):
            left, right = max(x - 1, 0), min(x + 1, width - 1)
            for g in range(groups):
                jxx = np.float32(0)
                jyy = np.float32(0)
                jxy = np.float32(0)
                for c in range(ends[g], ends[g + 1]):
                    dx = maps[y, right, c] - maps[y, left, c]
                    dy = maps[below, x, c] - maps[above, x, c]
                    jxx += dx * dx
                    jyy += dy * dy
                    jxy += dx * dy
                middle = (jxx + jyy) / 8
                spread = np.sqrt(((jxx - jyy) / 8) ** 2 + (jxy / 4) ** 2)
                strengths[g, y, x] = scale * np.sqrt(middle + spread)
                shares[g, y, x] = spread / (middle + 1e-5)
    return strengths, shares
