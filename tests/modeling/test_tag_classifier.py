# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The tag classifier: its loss, its padding, its place in Detectron2's registry."""

import math

import pytest
import torch
from detectron2.modeling import build_model
from helpers.tag_networks import tag_classifier_config

from wsis_d2.modeling.meta_arch import TagClassifier


def small_config(**keys):
    return tag_classifier_config(3, *(item for pair in keys.items() for item in pair))


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return build_model(small_config())


def image(height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def test_is_built_from_the_registry_with_any_backbone():
    assert isinstance(build_model(small_config()), TagClassifier)
    cfg = small_config(**{"MODEL.RESNETS.OUT_FEATURES": ["res3", "res5"]})
    cfg.MODEL.RESNETS.RES5_DILATION = 4
    model = build_model(cfg)
    assert model.in_feature == "res5" and model.stride == 8  # dilated
    stock = small_config(**{"MODEL.BACKBONE.NAME": "build_resnet_backbone"})
    stock.MODEL.RESNETS.DEPTH = 50
    assert isinstance(build_model(stock), TagClassifier)


def test_loss_is_the_mean_cross_entropy_of_the_known_classes(classifier):
    classifier.train()
    with torch.no_grad():
        classifier.classifier.weight.zero_()
        classifier.classifier.bias.copy_(torch.tensor([0.0, 2.0, -1.0]))
    batch = [
        {"image": image(16, 16), "tags": torch.tensor([1.0, 0.0, 1.0])},
        {"image": image(16, 16, 1), "tags": torch.tensor([0.0, -1.0, 0.0])},
    ]
    sigmoid = [1 / (1 + math.exp(-z)) for z in (0.0, 2.0, -1.0)]
    expected = -(
        math.log(sigmoid[0])
        + math.log(1 - sigmoid[1])
        + math.log(sigmoid[2])
        + math.log(1 - sigmoid[0])
        + math.log(1 - sigmoid[2])
    )
    assert float(classifier(batch)["loss_tags"].detach()) == pytest.approx(expected / 5, rel=1e-5)


def test_nothing_known_gives_a_loss_of_zero_with_a_graph(classifier):
    loss = classifier.train()([{"image": image(16, 16), "tags": torch.full((3,), -1.0)}])
    assert float(loss["loss_tags"].detach()) == 0
    loss["loss_tags"].backward()


def test_padding_in_a_batch_does_not_enter_the_average(classifier):
    classifier.eval()
    small, large = classifier.normalize(image(32, 40)), classifier.normalize(image(64, 64, 1))
    padded = torch.zeros(2, 3, 64, 64)
    padded[0, :, :32, :40], padded[1] = small, large
    features = classifier.backbone(padded)["res3"]
    expected = classifier.classifier(features[0, :, :4, :5].mean(dim=(1, 2)))
    found = classifier.logits(padded, [(32, 40), (64, 64)])
    torch.testing.assert_close(found[0], expected)
    torch.testing.assert_close(found[1], classifier.logits(large[None])[0], atol=1e-5, rtol=1e-4)


def test_crops_are_classified_as_images_of_their_own(classifier):
    classifier.eval()
    picture = image(32, 48)
    crops = [(0, 0, 24, 32), (8, 16, 48, 32)]
    output = classifier([{"image": picture, "crops": crops}, {"image": picture}])
    assert "crop_tags" not in output[1]
    for (x0, y0, x1, y1), scores in zip(crops, output[0]["crop_tags"], strict=True):
        alone = classifier([{"image": picture[:, y0:y1, x0:x1]}])[0]["tags"]
        torch.testing.assert_close(scores, alone, atol=1e-6, rtol=1e-5)


def test_images_and_crops_of_one_size_run_together(classifier):
    classifier.eval()
    classifier.max_batch = 3
    passes = []
    classifier.backbone.register_forward_pre_hook(lambda _, x: passes.append(len(x[0])))
    crops = [(0, 0, 24, 32), (8, 0, 32, 32), (8, 16, 48, 32)]
    batch = [{"image": image(32, 48), "crops": crops}, {"image": image(32, 48, 1)},
             {"image": image(32, 24, 2)}, {"image": image(32, 24, 3)}]  # fmt: skip
    found = classifier(batch)
    # Two of 32 x 48; of 32 x 24 two crops and two images, three at most; a crop of 16 x 40.
    assert sorted(passes) == [1, 1, 2, 3]
    classifier.max_batch = 1
    for sample, output in zip(batch, found, strict=True):
        (alone,) = classifier([sample])
        assert set(output) == set(alone)
        for name, scores in alone.items():
            torch.testing.assert_close(output[name], scores, atol=1e-5, rtol=0)


def test_wrong_keys_are_named():
    arguments = TagClassifier.from_config(small_config())
    with pytest.raises(ValueError, match="in_feature is 'res5', the backbone gives \\['res3'\\]"):
        TagClassifier(**arguments, in_feature="res5")
