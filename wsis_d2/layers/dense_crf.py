# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Mean-field inference of a dense CRF with a bilateral and a spatial Gaussian kernel.

Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials", NIPS 2011; the kernels and the order of operations are those of the instance
subnetwork (Li, Arnab, Torr, ECCV 2018, section 3.5; Arnab and Torr, CVPR 2017).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from wsis_d2.layers import native_crf
from wsis_d2.layers.crf_parameters import CRFParameters, check_image, check_scores
from wsis_d2.layers.exact_crf import exact_mean_field
from wsis_d2.utils.errors import InputError, check_choice

NORMALIZATIONS = ("after", "symmetric")
SPATIAL = ("auto", "exact")
BACKENDS = ("auto", "native", "exact")


def _weight(
    name: str, value: float | torch.Tensor, scores: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """A weight as a 0-dim tensor: what learns on the scores' device, a number on the CPU."""
    if not isinstance(value, torch.Tensor):
        return torch.tensor(float(value), dtype=dtype)
    if value.device != scores.device and value.device.type != "cpu":
        raise InputError(f"{name}: it is on {value.device}, scores are on {scores.device}.")
    device = scores.device if value.requires_grad else value.device
    return value.reshape(()).to(device=device, dtype=dtype)


def mean_field(
    scores: torch.Tensor,
    image: torch.Tensor,
    *,
    bilateral_weight: float | torch.Tensor = 4.0,
    bilateral_xy: float = 49.0,
    bilateral_rgb: float = 5.0,
    gaussian_weight: float | torch.Tensor = 3.0,
    gaussian_xy: float = 3.0,
    iterations: int = 3,
    normalization: str = "after",
    spatial: str = "auto",
    backend: str = "auto",
    recompute: bool = False,
) -> torch.Tensor:
    """Mean-field iterations ``U <- scores + w_b K_b softmax(U) + w_s K_s softmax(U)``.

    Potts compatibility; a pixel's message to itself is included. Gradients flow to ``scores`` and
    to both weights (the exact adjoint of the filters), never to the image.

    Args:
        scores: (L, H, W), unary log-scores, higher is likelier; L, H, W >= 1. float32 or float64;
            half precision is computed and returned in float32. Must be finite. A batch
            (B, L, H, W) is taken too; for images of different L see :func:`mean_field_batch`.
        image: (3, H, W) (or (B, 3, H, W)), uint8 or floating 0 to 255.
        bilateral_weight, gaussian_weight: a number or a tensor of one element.
        bilateral_xy, bilateral_rgb: standard deviations in pixels and in colour levels.
        gaussian_xy: standard deviation in pixels of the spatial kernel.
        iterations: >= 0; 0 returns the scores.
        normalization: "after", messages divided by the kernel's row sums (paper), or "symmetric",
            by the root of both pixels' sums.
        spatial: "exact" evaluates the spatial kernel on every pixel, "auto" on a coarser grid
            where its bandwidth allows.
        backend: "native", the compiled operator; "exact", brute force in float64; "auto", native.
        recompute: keep only about sqrt(iterations) of the intermediate marginals for the backward
            pass (each is L * H * W numbers, L rounded up to a multiple of 8) and compute the
            others again.

    Returns:
        (L, H, W) (or (B, L, H, W)), the scores of the last iteration, not normalised: softmax
        over L gives the marginals.

    Raises:
        InputError: a wrong shape, dtype, device, option or bandwidth, NaN or infinity.
    """
    parameters = CRFParameters(
        bilateral_weight, bilateral_xy, bilateral_rgb, gaussian_weight, gaussian_xy, iterations
    )
    if isinstance(scores, torch.Tensor) and scores.dim() == 4:
        if not isinstance(image, torch.Tensor) or image.dim() != 4 or len(image) != len(scores):
            found = tuple(getattr(image, "shape", ()))
            raise InputError(
                f"image: scores are a batch of {len(scores)}, so expected shape "
                f"({len(scores)}, 3, H, W), found {found}."
            )
        if len(scores) == 0:
            raise InputError("scores: the batch is empty.")
        options = dict(
            normalization=normalization, spatial=spatial, backend=backend, recompute=recompute
        )
        return torch.stack(
            mean_field_batch(list(scores), list(image), **parameters.keywords(), **options)
        )
    check_scores(scores)
    check_image(image, scores.shape[1], scores.shape[2])
    if image.device != scores.device:
        raise InputError(f"image: it is on {image.device}, scores are on {scores.device}.")
    check_choice("normalization", normalization, NORMALIZATIONS)
    check_choice("spatial", spatial, SPATIAL)
    check_choice("backend", backend, BACKENDS)
    scores = scores.to(torch.float64 if scores.dtype == torch.float64 else torch.float32)
    dtype = torch.float64 if backend == "exact" else scores.dtype
    weights = {
        name: _weight(name, getattr(parameters, name), scores, dtype)
        for name in ("bilateral_weight", "gaussian_weight")
    }
    parameters = replace(parameters, **weights)
    if backend == "exact":
        for name, value in (("scores", scores), ("image", image), *weights.items()):
            if value.dtype != torch.uint8 and not bool(torch.isfinite(value).all()):
                raise InputError(f"{name}: it holds NaN or infinity; all values must be finite.")
        return exact_mean_field(scores, image, parameters, normalization)
    native_crf.ensure_operators(scores.device)
    return native_crf.mean_field(
        scores, image, parameters, normalization, spatial == "exact", recompute
    )


def mean_field_batch(
    scores: Sequence[torch.Tensor], images: Sequence[torch.Tensor], **options: Any
) -> list[torch.Tensor]:
    """:func:`mean_field` over images whose size and label count L differ.

    Args:
        scores: one (L_i, H_i, W_i) an image.
        images: one (3, H_i, W_i) an image.
        options: keywords of :func:`mean_field`; weights are shared, so their gradients add up.

    Returns:
        One (L_i, H_i, W_i) an image.

    Raises:
        InputError: the two sequences differ in length; else as :func:`mean_field`.
    """
    if len(scores) != len(images):
        raise InputError(f"images: found {len(images)}, but scores for {len(scores)} images.")
    return [mean_field(s, i, **options) for s, i in zip(scores, images, strict=True)]


class DenseCRF(nn.Module):
    """A dense CRF whose two kernel weights are learned.

    Attributes:
        bilateral_weight, gaussian_weight: scalar parameters (paper: one a kernel, Potts fixed).
    """

    def __init__(
        self,
        parameters: CRFParameters = CRFParameters(),  # noqa: B008
        *,
        normalization: str = "after",
        spatial: str = "auto",
        backend: str = "auto",
        recompute: bool = False,
    ):
        """Arguments as :func:`mean_field`; the weights are the parameters' first values."""
        super().__init__()
        self.crf = parameters
        self.bilateral_weight = nn.Parameter(torch.tensor(float(parameters.bilateral_weight)))
        self.gaussian_weight = nn.Parameter(torch.tensor(float(parameters.gaussian_weight)))
        check_choice("normalization", normalization, NORMALIZATIONS)
        check_choice("spatial", spatial, SPATIAL)
        check_choice("backend", backend, BACKENDS)
        self.options: dict[str, Any] = dict(
            normalization=normalization, spatial=spatial, backend=backend, recompute=recompute
        )

    def forward(
        self,
        scores: torch.Tensor | Sequence[torch.Tensor],
        image: torch.Tensor | Sequence[torch.Tensor],
    ) -> torch.Tensor | list[torch.Tensor]:
        """One image, a batch, or two lists (see :func:`mean_field_batch`); same kind returned."""
        options = self.options | self.crf.keywords(
            bilateral_weight=self.bilateral_weight, gaussian_weight=self.gaussian_weight
        )
        if isinstance(scores, (list, tuple)):
            return mean_field_batch(scores, image, **options)
        return mean_field(scores, image, **options)

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={v!r}" for k, v in (self.crf.keywords() | self.options).items())
