# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The compiled CRF operators: their fake, autograd and autocast registrations, and plain wrappers.

``torch.ops.wsis_d2`` holds ``build_lattice``, ``mean_field``, ``mean_field_backward``,
``lattice_filter`` and ``spatial_filter`` (schemas in csrc/dense_crf/ops.cpp). A lattice is three
tensors: a header on the CPU, a record a pixel, and an index whose length depends on the image.
"""

import math
from functools import lru_cache

import torch

from wsis_d2.layers._extension import extension_error, require_extension
from wsis_d2.layers.crf_parameters import (
    CRFParameters,
    check_image,
    check_positive,
    check_scores,
)
from wsis_d2.utils.errors import InputError, check_choice

_NORMALIZATIONS = {"none": 0, "after": 1, "symmetric": 2}
_HEADER_SIZE = 48


def _kept(scores):
    """Numbers that a pixel's kept marginals take, and their dtype; see csrc/dense_crf."""
    labels = scores.shape[0]
    if scores.device.type == "cpu":
        return (labels + 7) // 8 * 8, scores.dtype
    dtype = torch.int16 if scores.dtype == torch.float32 else scores.dtype  # fixed point
    return torch.sym_ite(labels == 1, 1, (labels + 3) // 4 * 4), dtype


@lru_cache(maxsize=1)
def _register() -> None:
    """Register what the compiled library leaves to Python. Once, when it is loaded."""
    lib = torch.library
    lib.register_fake("wsis_d2::build_lattice", _build_lattice_fake)
    lib.register_fake("wsis_d2::mean_field", _mean_field_fake)
    lib.register_fake("wsis_d2::mean_field_backward", _mean_field_backward_fake)
    lib.register_fake("wsis_d2::lattice_filter", _filter_fake)
    lib.register_fake("wsis_d2::spatial_filter", _filter_fake)
    lib.register_autograd(
        "wsis_d2::mean_field", _mean_field_backward, setup_context=_mean_field_context
    )
    lib.register_autograd("wsis_d2::mean_field_backward", _no_second_derivative)
    lib.register_autograd(
        "wsis_d2::lattice_filter", _lattice_filter_backward, setup_context=_lattice_filter_context
    )
    lib.register_autograd(
        "wsis_d2::spatial_filter", _spatial_filter_backward, setup_context=_spatial_filter_context
    )
    # Under autocast half precision is computed in float32 (float64 stays as it is).
    if hasattr(lib, "register_autocast"):
        for name in ("mean_field", "lattice_filter", "spatial_filter"):
            for device in ("cpu", "cuda"):
                lib.register_autocast(f"wsis_d2::{name}", device, torch.float32)


def _build_lattice_fake(image, sigma_xy, sigma_rgb, normalization, finite, names):
    size = torch.library.get_ctx().new_dynamic_size()
    header = torch.empty(_HEADER_SIZE, dtype=torch.int64, device="cpu")
    records = image.new_empty((image.shape[1] * image.shape[2], 8))
    return header, records, torch.empty(size, dtype=torch.int32, device=image.device)


def _filter_fake(values, *rest):
    return torch.empty_like(values, memory_format=torch.contiguous_format)


def _mean_field_fake(
    scores, header, records, index, w_b, w_s, gaussian_xy, exact_spatial, iterations, save_every
):
    height, width = scores.shape[1:]
    kept = -(-iterations // save_every) if save_every > 0 else 0
    row, dtype = _kept(scores)
    saved = scores.new_empty((kept, height * width * row), dtype=dtype)
    return torch.empty_like(scores, memory_format=torch.contiguous_format), saved


def _mean_field_backward_fake(grad, saved, scores, header, records, index, w_b, w_s, *options):
    result = torch.empty_like(grad, memory_format=torch.contiguous_format)
    # On the gradient's device, also for weights on the CPU: autograd moves what they need.
    return (
        result,
        grad.new_empty(w_b.shape, dtype=w_b.dtype),
        grad.new_empty(w_s.shape, dtype=w_s.dtype),
    )


def _mean_field_context(ctx, inputs, output):
    scores, header, records, index, w_b, w_s, *options = inputs
    ctx.options = options
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    # The scores are needed only where marginals are computed again.
    ctx.save_for_backward(output[1], scores, header, records, index, w_b, w_s)


def _mean_field_backward(ctx, grad, grad_saved):
    none = (None,) * 4
    if grad is None:
        return None, None, None, None, None, None, *none
    saved, *rest = ctx.saved_tensors
    result, grad_b, grad_s = torch.ops.wsis_d2.mean_field_backward(grad, saved, *rest, *ctx.options)
    grad_b, grad_s = (
        g if needed else None
        for g, needed in zip((grad_b, grad_s), ctx.needs_input_grad[4:6], strict=True)
    )
    return result, None, None, None, grad_b, grad_s, *none


def _no_second_derivative(ctx, *grads):
    raise NotImplementedError(
        "mean_field: the compiled operator has no second derivatives; use backend='exact'."
    )


def _lattice_filter_context(ctx, inputs, output):
    _, header, records, index, ctx.transpose = inputs
    ctx.save_for_backward(header, records, index)


def _lattice_filter_backward(ctx, grad):
    result = torch.ops.wsis_d2.lattice_filter(grad, *ctx.saved_tensors, not ctx.transpose)
    return result, None, None, None, None


def _spatial_filter_context(ctx, inputs, output):
    _, *ctx.options, ctx.transpose = inputs


def _spatial_filter_backward(ctx, grad):
    result = torch.ops.wsis_d2.spatial_filter(grad, *ctx.options, not ctx.transpose)
    return result, None, None, None, None


def build_lattice(
    image: torch.Tensor,
    sigma_xy: float,
    sigma_rgb: float,
    normalization: str = "after",
    dtype: torch.dtype = torch.float32,
    **finite: torch.Tensor,
) -> list[torch.Tensor]:
    """The permutohedral lattice of ``image`` (3, H, W): header, records, index.

    On a GPU the host waits once, here; so what else must be ``finite`` is checked along with it.
    """
    ensure_operators(image.device)
    image = image.detach().to(dtype)
    finite = {name: t.detach() for name, t in finite.items() if t.device == image.device}
    return torch.ops.wsis_d2.build_lattice(
        image, sigma_xy, sigma_rgb, _NORMALIZATIONS[normalization],
        list(finite.values()), list(finite),
    )  # fmt: skip


def ensure_operators(device: torch.device) -> None:
    """Load and register the operators, or raise an ExtensionError that says what is missing."""
    if torch.compiler.is_compiling():
        return  # looked up when this module was imported; reading files cannot be traced
    require_extension(device)
    _register()


def mean_field(
    scores: torch.Tensor,
    image: torch.Tensor,
    parameters: CRFParameters,
    normalization: str,
    exact_spatial: bool,
    recompute: bool,
) -> torch.Tensor:
    """:func:`wsis_d2.layers.mean_field` by the compiled operator; arguments are checked, the
    weights 0-dim tensors."""
    weights = parameters.bilateral_weight, parameters.gaussian_weight
    lattice = build_lattice(
        image, parameters.bilateral_xy, parameters.bilateral_rgb, normalization, scores.dtype,
        scores=scores, bilateral_weight=weights[0], gaussian_weight=weights[1],
    )  # fmt: skip
    save_every = 0
    if torch.is_grad_enabled() and any(
        torch.as_tensor(t).requires_grad for t in (scores, *weights)
    ):
        save_every = max(1, math.ceil(math.sqrt(parameters.iterations))) if recompute else 1
    result, _ = torch.ops.wsis_d2.mean_field(
        scores, *lattice, *weights, parameters.gaussian_xy, exact_spatial, parameters.iterations,
        save_every,
    )  # fmt: skip
    return result


def _checked_values(values, name="values"):
    check_scores(values, name)
    return values.to(torch.float64 if values.dtype == torch.float64 else torch.float32)


def permutohedral_filter(
    values: torch.Tensor,
    image: torch.Tensor,
    *,
    sigma_xy: float,
    sigma_rgb: float,
    normalization: str = "none",
    transpose: bool = False,
) -> torch.Tensor:
    """Bilateral Gaussian filtering on the permutohedral lattice (Adams et al. 2010).

    Args:
        values: (L, H, W), floating; half precision is computed in float32. Gets a gradient.
        image: (3, H, W), uint8 or floating 0 to 255; gets none.
        sigma_xy, sigma_rgb: standard deviations in pixels and colour levels.
        normalization: "none", "after" (divide by the kernel's row sums) or "symmetric".
        transpose: apply the transposed operator: the same filter with the blur reversed.

    Returns:
        (L, H, W).

    Raises:
        InputError: a wrong shape, dtype, device, option or bandwidth, NaN or infinity.
    """
    values = _checked_values(values)
    check_image(image, values.shape[1], values.shape[2])
    if image.device != values.device:
        raise InputError(f"image: it is on {image.device}, values are on {values.device}.")
    sigma_xy = check_positive("sigma_xy", sigma_xy)
    sigma_rgb = check_positive("sigma_rgb", sigma_rgb)
    check_choice("normalization", normalization, tuple(_NORMALIZATIONS))
    lattice = build_lattice(image, sigma_xy, sigma_rgb, normalization, values.dtype, values=values)
    return torch.ops.wsis_d2.lattice_filter(values, *lattice, transpose)


def spatial_filter(
    values: torch.Tensor,
    *,
    sigma: float,
    spatial: str = "auto",
    normalization: str = "none",
    transpose: bool = False,
) -> torch.Tensor:
    """Gaussian filtering over pixel distance, pixels outside the image counting nothing.

    Args:
        values: (L, H, W), floating. Gets a gradient.
        sigma: standard deviation in pixels.
        spatial: "exact" or "auto" as in :func:`wsis_d2.layers.mean_field`.
        normalization, transpose: as :func:`permutohedral_filter`.

    Returns:
        (L, H, W).

    Raises:
        InputError: as :func:`permutohedral_filter`.
    """
    values = _checked_values(values)
    sigma = check_positive("sigma", sigma)
    check_choice("spatial", spatial, ("auto", "exact"))
    check_choice("normalization", normalization, tuple(_NORMALIZATIONS))
    ensure_operators(values.device)
    return torch.ops.wsis_d2.spatial_filter(
        values, sigma, spatial == "exact", _NORMALIZATIONS[normalization], transpose
    )


# Compiled and exported programs look operators up before any wrapper runs.
if extension_error() is None:
    _register()
