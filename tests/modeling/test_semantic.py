# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Pyramid head, sizes, loss and inference at any size."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec

from wsis_d2.config import add_wsis_config
from wsis_d2.modeling.backbone import build_semantic_backbone
from wsis_d2.modeling.backbone.resnet import build_resnet
from wsis_d2.modeling.semantic import (
    PSPHead,
    PyramidPooling,
    SemanticInference,
    SemanticSubnetwork,
)
from wsis_d2.modeling.semantic.inference import tile_starts
from wsis_d2.modeling.semantic.psp_head import _learns
from wsis_d2.utils.errors import InputError


def default_cfg(*opts):
    cfg = get_cfg()
    add_wsis_config(cfg)
    cfg.merge_from_list(list(opts))
    return cfg


def small_head(**options) -> PSPHead:
    shapes = {
        "res4": ShapeSpec(channels=6, stride=8),
        "res5": ShapeSpec(channels=8, stride=8),
    }
    defaults = {
        "in_feature": "res5", "num_classes": 5, "ignore_value": 255, "bins": [1, 2, 3, 6],
        "ppm_dim": 3, "conv_dim": 4, "norm": "BN", "aux_dim": 4,
    }  # fmt: skip
    return PSPHead(shapes, **{**defaults, **options})


def test_pyramid_pooling_averages_the_cells_of_its_grids():
    pool = PyramidPooling(1, [1, 2], 1, "")
    for conv in pool.convs:
        torch.nn.init.ones_(conv.weight)
    x = torch.arange(16.0).view(1, 1, 4, 4)
    out = pool(x)
    assert torch.equal(out[:, :1], x)
    assert torch.allclose(out[0, 1], torch.full((4, 4), 7.5))
    corners = out[0, 2][[0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.tolist() == pytest.approx([2.5, 4.5, 10.5, 12.5])


@pytest.mark.parametrize("norm", ["BN", "SyncBN", "naiveSyncBN"])
def test_batch_norm_needs_more_than_one_image_in_all_processes(norm, monkeypatch):
    pool = PyramidPooling(2, [1, 2], 2, norm).train()
    with pytest.raises(InputError, match="SEM_SEG_HEAD.NORM: batch norm over a single value"):
        pool(torch.rand(1, 2, 4, 4))
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    assert _learns(pool.convs[0].norm) == (norm == "BN")


def test_shapes_of_the_paper_network():
    """ResNet-101 at output stride 8 and the head's layers; the sums are worked out by hand."""
    cfg = default_cfg("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 21)
    backbone = build_semantic_backbone(cfg)
    assert {k: v.stride for k, v in backbone.output_shape().items()} == {"res4": 8, "res5": 8}
    assert {k: v.channels for k, v in backbone.output_shape().items()} == {
        "res4": 1024,
        "res5": 2048,
    }
    # Convolutions of ResNet-101 without its classifier.
    assert sum(p.numel() for p in backbone.parameters()) == 42_394_816
    head = PSPHead(cfg, backbone.output_shape())
    pyramid = 4 * 2048 * 512
    last = 9 * (2048 + 4 * 512) * 2048 + 2048 * 21 + 21
    aux = 9 * 1024 * 256 + 256 * 21 + 21
    assert sum(p.numel() for p in head.parameters()) == pyramid + last + aux
    dilations = [block.conv2.dilation for block in backbone.res5]
    assert dilations == [(4, 4)] * 3
    assert [block.conv2.dilation for block in backbone.res4] == [(2, 2)] * 23
    assert backbone.res3[0].conv1.stride == (2, 2) and backbone.res3[0].conv2.stride == (1, 1)


def test_crop_of_521_gives_66_cells():
    net = build_resnet(
        depth=18, norm="BN", stem_channels=4, res2_channels=4, res4_dilation=2, res5_dilation=4
    ).eval()
    with torch.no_grad():
        assert net(torch.zeros(1, 3, 521, 521))["res5"].shape[-2:] == (66, 66)


def msra_state(depth_blocks=(3, 4, 23, 3)) -> dict:
    """Names and shapes of the MSRA ResNet-101 as Caffe2 stores them."""
    state = {"conv1_w": (64, 3, 7, 7), "fc1000_w": (1000, 2048), "fc1000_b": (1000,)}
    for part in ("s", "b"):
        state[f"res_conv1_bn_{part}"] = (64,)
    inputs = 64
    for stage, blocks in zip(range(2, 6), depth_blocks, strict=True):
        inner, outputs = 32 * 2 ** (stage - 1), 128 * 2 ** (stage - 1)
        for block in range(blocks):
            prefix = f"res{stage}_{block}_branch"
            shapes = {
                "2a": (inner, inputs, 1, 1),
                "2b": (inner, inner, 3, 3),
                "2c": (outputs, inner, 1, 1),
            }
            if block == 0:
                shapes["1"] = (outputs, inputs, 1, 1)
            for branch, shape in shapes.items():
                state[f"{prefix}{branch}_w"] = shape
                state[f"{prefix}{branch}_bn_s"] = state[f"{prefix}{branch}_bn_b"] = shape[:1]
            inputs = outputs
    return {k: torch.full(v, 0.5) for k, v in state.items()}


def test_msra_weights_fit_all_but_the_heads():
    cfg = default_cfg("MODEL.META_ARCHITECTURE", "WeakPanopticRCNN", "MODEL.DEVICE", "cpu",
                      "MODEL.WSIS.STAGE", "semantic", "MODEL.WSIS.THING_IDS", [1],
                      "MODEL.SEM_SEG_HEAD.CONVS_DIM", 8)  # fmt: skip
    from detectron2.modeling import build_model

    model = build_model(cfg)
    checkpoint = {"model": msra_state(), "__author__": "Caffe2", "matching_heuristics": True}
    found = DetectionCheckpointer(model)._load_model(checkpoint)
    assert [k for k in found.missing_keys if not k.startswith("semantic.head.")] == []
    # The norms' running mean and variance are not in the file: scale and shift hold them.
    assert sorted(found.unexpected_keys) == ["fc1000.bias", "fc1000.weight"]
    assert not found.incorrect_shapes
    assert (model.semantic.backbone.res4[22].conv3.weight == 0.5).all()


@pytest.mark.parametrize("aux", [0.4, 0.0])
def test_loss_is_the_mean_over_labelled_pixels(aux):
    head = small_head(aux_loss_weight=aux, aux_dim=4 if aux else 0)
    logits, other = torch.randn(2, 5, 9, 7), torch.randn(2, 5, 9, 7)
    targets = torch.randint(0, 5, (2, 9, 7))
    targets[:, :4] = 255
    losses = head.losses(logits, other if aux else None, targets)
    wanted = F.cross_entropy(logits[:, :, 4:], targets[:, 4:])
    assert float(losses["loss_sem_seg"]) == pytest.approx(float(wanted), rel=1e-5)
    if aux:
        wanted = aux * F.cross_entropy(other[:, :, 4:], targets[:, 4:])
        assert float(losses["loss_sem_seg_aux"]) == pytest.approx(float(wanted), rel=1e-5)
    else:
        assert set(losses) == {"loss_sem_seg"} and not hasattr(head, "aux_conv")


def test_loss_without_a_label_is_zero_with_a_graph():
    logits = torch.randn(1, 5, 3, 3, requires_grad=True)
    loss = small_head().losses(logits, None, torch.full((1, 3, 3), 255))["loss_sem_seg"]
    loss.backward()
    assert float(loss.detach()) == 0 and logits.grad.abs().sum() == 0


@pytest.mark.parametrize(
    "length,tile,overlap",
    [(100, 100, 0.3), (101, 100, 0.3), (1024, 521, 0.33), (2048, 521, 0.0), (57, 10, 0.9)],
)
def test_tiles_cover_the_image_and_overlap(length, tile, overlap):
    starts = tile_starts(length, tile, overlap)
    assert starts[0] == 0 and starts[-1] == max(0, length - tile)
    for first, second in zip(starts, starts[1:], strict=False):
        assert first < second <= first + tile * (1 - overlap) + 1


def each(classify):
    """A classifier of many tiles from one of a single tile."""
    return lambda tiles: [classify(tile) for tile in tiles]


def pointwise(tile: torch.Tensor) -> torch.Tensor:
    """A classifier whose answer at a pixel is that pixel's colour."""
    return torch.softmax(tile.float() / 50, dim=0)


@pytest.mark.parametrize("size", [(37, 53), (16, 16), (100, 9)])
def test_tiles_and_mirror_image_of_a_pointwise_classifier_change_nothing(size):
    image = torch.randint(0, 256, (3, *size)).float()
    whole = SemanticInference()(each(pointwise), [image])[0]
    assert torch.equal(whole, pointwise(image))
    tiles = SemanticInference(tile_size=16, tile_overlap=0.4, flip=True)
    assert torch.allclose(tiles(each(pointwise), [image])[0], whole, atol=1e-5)


def test_tiles_are_blended_without_a_seam():
    """Tiles that disagree: the result runs smoothly from one to the other."""
    calls = []

    def disagreeing(tile: torch.Tensor) -> torch.Tensor:
        calls.append(tile.shape)
        share = torch.full((1, *tile.shape[-2:]), float(len(calls) % 2))
        return torch.cat([share, 1 - share])

    image = torch.zeros(3, 20, 32)
    out = SemanticInference(tile_size=20, tile_overlap=0.4)(each(disagreeing), [image])[0]
    assert len(calls) == 2 and all(shape == (3, 20, 20) for shape in calls)
    assert torch.allclose(out.sum(0), torch.ones(20, 32))
    row = out[0, 10]
    assert row[:12].eq(1).all() and row[20:].eq(0).all()
    assert float((row[1:] - row[:-1]).abs().max()) < 0.2


def square_network(*opts):
    """A thin network that notes the sizes it was given."""
    torch.manual_seed(0)
    cfg = default_cfg(
        "MODEL.SEMANTIC.RESNETS.DEPTH", 18, "MODEL.SEMANTIC.RESNETS.RES2_OUT_CHANNELS", 4,
        "MODEL.SEMANTIC.RESNETS.STEM_OUT_CHANNELS", 4, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3,
        "MODEL.SEM_SEG_HEAD.PPM_DIM", 2, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 4,
        *opts,
    )  # fmt: skip
    network, sizes = SemanticSubnetwork(cfg).eval(), []
    network.backbone.register_forward_pre_hook(lambda _, x: sizes.append(tuple(x[0].shape[-2:])))
    return network, sizes


def test_the_network_sees_one_size_in_training_and_in_tiles():
    network, sizes = square_network("MODEL.SEMANTIC.TILE_SIZE", 65)
    images = [torch.full((3, 40, 65), 90.0), torch.full((3, 65, 20), 90.0)]
    batch = network.batch(images, network.crop_size)
    assert batch.shape == (2, 3, 65, 65)
    assert batch[0, :, 40:].eq(0).all() and batch[1, :, :, 20:].eq(0).all()  # the mean colour
    logits, _ = network.logits(images[:1], network.crop_size)
    loss = network.losses(logits, None, [torch.full((40, 65), 2)])["loss_sem_seg"]
    assert torch.allclose(loss, F.cross_entropy(logits[:, :, :40], torch.full((1, 40, 65), 2)))
    with torch.no_grad():
        for size in ((50, 60), (100, 30), (70, 130)):
            assert network.probabilities([torch.rand(3, *size) * 255])[0].shape == (3, *size)
    assert set(sizes) == {(65, 65)}


def test_without_tiles_crops_and_images_are_seen_whole():
    network, sizes = square_network()
    with torch.no_grad():
        network.probabilities([torch.rand(3, 50, 60) * 255])
    assert sizes == [(57, 65)] and network.crop_size is None


def test_sizes_are_averaged_at_the_image_size():
    image, seen = torch.randint(0, 256, (3, 24, 36)).float(), []

    def classify(tile):
        seen.append(tuple(tile.shape[-2:]))
        return pointwise(tile)

    inference = SemanticInference(min_sizes=(12, 24, 36), max_size=48, flip=True)
    out = inference(each(classify), [image])[0]
    # Detectron2's ResizeShortestEdge: the longer side is at most 48, so 32 for 36.
    assert seen == [size for size in ((12, 18), (24, 36), (32, 48)) for _ in range(2)]
    assert out.shape == (3, 24, 36)
    assert torch.allclose(out.sum(0), torch.ones(24, 36), atol=1e-5)
    flat = torch.full((3, 24, 36), 80.0)
    flat[1] = 120
    assert torch.allclose(
        SemanticInference(min_sizes=(12, 36))(each(pointwise), [flat])[0],
        pointwise(flat),
        atol=1e-4,
    )


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"min_sizes": (0,)}, "TEST.AUG.MIN_SIZES"),
        ({"max_size": 0}, "MAX_SIZE"),
        ({"tile_overlap": 1.0}, "tile_overlap"),
        ({"tile_size": -1}, "MODEL.SEMANTIC.TILE_SIZE"),
    ],
)
def test_impossible_inference_options_are_named(options, name):
    with pytest.raises(ValueError, match=name):
        SemanticInference(**options)


def test_the_keys_of_inference():
    cfg = default_cfg("MODEL.SEMANTIC.TILE_SIZE", 65)
    assert SemanticInference.from_config(cfg).min_sizes == ()
    cfg = default_cfg("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (300, 400))
    inference = SemanticInference.from_config(cfg)
    assert inference.min_sizes == (300, 400) and inference.flip and not inference.is_plain
    assert SemanticInference.from_config(default_cfg()).is_plain


@pytest.mark.parametrize("key,value", [("DEPTH", 19), ("RES5_DILATION", 3)])
def test_impossible_backbones_are_named(key, value):
    cfg = default_cfg(f"MODEL.SEMANTIC.RESNETS.{key}", value)
    with pytest.raises(ValueError, match=f"RESNETS.{key}"):
        build_semantic_backbone(cfg)
