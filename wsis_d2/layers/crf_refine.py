# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Refinement of predicted labels by a dense CRF with DeepLab's parameters (paper 3.4)."""

import numpy as np
import torch

from wsis_d2.layers.crf_parameters import CRFParameters, check_image, check_scores
from wsis_d2.layers.dense_crf import mean_field
from wsis_d2.utils.errors import InputError, check_choice

REFINE_BACKENDS = ("auto", "native", "exact", "pydensecrf")
# Probabilities below this are lifted to it before the logarithm.
_FLOOR = 1e-8


def dense_crf_refine(
    probabilities: torch.Tensor,
    image: torch.Tensor,
    parameters: CRFParameters = CRFParameters(iterations=10),  # noqa: B008
    *,
    normalization: str = "symmetric",
    spatial: str = "auto",
    backend: str = "auto",
) -> torch.Tensor:
    """Refine class probabilities; the defaults are DeepLab's (Chen et al., ICLR 2015).

    Args:
        probabilities: (L, H, W), floating, >= 0; each pixel's sum need not be 1.
        image: (3, H, W), uint8 or floating 0 to 255 (the order of colours does not matter).
        parameters: of the CRF.
        backend: as :func:`wsis_d2.layers.mean_field`, or "pydensecrf" (optional package, CPU,
            symmetric normalisation only).
        others: as :func:`wsis_d2.layers.mean_field`.

    Returns:
        (L, H, W), the refined marginals, summing to 1 at each pixel; dtype of ``probabilities``
        (float32 for half precision), no gradient.

    Raises:
        InputError: as :func:`wsis_d2.layers.mean_field`; negative probabilities; the package is
            missing or cannot do what is asked.
    """
    check_scores(probabilities, "probabilities")
    check_image(image, probabilities.shape[1], probabilities.shape[2])
    check_choice("backend", backend, REFINE_BACKENDS)
    dtype = torch.float64 if probabilities.dtype == torch.float64 else torch.float32
    probabilities = probabilities.detach().to(dtype)
    lowest = float(probabilities.min())
    if not lowest >= 0:
        raise InputError(f"probabilities: expected values of at least 0, found {lowest}.")
    scores = probabilities.clamp_min(_FLOOR).log()
    if backend == "pydensecrf":
        if normalization != "symmetric":
            raise InputError(
                f"normalization: backend 'pydensecrf' has 'symmetric' only, found {normalization!r}"
            )
        return _pydensecrf(scores, image, parameters)
    with torch.no_grad():
        result = mean_field(
            scores,
            image,
            normalization=normalization,
            spatial=spatial,
            backend=backend,
            **parameters.keywords(),
        )
        return result.softmax(dim=0)


def _pydensecrf(
    scores: torch.Tensor, image: torch.Tensor, parameters: CRFParameters
) -> torch.Tensor:
    try:
        from pydensecrf import densecrf
    except ImportError:
        raise InputError(
            "backend: 'pydensecrf' is not installed; run `pip install pydensecrf2` or use "
            "backend='native'."
        ) from None
    labels, height, width = scores.shape
    crf = densecrf.DenseCRF2D(width, height, labels)
    unary = -scores.reshape(labels, -1).to("cpu", torch.float32).numpy()
    crf.setUnaryEnergy(np.ascontiguousarray(unary))
    crf.addPairwiseGaussian(sxy=parameters.gaussian_xy, compat=float(parameters.gaussian_weight))
    rgb = image.permute(1, 2, 0).to("cpu")
    rgb = rgb.round().clamp(0, 255).to(torch.uint8) if rgb.dtype != torch.uint8 else rgb
    crf.addPairwiseBilateral(
        sxy=parameters.bilateral_xy,
        srgb=parameters.bilateral_rgb,
        rgbim=np.ascontiguousarray(rgb.numpy()),
        compat=float(parameters.bilateral_weight),
    )
    q = np.array(crf.inference(parameters.iterations), dtype=np.float32)
    return torch.from_numpy(q.reshape(scores.shape)).to(scores)
