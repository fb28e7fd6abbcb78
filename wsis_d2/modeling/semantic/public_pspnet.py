# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The public PSPNet of its authors (a Caffe model) as a start of the semantic subnetwork.

Its layers are those of our :class:`PSPHead` on a ResNet with the deep stem, stride in the 3x3
convolutions and 512 channels before the classifier; only names and the file's format differ. The
release has no auxiliary classifier.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wsis_d2.utils.errors import InputError

_STEM = {"conv1": "conv1_1_3x3_s2", "conv2": "conv1_2_3x3", "conv3": "conv1_3_3x3"}
_BLOCK = {
    "conv1": "1x1_reduce", "conv2": "3x3", "conv3": "1x1_increase", "shortcut": "1x1_proj",
}  # fmt: skip
_STAGES = {"res2": 3, "res3": 4, "res4": 23, "res5": 3}
_BINS = (1, 2, 3, 6)
# Blobs of the release's batch norm layers, in their order.
_NORM_BLOBS = ("weight", "bias", "running_mean", "running_var")
_WIRE_VARINT, _WIRE_64, _WIRE_BYTES, _WIRE_32 = 0, 1, 2, 5


def layer_names() -> dict[str, str]:
    """Return the release's layer of each of our convolutions.

    The layer's batch norm is called the same with ``/bn`` behind it, ours with ``.norm``; the
    classifier ``conv6`` has none.
    """
    names = {f"backbone.stem.{ours}": theirs for ours, theirs in _STEM.items()}
    for stage, blocks in _STAGES.items():
        for block in range(blocks):
            for ours, theirs in _BLOCK.items():
                if ours != "shortcut" or block == 0:
                    names[f"backbone.{stage}.{block}.{ours}"] = (
                        f"conv{stage[3]}_{block + 1}_{theirs}"
                    )
    for position, size in enumerate(_BINS):
        names[f"head.ppm.convs.{position}"] = f"conv5_3_pool{size}_conv"
    return {**names, "head.conv": "conv5_4", "head.predictor": "conv6"}


def convert(blobs: dict[str, list[np.ndarray]], source: str) -> dict[str, torch.Tensor]:
    """Return our parameters, ``semantic.backbone...`` and ``semantic.head...``.

    Args:
        blobs: arrays by layer, as :func:`read_caffemodel` returns them.
        source: the file, for messages.

    Raises:
        InputError: a layer is missing or has another number of arrays than expected.
    """
    state: dict[str, np.ndarray] = {}
    for ours, theirs in layer_names().items():
        classifier = ours == "head.predictor"
        parts: list[tuple[str, tuple[str, ...], str]] = [
            (theirs, ("weight", "bias") if classifier else ("weight",), ours)
        ]
        if not classifier:
            parts.append((f"{theirs}/bn", _NORM_BLOBS, f"{ours}.norm"))
        for layer, kinds, name in parts:
            arrays = blobs.get(layer, [])
            if len(arrays) != len(kinds):
                raise InputError(
                    f"{source}: layer {layer} has {len(arrays)} arrays, expected {len(kinds)}; "
                    "take the public PSPNet of depth 101, as its authors released it"
                )
            for kind, array in zip(kinds, arrays, strict=True):
                vector = kind != "weight" or name.endswith(".norm")
                state[f"semantic.{name}.{kind}"] = array.reshape(-1) if vector else array
    return {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in state.items()}


def read_caffemodel(path: str | Path) -> dict[str, list[np.ndarray]]:
    """Read the arrays of a binary ``.caffemodel`` (a protocol buffer), without Caffe.

    Returns:
        Layer name to its float32 arrays, in the file's order; layers without any are left out.

    Raises:
        InputError: missing, truncated, or no such file.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}, expected a .caffemodel") from None
    result: dict[str, list[np.ndarray]] = {}
    try:
        for field, layer in _fields(memoryview(data)):
            if field != 100:  # NetParameter.layer
                continue
            name, arrays = "", []
            for inner, value in _fields(layer):
                if inner == 1:  # LayerParameter.name
                    name = bytes(value).decode()
                elif inner == 7:  # LayerParameter.blobs
                    arrays.append(_blob(value))
            if arrays:
                result[name] = arrays
    except (ValueError, IndexError, TypeError) as error:
        raise InputError(f"{path}: no .caffemodel, or truncated ({error})") from None
    if not result:
        raise InputError(f"{path}: no layer with arrays in it, expected a .caffemodel")
    return result


def _blob(data: memoryview) -> np.ndarray:
    """Decode one BlobProto: packed floats (5) and a shape (7), or the old four sizes (1 to 4)."""
    values, shape, old = np.zeros(0, np.float32), None, {}
    for field, value in _fields(data):
        if field == 5:
            values = np.frombuffer(value, "<f4")
        elif field == 7:
            shape = [size for _, dims in _fields(value) for size in _varints(dims)]
        elif field in (1, 2, 3, 4):
            old[field] = value
    if shape is None:
        shape = [old.get(field, 1) for field in (1, 2, 3, 4)]
    if math.prod(shape) != len(values):
        raise ValueError(f"an array of {len(values)} numbers has shape {shape}")
    return values.reshape(shape)


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Yield (field number, value) of a message; numbers of fixed width are passed as bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == _WIRE_VARINT:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if wire == _WIRE_BYTES:
            length, at = _varint(data, at)
        elif wire in (_WIRE_64, _WIRE_32):
            length = 8 if wire == _WIRE_64 else 4
        else:
            raise ValueError(f"unknown kind of field {wire}")
        if at + length > len(data):
            raise ValueError("it ends within a field")
        yield key >> 3, data[at : at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number without end")


def _varints(value: int | memoryview) -> list[int]:
    """A repeated number: one, or many packed in bytes."""
    if isinstance(value, int):
        return [value]
    at, numbers = 0, []
    while at < len(value):
        number, at = _varint(value, at)
        numbers.append(number)
    return numbers
