# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The tag segmenter: its features, its losses by hand, and that it finds what tags name."""

import pytest
import torch
from detectron2.modeling import build_model

from wsis_d2.config import read_config
from wsis_d2.modeling.backbone.color_texture import CELL, NUM_FEATURES, color_texture
from wsis_d2.modeling.meta_arch import TagSegmenter

SKY, SEA, BOAT = 0, 1, 2


def segmenter(**options):
    torch.manual_seed(0)
    return TagSegmenter(num_classes=3, thing_ids=[BOAT], size=48, **options)


def noise(height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def test_features_turn_with_the_image():
    image = noise(48, 64)
    features, mirrored = color_texture(image, 64), color_texture(image.flip(-1), 64)
    assert features.shape == (NUM_FEATURES, 48 // CELL, 64 // CELL)
    column = NUM_FEATURES - 2
    torch.testing.assert_close(mirrored[column], features[column])
    torch.testing.assert_close(mirrored[:column], features.flip(-1)[:column], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mirrored[-1], features.flip(-1)[-1])


def test_a_plain_image_has_a_colour_and_no_texture():
    image = torch.tensor([128.0, 64.0, 0.0]).view(3, 1, 1).expand(3, 20, 40)
    features = color_texture(image, 40)
    for base in (0, 8, 16):
        # Lightness, first minus third, second minus the mean of both; in units of 64.
        expected = torch.tensor([1.0, 2.0, 0.0]).view(3, 1, 1).expand(3, 5, 10)
        torch.testing.assert_close(features[base : base + 3], expected)
        assert features[base + 3 : base + 8].abs().max() < 1e-5
    assert features[24, :, 0].tolist() == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (7, 5)])
def test_images_of_any_size_have_cells(size):
    features = color_texture(noise(*size), 48)
    assert features.shape[1] >= 1 and features.shape[2] >= 1 and features.isfinite().all()


def sample(height=48, width=48):
    """Sky and sea in the left half, sky alone in the right; a boat's box across both."""
    return {
        "image": noise(height, width),
        "crops": [(0, 0, 24, 48), (24, 0, 48, 48)],
        "crop_targets": torch.tensor([[1.0, 1.0, -1.0], [1.0, 0.0, 1.0]]),
        "boxes": [((16, 16, 32, 32), BOAT, False), ((0, 40, 8, 48), BOAT, True)],
        "has_boxes": True,
    }


def test_an_image_without_tags_or_boxes_gives_finite_losses():
    model = segmenter().train()
    nothing = {
        **sample(), "crops": [(0, 0, 48, 48)], "crop_targets": torch.zeros(1, 3), "boxes": [],
    }  # fmt: skip
    losses = model([nothing, nothing])
    assert all(float(v.detach()) == 0 for v in losses.values())
    sum(losses.values()).backward()


def test_learns_from_tags_of_halves_which_colour_is_which():
    """Every crop has a bright upper and a dark lower part; a third of the crops show one alone."""
    generator = torch.Generator().manual_seed(1)
    batch = []
    for index in range(6):
        horizon = int(torch.randint(12, 36, (1,), generator=generator))
        image = torch.full((3, 48, 48), 60.0)
        image[:, :horizon] = 200.0
        if index % 3 == 2:
            image[:, :, 24:] = 200.0
        image += 10 * torch.randn(3, 48, 48, generator=generator)
        right = torch.tensor([1.0, float(index % 3 != 2), 0.0])
        batch.append(
            {
                "image": image.clamp(0, 255), "crops": [(0, 0, 24, 48), (24, 0, 48, 48)],
                "crop_targets": torch.stack([torch.tensor([1.0, 1.0, 0.0]), right]),
                "boxes": [], "horizon": horizon,
            }
        )  # fmt: skip
    model = segmenter().train()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    for _ in range(80):
        optimizer.zero_grad()
        sum(model(batch).values()).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        for own, found in zip(batch, model.probabilities([s["image"] for s in batch]), strict=True):
            best = found.argmax(0)
            edge = own["horizon"] // CELL  # features reach three cells across it
            assert (best[: max(edge - 3, 1)] == SKY).float().mean() > 0.9
            assert (best[min(edge + 4, 11) :, :5] == SEA).float().mean() > 0.9
    tags = model(batch)[0]
    assert tags["crop_tags"].shape == (2, 3) and tags["tags"][:2].min() > 0.5 > tags["tags"][BOAT]


def test_is_built_from_a_config_and_names_wrong_keys():
    base = ["MODEL.META_ARCHITECTURE", "TagSegmenter", "MODEL.DEVICE", "cpu"]
    model = build_model(read_config(None, [*base, "MODEL.WSIS.THING_IDS", [2]]))
    assert isinstance(model, TagSegmenter) and model.thing_ids == [2]
    for wrong in ({"tag_share": 0.0}, {"size": 2}):
        name, value = next(iter(wrong.items()))
        with pytest.raises(ValueError, match=f"{name} is {value}"):
            TagSegmenter(num_classes=3, thing_ids=[2], **wrong)
