# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Names of published weights in timm's networks."""

import re
from collections.abc import Iterable, Mapping

import torch

_OUTSIDE = {
    "_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2",
    "_fc": "classifier",
}  # fmt: skip
# A block without and with the convolution that widens it.
_NARROW = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_WIDE = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip


def timm_names(arrays: Mapping[str, torch.Tensor], network: Iterable[str]) -> dict:
    """Return arrays by timm's names; those of other projects than known ones keep their own.

    EfficientNet as in ``efficientnet_pytorch`` counts its blocks through, timm counts stages and
    the blocks of each.

    Args:
        arrays: by name.
        network: the names of timm's whole network.
    """
    if "_conv_stem.weight" not in arrays:
        return dict(arrays)
    blocks = list(dict.fromkeys(m[0] for n in network if (m := re.match(r"blocks\.\d+\.\d+", n))))
    wide = {n.split(".")[1] for n in arrays if "._expand_conv." in n}
    result = {}
    for name, array in arrays.items():
        found = re.match(r"_blocks\.(\d+)\.(\w+)\.(\w+)$", name)
        if found and int(found[1]) < len(blocks):
            inner = (_WIDE if found[1] in wide else _NARROW).get(found[2], found[2])
            name = f"{blocks[int(found[1])]}.{inner}.{found[3]}"
        elif not found:
            outer, _, rest = name.partition(".")
            name = f"{_OUTSIDE.get(outer, outer)}.{rest}"
        result[name] = array
    return result


def flattened(name: str, wanted: Mapping[str, torch.Tensor]) -> str:
    """Return a name as timm's feature extractors have it, which write some dots as underscores."""
    position = -1
    while name not in wanted and (position := name.find(".", position + 1)) >= 0:
        candidate = name[:position].replace(".", "_") + "_" + name[position + 1 :]
        if candidate in wanted:
            return candidate
    return name
