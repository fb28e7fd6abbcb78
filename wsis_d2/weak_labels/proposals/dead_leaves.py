# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Dead-leaves scenes: textured shapes that hide one another, with the true outlines.

Addition, not in the paper.

They have what photographs' statistics are made of (occlusion, all sizes, texture, shading, blur,
noise, compression), and belong to nobody: the contour network is trained on them.
"""

import cv2
import numpy as np

_TEXTURES = ("flat", "cloud", "cloud", "stripes", "checks", "spots")
_PHOTO_SHARE = 0.5


def draw_scene(
    rng: np.random.Generator,
    photographs: list[np.ndarray],
    height: int = 240,
    width: int = 320,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw one scene.

    Args:
        rng: where all chance comes from.
        photographs: (h, w, 3) uint8 BGR, textures are cut from them; may be empty.
        height, width: of the scene.

    Returns:
        image (H, W, 3) uint8 BGR; leaves (H, W) int32, which leaf is seen; photo (H, W) bool,
        where a leaf shows a photograph, so that edges inside it may be outlines of their own.
    """
    image = np.zeros((height, width, 3), np.float32)
    leaves = np.zeros((height, width), np.int32)
    photo = np.zeros((height, width), bool)
    number = int(rng.integers(10, 70))
    smallest = rng.uniform(4, 14)
    # Colours of one scene lie close together, as under one light: contrast must not be easy.
    colours = rng.uniform(30, 220) + rng.normal(0, 45, (6, 1)) + rng.normal(0, 14, (6, 3))
    for leaf in range(number + 1):
        # Radii follow a power law; leaf 0 is the ground.
        radius = min(smallest / np.sqrt(rng.uniform(0.003, 1)), 0.45 * height)
        inside = _shape(rng, height, width, radius) if leaf else np.ones((height, width), bool)
        if photographs and rng.uniform() < _PHOTO_SHARE:
            name, texture = "photo", _cut(rng, photographs, height, width)
        else:
            name = str(rng.choice(_TEXTURES))
            base = colours[rng.integers(len(colours))] + rng.normal(0, 8, 3)
            texture = _texture(rng, name, height, width, base)
        image[inside] = (texture * _shading(rng, height, width))[inside]
        leaves[inside] = leaf
        photo[inside] = name == "photo"
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.1))
    image += rng.normal(0, rng.uniform(0, 8), image.shape)
    image = np.clip(image * rng.uniform(0.7, 1.1), 0, 255).astype(np.uint8)
    quality = int(rng.integers(50, 96))
    _, code = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(code, cv2.IMREAD_COLOR), leaves, photo


def outlines(leaves: np.ndarray) -> np.ndarray:
    """Return the pixels on either side of an outline, (H, W) bool."""
    edge = np.zeros(leaves.shape, bool)
    across, down = leaves[:, 1:] != leaves[:, :-1], leaves[1:] != leaves[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return edge


def _shape(rng: np.random.Generator, height: int, width: int, radius: float) -> np.ndarray:
    centre = rng.uniform((-20, -20), (width + 20, height + 20))
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    kind = rng.choice(["ellipse", "blob", "polygon", "bar"])
    if kind == "polygon":
        corners = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 8))))
        points = rng.uniform(0.6, 1.3, (len(corners), 1)) * np.stack(
            [np.cos(corners), np.sin(corners)], axis=1
        )
    else:
        rim = np.ones(64)
        if kind == "blob":
            for order in range(2, 7):
                rim += rng.normal(0, 0.35 / order) * np.cos(
                    order * angles + rng.uniform(0, 2 * np.pi)
                )
        points = np.maximum(rim, 0.2)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        if kind == "bar":
            points = np.sign(points) * np.abs(points) ** 0.2 * (1.5, rng.uniform(0.08, 0.4))
    turn = rng.uniform(0, 2 * np.pi)
    points = points * (1, rng.uniform(0.5, 1)) * radius
    points = points @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [np.round((points + centre) * 16).astype(np.int32)], 1, shift=4)
    return mask.astype(bool)


def _texture(
    rng: np.random.Generator, name: str, height: int, width: int, base: np.ndarray
) -> np.ndarray:
    """Return a texture about a colour, (H, W, 3) float32."""
    if name == "flat":
        return np.broadcast_to(base, (height, width, 3)).astype(np.float32)
    if name == "cloud":
        noise = _cloud(rng, height, width, rng.uniform(0.6, 1.8))
        amount = (rng.normal(0, 1) + rng.normal(0, 0.3, 3)) * rng.uniform(5, 50)
        return (base + noise[..., None] * amount).astype(np.float32)
    other = base + rng.choice([-1, 1]) * rng.uniform(10, 90) + rng.normal(0, 12, 3)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x += 3 * _cloud(rng, height, width, 1.8)
    turn, period = rng.uniform(0, np.pi), rng.uniform(3, 24)
    along = (x * np.cos(turn) + y * np.sin(turn)) * 2 * np.pi / period
    over = (y * np.cos(turn) - x * np.sin(turn)) * 2 * np.pi / period
    if name == "stripes":
        share = np.sin(along)
    elif name == "checks":
        share = np.sin(along) * np.sin(over)
    else:
        share = _cloud(rng, height, width, 0.3, (2, rng.uniform(4, 12))) - 0.5
    share = 1 / (1 + np.exp(-4 * share))
    return (base + share[..., None] * (other - base)).astype(np.float32)


def _cut(
    rng: np.random.Generator, photographs: list[np.ndarray], height: int, width: int
) -> np.ndarray:
    """Return a turned and scaled window of a photograph, with its colours changed a little."""
    photograph = photographs[int(rng.integers(len(photographs)))]
    h, w = photograph.shape[:2]
    matrix = cv2.getRotationMatrix2D(
        (rng.uniform(0, w), rng.uniform(0, h)), rng.uniform(0, 360), rng.uniform(0.4, 2.5)
    )
    matrix[:, 2] += rng.uniform((-w, -h), (0, 0)) / 2
    window = cv2.warpAffine(
        photograph, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    ).astype(np.float32)
    if rng.uniform() < 0.5:
        window = window[..., rng.permutation(3)]
    return window * rng.uniform(0.6, 1.2) * rng.uniform(0.9, 1.1, 3).astype(np.float32)


def _cloud(
    rng: np.random.Generator,
    height: int,
    width: int,
    falloff: float,
    band: tuple[float, float] | None = None,
) -> np.ndarray:
    """Return noise of unit deviation with a spectrum of 1 / frequency ** falloff, (H, W)."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    scale = np.maximum(frequency, 1 / max(height, width)) ** -falloff
    if band is not None:
        period = 1 / np.maximum(frequency, 1e-6)
        scale = scale * ((period > 2 * band[0]) & (period < 4 * band[1]))
    spectrum = np.fft.rfft2(rng.normal(size=(height, width))) * scale
    spectrum[0, 0] = 0
    noise = np.fft.irfft2(spectrum, (height, width))
    return (noise / max(noise.std(), 1e-9)).astype(np.float32)


def _shading(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return a slow change of brightness, (H, W, 1) around 1."""
    slope = rng.normal(0, 0.3, 2)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    return np.clip(1 + slope[0] * x + slope[1] * y, 0.3, 1.7)[..., None].astype(np.float32)
