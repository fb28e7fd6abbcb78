# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Seeded pictures and scores for the CRF's tests."""

import torch


def smooth(channels: int, height: int, width: int, seed: int, cell: int = 8) -> torch.Tensor:
    """Random fields that change over about ``cell`` pixels: float32 (channels, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(
        1, channels, max(2, height // cell), max(2, width // cell), generator=generator
    )
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """A smooth colour picture: uint8 (3, H, W)."""
    return (smooth(3, height, width, seed) * 60 + 128).clamp(0, 255).to(torch.uint8)


def unary(labels: int, height: int, width: int, seed: int = 1, dtype=torch.float32):
    """Log-scores: a smooth field and pixel noise, (L, H, W)."""
    generator = torch.Generator().manual_seed(seed + 1000)
    noise = torch.randn(labels, height, width, generator=generator)
    return (smooth(labels, height, width, seed) * 2 + 0.4 * noise).to(dtype)
