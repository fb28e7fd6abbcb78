# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Residual networks of any depth, width and dilation, from Detectron2's blocks.

Detectron2's own builders fix the width of ResNet-18 and 34 and dilate only res5 of the deeper
ones. Parameter names are Detectron2's, so its checkpoints (MSRA R-50, R-101, ...) load.
"""

import copy

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock, ResNet
from fvcore.nn.weight_init import c2_msra_fill

_BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


class DilatedBasicBlock(CNNBlockBase):
    """The two-convolution residual block of ResNet-18 and 34, with dilation.

    Args:
        in_channels, out_channels: channels of input and output.
        stride: stride of the first convolution.
        dilation: dilation of both convolutions.
        norm: a norm's name or a callable, see ``detectron2.layers.get_norm``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        norm: str = "BN",
    ) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.shortcut = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = _conv(in_channels, out_channels, 1, stride, 1, norm)
        self.conv1 = _conv(in_channels, out_channels, 3, stride, dilation, norm)
        self.conv2 = _conv(out_channels, out_channels, 3, 1, dilation, norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        out = self.conv2(F.relu_(self.conv1(x)))
        return F.relu_(out + (x if self.shortcut is None else self.shortcut(x)))


class DeepStem(CNNBlockBase):
    """Three 3x3 convolutions and a max pooling: the stem of the public PSPNet.

    Args:
        in_channels: channels of the image.
        out_channels: channels of the last convolution; the others have half of them.
        norm: a norm's name or a callable.
    """

    def __init__(self, in_channels: int = 3, out_channels: int = 128, norm: str = "BN") -> None:
        super().__init__(in_channels, out_channels, 4)
        self.in_channels = in_channels
        half = out_channels // 2
        self.conv1 = _conv(in_channels, half, 3, 2, 1, norm)
        self.conv2 = _conv(half, half, 3, 1, 1, norm)
        self.conv3 = _conv(half, out_channels, 3, 1, 1, norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / 4, W / 4)."""
        for conv in (self.conv1, self.conv2, self.conv3):
            x = F.relu_(conv(x))
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


def _conv(inputs: int, outputs: int, size: int, stride: int, dilation: int, norm: str) -> Conv2d:
    conv = Conv2d(
        inputs, outputs, kernel_size=size, stride=stride, padding=dilation * (size // 2),
        dilation=dilation, bias=False, norm=get_norm(norm, outputs),
    )  # fmt: skip
    c2_msra_fill(conv)
    return conv


def build_resnet(
    *,
    depth: int,
    norm: str,
    in_channels: int = 3,
    stem: str = "basic",
    stem_channels: int = 64,
    res2_channels: int = 256,
    bottleneck_channels: int = 64,
    num_groups: int = 1,
    stride_in_1x1: bool = True,
    res4_dilation: int = 1,
    res5_dilation: int = 1,
    res5_multi_grid: tuple[int, ...] = (1, 1, 1),
    out_features: tuple[str, ...] = ("res5",),
    freeze_at: int = 0,
) -> ResNet:
    """Build a residual network.

    Args:
        depth: 18, 34, 50, 101 or 152.
        norm: a norm's name.
        in_channels: channels of the image.
        stem: "basic" or "deep".
        stem_channels: channels of the stem's output.
        res2_channels: channels of res2; each later stage doubles them.
        bottleneck_channels: inner channels of res2's bottlenecks (depth 50 and up).
        num_groups: groups of the bottlenecks' 3x3 convolutions.
        stride_in_1x1: whether a bottleneck strides in its first 1x1 convolution (MSRA).
        res4_dilation: dilation of res4; above 1 the stage does not stride.
        res5_dilation: dilation of res5, which strides only if it equals res4's.
        res5_multi_grid: factors of the dilation of res5's blocks (depth 50 and up).
        out_features: stages to return.
        freeze_at: number of stages, stem included, whose parameters are fixed.

    Raises:
        ValueError: an impossible depth, stem or pair of dilations.
    """
    if depth not in _BLOCKS:
        raise ValueError(f"RESNETS.DEPTH is {depth}, expected one of {sorted(_BLOCKS)}")
    if (res4_dilation, res5_dilation) not in {(1, 1), (1, 2), (2, 4)}:
        raise ValueError(
            f"RESNETS.RES5_DILATION is {res5_dilation} (res4's {res4_dilation}), expected 1 "
            "(output stride 32), 2 (16) or 4 (8, with 2 of res4)"
        )
    stems = {"basic": BasicStem, "deep": DeepStem}
    if stem not in stems:
        raise ValueError(f"stem is {stem!r}, expected one of {sorted(stems)}")
    stem_module = stems[stem](in_channels=in_channels, out_channels=stem_channels, norm=norm)
    dilations = (1, 1, res4_dilation, res5_dilation)
    inputs, outputs, inner, stages = stem_channels, res2_channels, bottleneck_channels, []
    for index, (blocks, dilation) in enumerate(zip(_BLOCKS[depth], dilations, strict=True)):
        first_stride = 1 if index == 0 or dilation > 1 else 2
        options = {
            "num_blocks": blocks,
            "stride_per_block": [first_stride] + [1] * (blocks - 1),
            "in_channels": inputs,
            "out_channels": outputs,
            "norm": norm,
        }
        if depth >= 50:
            options.update(
                bottleneck_channels=inner, stride_in_1x1=stride_in_1x1, num_groups=num_groups
            )
            factors = res5_multi_grid if index == 3 else [1] * blocks
            options["dilation_per_block"] = [dilation * factor for factor in factors]
            block = BottleneckBlock
        else:
            options["dilation"] = dilation
            block = DilatedBasicBlock
        stages.append(ResNet.make_stage(block, **options))
        inputs, outputs, inner = outputs, outputs * 2, inner * 2
    return ResNet(stem_module, stages, out_features=list(out_features), freeze_at=freeze_at)


def _arguments(cfg: CfgNode, input_shape: ShapeSpec) -> dict:
    resnets = cfg.MODEL.RESNETS
    return {
        "depth": resnets.DEPTH,
        "norm": resnets.NORM,
        "in_channels": input_shape.channels,
        "stem_channels": resnets.STEM_OUT_CHANNELS,
        "res2_channels": resnets.RES2_OUT_CHANNELS,
        "bottleneck_channels": resnets.NUM_GROUPS * resnets.WIDTH_PER_GROUP,
        "num_groups": resnets.NUM_GROUPS,
        "stride_in_1x1": resnets.STRIDE_IN_1X1,
        "res4_dilation": 2 if resnets.RES5_DILATION == 4 else 1,
        "res5_dilation": resnets.RES5_DILATION,
        "out_features": tuple(resnets.OUT_FEATURES),
        "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
    }


@BACKBONE_REGISTRY.register()
def build_resnet_any_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """A ResNet of any depth, width and output stride from MODEL.RESNETS and MODEL.BACKBONE."""
    return build_resnet(**_arguments(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_resnet_any_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """A feature pyramid on a ResNet of any depth and width, from Detectron2's keys."""
    return FPN(
        bottom_up=build_resnet_any_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_pspnet_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """The same with the stem of the public PSPNet, three 3x3 convolutions."""
    return build_resnet(**_arguments(cfg, input_shape), stem="deep")


def build_semantic_backbone(cfg: CfgNode) -> Backbone:
    """Build the semantic subnetwork's own backbone from MODEL.SEMANTIC.

    Any registered builder works: it sees the BACKBONE, RESNETS, TIMM, FPN, PIXEL_MEAN and PIXEL_STD
    of MODEL.SEMANTIC in the places of MODEL's.
    """
    own = cfg.clone()
    own.defrost()
    for key in ("BACKBONE", "RESNETS", "TIMM", "FPN", "PIXEL_MEAN", "PIXEL_STD"):
        own.MODEL[key] = copy.deepcopy(cfg.MODEL.SEMANTIC[key])
    shape = ShapeSpec(channels=len(cfg.MODEL.SEMANTIC.PIXEL_MEAN))
    return BACKBONE_REGISTRY.get(own.MODEL.BACKBONE.NAME)(own, shape)
