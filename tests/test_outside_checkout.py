# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The smoke tests: what an installation must have and do, of a checkout or of the wheel.

``make wheel`` runs this file on the installed wheel, outside the checkout, and names the folder it
was installed to in ``WSIS_D2_INSTALLED``.
"""

import os
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch

import wsis_d2
from wsis_d2 import model_zoo
from wsis_d2.inference.predictor import PanopticPredictor
from wsis_d2.layers import mean_field
from wsis_d2.layers._extension import library_path

INSTALLED = os.environ.get("WSIS_D2_INSTALLED")


@pytest.mark.skipif(INSTALLED is None, reason="only of the wheel: make wheel")
def test_it_is_the_wheel_that_is_tested():
    assert Path(wsis_d2.__file__).is_relative_to(INSTALLED)
    assert library_path().name == "_C.abi3.so"


def test_files_beside_the_code_are_there():
    package = resources.files("wsis_d2")
    for name in ("py.typed", "_build_info.json", "report/template"):
        assert package.joinpath(name).exists(), name
    assert {"Lite/panoptic_Lite0", "Sample-Panoptic/semantic_weak"} <= {*model_zoo.list_configs()}
    assert Path(model_zoo.get_config_file("Lite/panoptic_Lite0.yaml")).is_file()


def test_the_operator_gives_the_exact_result():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 9, 11, generator=generator, dtype=torch.float64)
    image = torch.full((3, 9, 11), 7, dtype=torch.uint8)
    # On one colour with a wide kernel in colour only, every pixel gets the mean of all marginals.
    options = {"gaussian_weight": 0.0, "bilateral_weight": 2.0, "iterations": 1}
    found = mean_field(scores, image, bilateral_xy=1e4, bilateral_rgb=1e4, **options)
    mean = scores.softmax(0).mean((1, 2), keepdim=True)
    assert torch.allclose(found, scores + 2.0 * mean, atol=1e-3)


@pytest.mark.parametrize("model", model_zoo.list_released())
def test_a_released_model_labels_a_picture(model):
    if "Lite0" in model:
        pytest.importorskip("timm")
    predict = PanopticPredictor(model, device="cpu")
    picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    prediction = predict(picture)
    assert prediction.ids.shape == (64, 96)
    areas = {s["id"]: s["area"] for s in prediction.segments}
    numbers, counts = np.unique(prediction.ids[prediction.ids > 0], return_counts=True)
    assert areas == dict(zip(numbers.tolist(), counts.tolist(), strict=True))
