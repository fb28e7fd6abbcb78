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


def test_evidence_is_the_odds_against_those_of_all_cells_and_multiplies_the_distribution():
    model = segmenter(evidence=0.75).eval()
    for layers, bias in ((model.layers, [0.0, 1.0, 2.0]), (model.evidence_layers, [1.0, 0.0, -1])):
        torch.nn.init.zeros_(layers[-1].weight)
        layers[-1].bias.data = torch.tensor(bias)
    model.cells_seen.fill_(1000)
    model.cells_possible.copy_(torch.tensor([900.0, 500.0, 100.0]))
    with torch.no_grad():
        found = model.probabilities([noise(48, 48)])[0]
    # Odds e, 1, 1/e against 9, 1, 1/9 of all cells, to the power 0.75: 0.4074, 1, 2.4545; times
    # the distribution's 1, e, e^2 to the power 0.25: 0.4074, 1.2840, 4.0468; in shares:
    expected = torch.tensor([0.0710007, 0.2237676, 0.7052317])
    torch.testing.assert_close(found, expected.view(3, 1, 1).expand(3, 12, 12))


def test_counts_over_which_cells_a_class_was_possible():
    model = segmenter(evidence=0.5).train()
    model([{**sample(), "has_boxes": False}, sample()])
    assert float(model.cells_seen) == 2 * 144
    boat = 144 + 16 + 4  # everywhere in one image, in the box and the group in the other
    assert model.cells_possible.tolist() == [2 * 144, 144, boat]


def test_evidence_finds_a_class_that_never_comes_without_a_commoner_one():
    """A third of the images is sky alone, a third sky and dark sea below it, a third sand."""
    generator = torch.Generator().manual_seed(2)
    sand = 2
    batch = []
    for index in range(6):
        kind = index % 3
        image = torch.full((3, 160, 160), 130.0 if kind == 2 else 220.0)
        if kind == 1:
            image[:, 100:] = 40.0
        image += 10 * torch.randn(3, 160, 160, generator=generator)
        target = torch.tensor([[[1.0, 0, 0], [1.0, 1.0, 0], [0, 0, 1.0]][kind]])
        batch.append(
            {"image": image, "crops": [(0, 0, 160, 160)], "crop_targets": target, "boxes": []}
        )
    torch.manual_seed(0)
    model = TagSegmenter(num_classes=3, thing_ids=[], size=160, evidence=1.0).train()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        model(batch)["loss_evidence"].backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        plain, both, other = (
            p.argmax(0) for p in model.probabilities([s["image"] for s in batch[:3]])
        )
    assert (plain == SKY).float().mean() > 0.9 and (other == sand).float().mean() > 0.9
    assert (both[34:] == SEA).float().mean() > 0.9  # wide averages reach across the edge, row 25
    assert (both[:10] == SKY).float().mean() > 0.9


def test_is_built_from_a_config_and_names_wrong_keys():
    base = ["MODEL.META_ARCHITECTURE", "TagSegmenter", "MODEL.DEVICE", "cpu"]
    model = build_model(read_config(None, [*base, "MODEL.WSIS.THING_IDS", [2]]))
    assert isinstance(model, TagSegmenter) and model.thing_ids == [2]
    for wrong in ({"tag_share": 0.0}, {"size": 2}):
        name, value = next(iter(wrong.items()))
        with pytest.raises(ValueError, match=f"{name} is {value}"):
            TagSegmenter(num_classes=3, thing_ids=[2], **wrong)
    with pytest.raises(ValueError, match="TAG_SEGMENTER.EVIDENCE is 1.5"):
        build_model(read_config(None, [*base, "MODEL.TAG_SEGMENTER.EVIDENCE", 1.5]))
