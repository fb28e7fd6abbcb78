# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Arrays of checkpoints of any known project, by the names that Detectron2 gives them."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from detectron2.checkpoint.c2_model_loading import convert_c2_detectron_names

from wsis_d2.checkpoint.reader import load_file, model_state
from wsis_d2.utils.errors import InputError

# Classifiers of ImageNet, which no network here has a place for.
_IMAGENET_HEADS = ("fc.", "fc1000.", "linear.", "head.fc.", "stem.fc.")
_BACKBONE = re.compile(r"(stem|res[2-5]|s[1-4])\.")
_STEM = "stem.conv1.weight"
# Written under DistributedDataParallel, torch.compile, or both.
_WRAPPED = re.compile(r"^(module\.|_orig_mod\.)+")


@dataclass(frozen=True)
class Weights:
    """What a file holds.

    Attributes:
        arrays: parameters and buffers by name; of an ImageNet ResNet by the names of Detectron2's.
        source: how messages begin: the key or option that named the file, and the file.
        backbone: a backbone alone, which fits every network that has it.
        folded: batch norms have scale and shift alone, with the statistics in them (Caffe2).
        loose: names are ends of the model's, as in Detectron's first version.
        torchvision: a network of torchvision, which is used to standardised colours and strides
            in the 3x3 convolutions of its bottlenecks.
        published: the arrays by the file's own names.
    """

    arrays: dict[str, torch.Tensor]
    source: str
    backbone: bool = False
    folded: bool = False
    loose: bool = False
    torchvision: bool = False
    published: dict[str, torch.Tensor] = field(default_factory=dict)


def read_weights(path: str, key: str, image_format: str = "BGR", hint: str = "") -> Weights:
    """Read a file of this project, Detectron2, Detectron (Caffe2), torchvision or timm.

    Args:
        path: file, URL, ``wsis-d2://ID`` or another address of :func:`load_file`.
        key: the config key or option that named it, for messages.
        image_format: channel order that the network will see, INPUT.FORMAT. ImageNet networks are
            turned to it: torchvision's and timm's learned from RGB, Caffe2's from BGR.
        hint: where a missing file may come from.

    Raises:
        InputError: the file is missing, unreadable, or holds anything but finite arrays.
    """
    if hint and "://" not in path and not os.path.exists(path):
        raise InputError(f"{key}: {path}: no such file; {hint}")
    try:
        checkpoint = load_file(path)
        arrays = model_state(checkpoint, path)
    except InputError as error:
        raise InputError(f"{key}: {error}") from None
    source = f"{key}: {path}"
    loose, author = bool(checkpoint.get("matching_heuristics")), checkpoint.get("__author__")
    if all(map(_WRAPPED.match, arrays)):
        arrays = {_WRAPPED.sub("", name): value for name, value in arrays.items()}
    published = dict(arrays)
    if author == "Caffe2":
        arrays, _ = convert_c2_detectron_names(arrays)
    folded = author == "Caffe2" and not any("running_" in name for name in arrays)
    torchvision = author == "torchvision"
    if {"conv1.weight", "layer1.0.conv1.weight"} <= arrays.keys():
        arrays = {_of_torchvision(name): value for name, value in arrays.items()}
        torchvision = loose = True
    known = {n: v for n, v in arrays.items() if not n.startswith(_IMAGENET_HEADS)}
    backbone = bool(known) and all(map(_BACKBONE.match, known))
    if backbone:
        arrays = known
    order = "RGB" if torchvision else "BGR" if author == "Caffe2" else image_format
    if {order, image_format} == {"RGB", "BGR"} and _STEM in arrays:
        arrays[_STEM] = arrays[_STEM].flip(1)
    return Weights(
        arrays,
        source,
        backbone=backbone,
        folded=folded,
        loose=loose and not backbone,
        torchvision=torchvision,
        published=published,
    )


def _of_torchvision(name: str) -> str:
    """The name in Detectron2's ResNet of an array of torchvision's."""
    name = re.sub(r"^(conv|bn)1\.", r"stem.\g<1>1.", name)
    name = re.sub(r"^layer(\d)\.", lambda found: f"res{int(found[1]) + 1}.", name)
    name = name.replace(".downsample.0.", ".shortcut.").replace(".downsample.1.", ".shortcut.norm.")
    return re.sub(r"\.bn(\d)\.", r".conv\g<1>.norm.", name)


def match_ends(arrays: Mapping[str, torch.Tensor], wanted: Iterable[str]) -> dict:
    """Return arrays by the wanted names that end with theirs, the longest end first.

    One array may serve many names. Arrays that serve none keep their own names.
    """
    found, used = {}, set()
    for name in wanted:
        pieces = name.split(".")
        for start in range(len(pieces)):
            end = ".".join(pieces[start:])
            if end in arrays:
                found[name] = arrays[end]
                used.add(end)
                break
    return {**{name: v for name, v in arrays.items() if name not in used}, **found}
