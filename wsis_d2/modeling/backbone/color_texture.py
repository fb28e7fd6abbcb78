# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Colour, texture and place of an image's cells: features that need no training.

Addition, not in the paper: what a tag segmenter sees.
"""

import math

import torch
import torch.nn.functional as F

CELL = 4
"""Pixels of the resized image to a cell's side."""
_SIGMAS = (1.5, 5.0, 15.0)
NUM_FEATURES = 8 * len(_SIGMAS) + 4  # the last four tell a cell's place


def color_texture(image: torch.Tensor, size: int = 240) -> torch.Tensor:
    """Return features of a grid of cells.

    The image is resized so that its longer side is ``size``; a cell is 4 x 4 of its pixels.
    Lightness, two opponent colours, the strength of horizontal, vertical and diagonal gradients
    and of two bands of detail are averaged around the cell by Gaussians of 1.5, 5 and 15 pixels;
    height (and its square), column and distance from the middle column tell its place.

    Args:
        image: (3, H, W), 0 to 255, three colour channels in any fixed order.
        size: longer side in pixels, at least 4.

    Returns:
        (28, h, w) float32.
    """
    scale = size / max(image.shape[-2:])
    height, width = (max(CELL, round(side * scale)) for side in image.shape[-2:])
    pixels = F.interpolate(
        image[None].float() / 64, size=(height, width), mode="bilinear", align_corners=False,
        antialias=scale < 1,
    )  # fmt: skip
    first, second, third = pixels.unbind(1)
    light = (first + second + third)[:, None] / 3
    colors = torch.stack([light[:, 0], first - third, second - (first + third) / 2], 1)
    padded = F.pad(light, (1, 1, 1, 1), mode="replicate")
    dx = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    dy = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    fine, coarse = _blur(light, 2.0), _blur(light, 6.0)
    texture = torch.cat([dx, dy, dx * dy, light - fine, fine - coarse], 1).abs()
    grid = (math.ceil(height / CELL), math.ceil(width / CELL))
    base = torch.cat([colors, texture], 1)
    maps = [F.adaptive_avg_pool2d(_blur(base, sigma), grid) for sigma in _SIGMAS]
    y = ((torch.arange(grid[0], device=image.device) + 0.5) / grid[0])[:, None].expand(grid)
    x = ((torch.arange(grid[1], device=image.device) + 0.5) / grid[1])[None, :].expand(grid)
    place = torch.stack([y, y.square(), x, (x - 0.5).abs()])
    return torch.cat([*(m[0] for m in maps), place])


def _blur(maps: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur of (1, C, H, W); the border repeats."""
    radius = math.ceil(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, dtype=maps.dtype, device=maps.device)
    kernel = torch.exp(-offsets.square() / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    channels = maps.shape[1]
    for shape, pad in (
        ((1, 1, 1, -1), (radius, radius, 0, 0)),
        ((1, 1, -1, 1), (0, 0, radius, radius)),
    ):
        weight = kernel.view(shape).repeat(channels, 1, 1, 1)
        maps = F.conv2d(F.pad(maps, pad, mode="replicate"), weight, groups=channels)
    return maps
