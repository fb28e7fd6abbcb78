# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Grad-CAM against its definition, and several classes at once against one at a time."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wsis_d2.modeling.grad_cam import GradCAM


class SmallNet(nn.Module):
    """Two convolutions, an in-place ReLU behind the hooked layer, pooling, a linear layer."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 5, 3, padding=1)
        self.head = nn.Linear(5, classes)

    def forward(self, images):
        x = F.relu_(self.norm(self.first(images)))
        x = F.relu_(self.second(x))
        return self.head(x.square().mean(dim=(2, 3)))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return SmallNet().eval()


@pytest.fixture
def images():
    return torch.randn(3, 3, 12, 16, generator=torch.Generator().manual_seed(1))


def by_hand(network, image, class_id):
    """The definition, spelled out for the layer ``second``: finite differences of the logit."""
    network = SmallNet().double().eval()
    torch.manual_seed(0)
    reference = SmallNet().eval()
    network.load_state_dict(reference.state_dict())
    with torch.no_grad():
        x = F.relu(network.norm(network.first(image[None].double())))
        activation = network.second(x)

        def logit(a):
            return network.head(F.relu(a).square().mean(dim=(2, 3)))[0, class_id]

        step = 1e-5
        weights = torch.zeros(activation.shape[1], dtype=torch.float64)
        for channel in range(activation.shape[1]):
            for y in range(activation.shape[2]):
                for x_ in range(activation.shape[3]):
                    moved = activation.clone()
                    moved[0, channel, y, x_] += step
                    up = logit(moved)
                    moved[0, channel, y, x_] -= 2 * step
                    weights[channel] += (up - logit(moved)) / (2 * step)
        weights /= activation.shape[2] * activation.shape[3]
        return F.relu((weights[:, None, None] * activation[0]).sum(dim=0))


def test_maps_equal_finite_differences(network, images):
    maps = GradCAM(network, "second").raw_maps(images[:1], [[2, 0]])[0]
    for own, class_id in zip(maps, (2, 0), strict=True):
        expected = by_hand(network, images[0], class_id)
        torch.testing.assert_close(own.double(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layer", ["first", "second", "norm"])
def test_several_classes_and_images_equal_each_alone(network, images, layer):
    cam = GradCAM(network, layer)
    classes = [[3, 0, 1], [], [2, 3]]
    together = cam(images, classes)
    assert [len(m) for m in together] == [3, 0, 2]
    positive = 0
    for i, own in enumerate(classes):
        assert together[i].shape == (len(own), 12, 16)
        for k, class_id in enumerate(own):
            alone = cam(images[i : i + 1], [[class_id]])[0][0]
            torch.testing.assert_close(together[i][k], alone, atol=1e-6, rtol=1e-5)
            positive += bool(alone.max() > 0)
    assert positive >= 3


def test_maps_differ_between_classes(network, images):
    maps = GradCAM(network, "second")(images[:1], [[0, 1, 2, 3]])[0]
    alive = [m for m in maps if m.max() > 0]
    assert len(alive) >= 2
    assert not torch.allclose(alive[0], alive[1])


def test_works_with_frozen_parameters_under_no_grad(network, images):
    expected = GradCAM(network, "second")(images, [[0], [1], [2]])
    network.requires_grad_(False)
    with torch.no_grad():
        found = GradCAM(network, "second")(images, [[0], [1], [2]])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_a_class_nothing_speaks_for_is_zero_not_nan(images):
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 2, 1)

        def forward(self, x):
            return self.layer(x).mean(dim=(2, 3)) * 0

    maps = GradCAM(Constant().eval(), "layer")(images, [[0], [1], [0]])
    assert all(torch.equal(m, torch.zeros(1, 12, 16)) for m in maps)


def test_errors_say_what_to_do(network, images):
    with pytest.raises(ValueError, match="'nowhere' is not in the network"):
        GradCAM(network, "nowhere")
    with pytest.raises(ValueError, match="evaluation mode"):
        GradCAM(network.train(), "second")(images, [[0], [0], [0]])
    with pytest.raises(ValueError, match="3 images with classes for 1"):
        GradCAM(network.eval(), "second")(images, [[0]])
    with pytest.raises(ValueError, match="no \\(N, C, h, w\\) tensor"):
        GradCAM(network, "head")(images, [[0], [0], [0]])
