# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The public PSPNet's file: read as Caffe writes it, named as our model's parameters."""

import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY

from wsis_d2.engine.setup import load_cfg
from wsis_d2.modeling.semantic.public_pspnet import convert, layer_names, read_caffemodel
from wsis_d2.utils.cli import main_with_errors
from wsis_d2.utils.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import convert_pspnet  # noqa: E402

SEMANTIC = "Cityscapes-SemanticSegmentation/pspnet_R_101_full_pspnet_init.yaml"
PANOPTIC = "Cityscapes-PanopticSegmentation/wsis_R_101_full_pspnet_init.yaml"


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def entry(field: int, value: int | bytes) -> bytes:
    """One field of a protocol buffer: a number or length-delimited bytes."""
    if isinstance(value, int):
        return varint(field << 3) + varint(value)
    return varint(field << 3 | 2) + varint(len(value)) + value


def blob(array: np.ndarray, old: bool = False) -> bytes:
    floats = entry(5, array.astype("<f4").tobytes())
    if old:
        return b"".join(entry(k + 1, n) for k, n in enumerate(array.shape)) + floats
    return floats + entry(7, entry(1, b"".join(varint(n) for n in array.shape)))


def caffemodel(layers: dict[str, list[bytes]]) -> bytes:
    net = entry(1, b"a net")
    for name, blobs in layers.items():
        # type, a fixed-width field that is skipped, the arrays
        body = entry(1, name.encode()) + entry(2, b"BN") + varint(99 << 3 | 5) + struct.pack("f", 1)
        net += entry(100, body + b"".join(entry(7, b) for b in blobs))
    return net


def model_shapes(recipe: str) -> dict[str, tuple[int, ...]]:
    cfg = load_cfg(str(ROOT / "configs" / recipe), ["MODEL.DEVICE", "cpu"])
    with torch.device("meta"):
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def test_arrays_come_back_as_they_were_written(tmp_path):
    rng = np.random.default_rng(0)
    conv = rng.normal(size=(5, 3, 3, 3)).astype(np.float32)
    norm = [rng.normal(size=(1, 5, 1, 1)).astype(np.float32) for _ in range(4)]
    path = tmp_path / "a.caffemodel"
    path.write_bytes(
        caffemodel({"data": [], "conv": [blob(conv)], "conv/bn": [blob(a, old=True) for a in norm]})
    )
    found = read_caffemodel(path)
    assert list(found) == ["conv", "conv/bn"]
    np.testing.assert_array_equal(found["conv"][0], conv)
    for one, two in zip(found["conv/bn"], norm, strict=True):
        np.testing.assert_array_equal(one, two)


def public_blobs(shapes: dict[str, tuple[int, ...]]) -> dict[str, list[np.ndarray]]:
    """Arrays by the release's names, of the shapes our model has; values tell them apart."""
    blobs, value = {}, 0.0
    for ours, theirs in layer_names().items():
        kinds = ("weight", "bias") if ours == "head.predictor" else ("weight",)
        parts = [(theirs, f"semantic.{ours}", kinds)]
        if ours != "head.predictor":
            norm = ("weight", "bias", "running_mean", "running_var")
            parts.append((f"{theirs}/bn", f"semantic.{ours}.norm", norm))
        for layer, name, kinds in parts:
            blobs[layer] = []
            for kind in kinds:
                value += 1.0
                shape = shapes[f"{name}.{kind}"]
                if layer.endswith("/bn"):
                    shape = (1, *shape, 1, 1)
                blobs[layer].append(np.full(shape, value, np.float32))
    return blobs


def test_every_parameter_but_the_auxiliary_classifiers_is_found():
    shapes = model_shapes(SEMANTIC)
    state = convert(public_blobs(shapes), "x")
    left = {name for name in shapes if name not in state}
    assert left and all(name.startswith("semantic.head.aux_") for name in left)
    assert {name: tuple(v.shape) for name, v in state.items()} == {
        name: shapes[name] for name in shapes if name not in left
    }
    # No array serves twice.
    assert len({float(v.flatten()[0]) for v in state.values()}) == len(state)
    blobs = public_blobs(shapes)
    scale, shift, mean, variance = (float(a.flatten()[0]) for a in blobs["conv4_23_3x3/bn"])
    name = "semantic.backbone.res4.22.conv2.norm"
    kinds = ("weight", "bias", "running_mean", "running_var")
    assert [float(state[f"{name}.{k}"][0]) for k in kinds] == [scale, shift, mean, variance]


@pytest.mark.parametrize("recipe", [SEMANTIC, PANOPTIC])
def test_recipes_stride_where_the_public_network_does(recipe):
    """Its prototxt: conv3_1_1x1_reduce has stride 1, conv3_1_3x3 stride 2."""
    cfg = load_cfg(str(ROOT / "configs" / recipe), ["MODEL.DEVICE", "cpu"])
    with torch.device("meta"):
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    first = model.semantic.backbone.res3[0]
    assert (first.conv1.stride, first.conv2.stride) == ((1, 1), (2, 2))
    assert [block.conv2.dilation for block in model.semantic.backbone.res5] == [(4, 4)] * 3


def test_the_tool_names_what_is_wrong(tmp_path, capsys):
    path = tmp_path / "a.caffemodel"
    good = caffemodel({"conv1_1_3x3_s2": [blob(np.zeros((64, 3, 3, 3)))]})
    for content, words in (
        (None, "No such file"),
        (b"", "no layer with arrays"),
        (b"PK\x03\x04 no protocol buffer", "no .caffemodel"),
        (good[:-100], "ends within a field"),
        (good, "layer conv1_1_3x3_s2/bn has 0 arrays, expected 4"),
    ):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(SystemExit) as end:
            main_with_errors(convert_pspnet.main, [str(path), str(tmp_path / "out.pth")])
        lines = capsys.readouterr().err.strip().splitlines()
        assert end.value.code == 2 and len(lines) == 1 and words in lines[0]
        assert "a.caffemodel" in lines[0] and not (tmp_path / "out.pth").exists()
    with pytest.raises(InputError, match="has shape"):
        bad = entry(5, bytes(8)) + entry(7, entry(1, varint(3)))
        path.write_bytes(caffemodel({"x": [bad]}))
        read_caffemodel(path)
