# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""A backbone's weights: from an ImageNet network, or from another network's backbone."""

from detectron2.modeling import Backbone
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import nn

from wsis_d2.checkpoint.coverage import load_into
from wsis_d2.checkpoint.names import Weights
from wsis_d2.modeling.backbone import TimmBackbone
from wsis_d2.utils.errors import InputError


def backbones_of(model: nn.Module) -> list[str]:
    """Return the names of a network's backbones; of a feature pyramid, that of its ResNet."""
    found = [n for n, m in model.named_modules() if isinstance(m, Backbone) and m.state_dict()]
    return [n for n in found if not any(other.startswith(f"{n}.") for other in found)]


def is_backbone(model: nn.Module, weights: Weights) -> bool:
    """Whether a file holds a backbone alone: an ImageNet ResNet, or what timm's backbones take."""
    modules = [model.get_submodule(name) for name in backbones_of(model)]
    return weights.backbone or any(
        isinstance(m, TimmBackbone) and m.recognizes(weights.published) for m in modules
    )


def load_backbone(model: nn.Module, name: str, weights: Weights) -> None:
    """Fill a backbone from an ImageNet network, or from another network's backbone.

    Args:
        model: the network.
        name: of the backbone in it, e.g. ``semantic.backbone``.
        weights: of the places in it that end like the backbone's first array, the fullest counts.

    Raises:
        InputError: the file's network has another depth, width or norm, or learned from other
            strides or colours than the model has.
    """
    module = model.get_submodule(name)
    wanted = module.state_dict()
    first = next(iter(wanted))
    prefixes = [n.removesuffix(first) for n in weights.arrays if f".{n}".endswith(f".{first}")]
    best = max(prefixes, key=lambda p: sum(p + n in weights.arrays for n in wanted), default="")
    arrays = {n.removeprefix(best): v for n, v in weights.arrays.items() if n.startswith(best)}
    elsewhere: list[str] = []
    if isinstance(module, TimmBackbone):
        if not prefixes:  # not a checkpoint of a network that has this backbone
            arrays, elsewhere = module.own_names(weights.published)
    else:
        _check_input(model, name, weights)
    load_into(
        module, arrays, source=weights.source, what=name, folded=weights.folded,
        allow_foreign=elsewhere,
        hint="name weights of the same depth, width and norm",
    )  # fmt: skip


def _check_input(model: nn.Module, name: str, weights: Weights) -> None:
    """Refuse torchvision's weights in a network that strides or scales colours in another way."""
    if not weights.torchvision:
        return
    section = "MODEL.SEMANTIC." if name.startswith("semantic.") else "MODEL."
    blocks = [m for m in model.get_submodule(name).modules() if isinstance(m, BottleneckBlock)]
    if any(block.conv1.stride != (1, 1) for block in blocks):
        raise InputError(
            f"{weights.source}: torchvision's ResNet strides in its 3x3 convolutions; set "
            f"{section}RESNETS.STRIDE_IN_1X1 False"
        )
    owners = [name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1)] + [""]
    for owner in owners:
        deviation = getattr(model.get_submodule(owner), "pixel_std", None)
        if deviation is None:
            continue
        if float(deviation.max()) < 10:
            raise InputError(
                f"{weights.source}: torchvision's networks learned from standardised colours; set "
                f"{section}PIXEL_STD [57.4, 57.1, 58.4]"
            )
        return
