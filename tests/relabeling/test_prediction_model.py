# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Predictions that become labels, of a model whose answers are known."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from wsis_d2.relabeling.prediction_model import predict_semantics
from wsis_d2.utils.errors import InputError


class Bright(torch.nn.Module):
    """Each pixel's own brightness is the probability of class 0, in the sample's size."""

    def forward(self, samples):
        return [self.one(sample) for sample in samples]

    def one(self, sample):
        grey = sample["image"].mean(0)[None, None] / 255
        size = (sample["height"], sample["width"])
        grey = F.interpolate(grey, size=size, mode="bilinear", align_corners=False)[0, 0]
        return {"sem_seg": torch.stack([grey, 1 - grey])}


def sample(height=6, width=8):
    image = np.random.default_rng(0).integers(0, 256, (3, height, width))
    return {"image": torch.from_numpy(image).float(), "height": height, "width": width}


def test_several_images_have_what_each_has_alone():
    """Images of one size are shown together, others not: a stock model would pad them."""

    class Together(Bright):
        def forward(self, samples):
            assert len({s["image"].shape for s in samples}) == 1
            batches.append(len(samples))
            return super().forward(samples)

    batches: list[int] = []
    given = [sample(), sample(4, 8), {**sample(), "image": sample()["image"].flip(1)}]
    found = predict_semantics(Together(), given)
    assert sorted(batches) == [1, 2]
    for one, own in zip(given, found, strict=True):
        alone = Bright()([one])[0]["sem_seg"]
        torch.testing.assert_close(own, alone)


def test_a_model_without_semantics_is_named():
    class Detector(torch.nn.Module):
        def forward(self, samples):
            return [{"instances": None}]

    with pytest.raises(InputError, match="sem_seg"):
        predict_semantics(Detector(), [sample()])
