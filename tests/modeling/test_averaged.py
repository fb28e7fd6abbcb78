# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Predictions averaged over sizes and mirror images, of models whose answers are known."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from wsis_d2.modeling.averaged import averaged_semantics
from wsis_d2.utils.errors import InputError


class Columns(torch.nn.Module):
    """Class 0 rises from left to right, whatever the image; notes what it was shown."""

    def __init__(self):
        super().__init__()
        self.shown = []

    def forward(self, samples):
        return [self.one(sample) for sample in samples]

    def one(self, sample):
        self.shown.append(sample["image"].clone())
        rising = torch.linspace(0, 1, sample["width"]).expand(sample["height"], -1)
        return {"sem_seg": torch.stack([rising, 1 - rising])}


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


def test_alone_it_is_the_models_own_prediction():
    model, given = Columns(), sample()
    found = averaged_semantics(model, [given])[0]
    assert torch.equal(found, Columns()([given])[0]["sem_seg"])
    assert len(model.shown) == 1 and torch.equal(model.shown[0], given["image"])


def test_the_mirror_image_is_shown_mirrored_and_its_answer_mirrored_back():
    model, given = Columns(), sample()
    found = averaged_semantics(model, [given], flip=True)[0]
    # What is a place's and not a pixel's answer becomes symmetric.
    np.testing.assert_allclose(found.numpy(), 0.5, atol=1e-6)
    assert torch.equal(model.shown[1], given["image"].flip(-1))
    # What is a pixel's answer stays.
    plain = Bright()([given])[0]["sem_seg"]
    torch.testing.assert_close(averaged_semantics(Bright(), [given], flip=True)[0], plain)


def test_sizes_are_shown_and_averaged_equally():
    model, given = Columns(), sample()
    averaged_semantics(model, [given], (0.5, 1.0, 2.0), flip=True)
    assert [tuple(image.shape) for image in model.shown] == [
        (3, 3, 4), (3, 3, 4), (3, 6, 8), (3, 6, 8), (3, 12, 16), (3, 12, 16),
    ]  # fmt: skip
    own = [averaged_semantics(Bright(), [given], (scale,))[0] for scale in (0.5, 1.0, 2.0)]
    torch.testing.assert_close(
        averaged_semantics(Bright(), [given], (0.5, 1.0, 2.0))[0], sum(own) / 3
    )
    assert not torch.allclose(own[0], own[1])


def test_several_images_have_what_each_has_alone():
    """Images of one size are shown together, others not: a stock model would pad them."""

    class Together(Bright):
        def forward(self, samples):
            assert len({s["image"].shape for s in samples}) == 1
            batches.append(len(samples))
            return super().forward(samples)

    batches: list[int] = []
    given = [sample(), sample(4, 8), {**sample(), "image": sample()["image"].flip(1)}]
    found = averaged_semantics(Together(), given, (1.0, 2.0), flip=True)
    assert sorted(batches) == [2, 2, 4, 4]
    for one, own in zip(given, found, strict=True):
        alone = averaged_semantics(Bright(), [one], (1.0, 2.0), flip=True)[0]
        torch.testing.assert_close(own, alone)


def test_a_model_without_semantics_is_named():
    class Detector(torch.nn.Module):
        def forward(self, samples):
            return [{"instances": None}]

    with pytest.raises(InputError, match="sem_seg"):
        averaged_semantics(Detector(), [sample()], (1.0, 2.0))
