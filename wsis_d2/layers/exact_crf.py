# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The dense CRF by brute force in float64: every pair of pixels, no approximation.

The oracle of the tests and ``backend="exact"`` of :func:`wsis_d2.layers.mean_field`. Time grows
with the square of the pixel count (64 x 64 takes a fraction of a second an iteration).
"""

from collections.abc import Iterator

import torch

from wsis_d2.layers.crf_parameters import CRFParameters

# Entries of one block of rows of the kernel matrix (128 MiB of float64).
_BLOCK_ENTRIES = 1 << 24


def bilateral_features(image: torch.Tensor, sigma_xy: float, sigma_rgb: float) -> torch.Tensor:
    """Features (x, y, r, g, b), each over its bandwidth: (3, H, W) -> float64 (N, 5)."""
    _, height, width = image.shape
    xy = gaussian_features(height, width, sigma_xy, image.device)
    colors = image.detach().to(torch.float64).reshape(3, -1).t() / sigma_rgb
    return torch.cat([xy, colors], dim=1)


def gaussian_features(
    height: int, width: int, sigma_xy: float, device: torch.device | str | None = None
) -> torch.Tensor:
    """Features (x, y) over their bandwidth: float64 (H * W, 2), row by row."""
    ys, xs = torch.meshgrid(
        torch.arange(height, dtype=torch.float64, device=device),
        torch.arange(width, dtype=torch.float64, device=device),
        indexing="ij",
    )
    return torch.stack([xs, ys], dim=-1).reshape(-1, 2) / sigma_xy


def _kernel_rows(features: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield (slice, rows of exp(-|f_i - f_j|^2 / 2)) in blocks that fit."""
    count = features.shape[0]
    step = max(1, _BLOCK_ENTRIES // count)
    for begin in range(0, count, step):
        rows = features[begin : begin + step]
        squared = torch.cdist(rows, features, compute_mode="donot_use_mm_for_euclid_dist") ** 2
        yield slice(begin, begin + rows.shape[0]), torch.exp(-0.5 * squared)


class _KernelProduct(torch.autograd.Function):
    """``values @ K`` for the symmetric Gaussian kernel of ``features``, blockwise."""

    @staticmethod
    def forward(ctx, values, features):
        ctx.save_for_backward(features)
        result = torch.empty_like(values)
        for block, rows in _kernel_rows(features):
            result[:, block] = values @ rows.t()
        return result

    @staticmethod
    def backward(ctx, grad):
        (features,) = ctx.saved_tensors
        return _KernelProduct.apply(grad, features), None


def exact_filter(
    values: torch.Tensor,
    features: torch.Tensor,
    normalization: str = "none",
    transpose: bool = False,
) -> torch.Tensor:
    """Gaussian filtering over arbitrary features, by brute force.

    Args:
        values: (L, N), float64.
        features: (N, d), float64, already over the bandwidths.
        normalization: "none": K; "after": K divided by its row sums; "symmetric": divided by the
            root of both the row's and the column's sum. A pixel's message to itself is included.
        transpose: multiply by the transposed (normalised) kernel.

    Returns:
        (L, N), float64.
    """
    if normalization == "none":
        return _KernelProduct.apply(values, features)
    with torch.no_grad():
        sums = _KernelProduct.apply(values.new_ones(1, values.shape[1]), features)
    if normalization == "symmetric":
        return _KernelProduct.apply(values * sums.rsqrt(), features) * sums.rsqrt()
    if transpose:
        return _KernelProduct.apply(values / sums, features)
    return _KernelProduct.apply(values, features) / sums


def exact_mean_field(
    scores: torch.Tensor,
    image: torch.Tensor,
    parameters: CRFParameters,
    normalization: str,
) -> torch.Tensor:
    """Mean field with exact kernels; arguments as :func:`wsis_d2.layers.mean_field` (checked).

    Returns:
        (L, H, W) in the dtype of ``scores``, differentiable in ``scores`` and the weights.
    """
    labels, height, width = scores.shape
    unary = scores.to(torch.float64).reshape(labels, -1)
    bilateral = bilateral_features(image, parameters.bilateral_xy, parameters.bilateral_rgb)
    spatial = gaussian_features(height, width, parameters.gaussian_xy, image.device)
    current = unary
    for _ in range(parameters.iterations):
        q = torch.softmax(current, dim=0)
        current = (
            unary
            + parameters.bilateral_weight * exact_filter(q, bilateral, normalization)
            + parameters.gaussian_weight * exact_filter(q, spatial, normalization)
        )
    if parameters.iterations == 0:
        return scores.clone()
    return current.reshape(labels, height, width).to(scores.dtype)
