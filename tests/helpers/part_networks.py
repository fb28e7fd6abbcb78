# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Options of small networks of each stage, and the files that fill them or their parts."""

import numpy as np
import torch

DETECTOR, SEMANTIC, JOINT, PIECEWISE = (
    ("MODEL.WSIS.STAGE", stage)
    for stage in ("detector", "semantic", "end_to_end", "instance_piecewise")
)

# Both networks on the ResNet-50 of ImageNet, narrow above it.
R50 = (
    "MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.NORM", "FrozenBN",
    "MODEL.RESNETS.STEM_OUT_CHANNELS", 64, "MODEL.RESNETS.RES2_OUT_CHANNELS", 256,
    "MODEL.SEMANTIC.RESNETS.DEPTH", 50, "MODEL.SEMANTIC.RESNETS.NORM", "FrozenBN",
    "MODEL.SEMANTIC.RESNETS.STEM_OUT_CHANNELS", 64,
    "MODEL.SEMANTIC.RESNETS.RES2_OUT_CHANNELS", 256,
)  # fmt: skip

# The widths of torchvision's ResNet-18.
R18 = (
    "MODEL.RESNETS.STEM_OUT_CHANNELS", 64, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64,
    "MODEL.SEMANTIC.RESNETS.STEM_OUT_CHANNELS", 64, "MODEL.SEMANTIC.RESNETS.RES2_OUT_CHANNELS", 64,
)  # fmt: skip

ANEW = ("MODEL.WSIS.PARTIAL_WEIGHTS", True)

NARROW = ("MODEL.FPN.OUT_CHANNELS", 12, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 12)


def arrays_of(path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model"]


def save(path, arrays) -> str:
    torch.save({"model": arrays}, path)
    return str(path)


def same(module, arrays, prefix="") -> bool:
    return all(torch.equal(v, arrays[prefix + n]) for n, v in module.state_dict().items())


def caffe2_resnet50() -> dict[str, np.ndarray]:
    """Detectron's R-50.pkl: its names and shapes, each array one number of its own."""
    shapes = {"conv1_w": (64, 3, 7, 7), "conv1_b": (64,), "fc1000_w": (1000, 2048),
              "fc1000_b": (1000,), "res_conv1_bn_s": (64,), "res_conv1_bn_b": (64,)}  # fmt: skip
    inputs = 64
    for stage, blocks in zip(range(2, 6), (3, 4, 6, 3), strict=True):
        inner, outputs = 32 * 2 ** (stage - 1), 128 * 2 ** (stage - 1)
        for block in range(blocks):
            own = {"2a": (inner, inputs, 1, 1), "2b": (inner, inner, 3, 3),
                   "2c": (outputs, inner, 1, 1)}  # fmt: skip
            if block == 0:
                own["1"] = (outputs, inputs, 1, 1)
            for branch, shape in own.items():
                name = f"res{stage}_{block}_branch{branch}"
                shapes |= {f"{name}_w": shape, f"{name}_bn_s": shape[:1], f"{name}_bn_b": shape[:1]}
            inputs = outputs
    arrays = {}
    for number, (name, shape) in enumerate(shapes.items(), 1):
        arrays[name] = np.full(shape, number / 1024, np.float32)
    arrays["conv1_w"] += np.arange(3, dtype=np.float32).reshape(1, 3, 1, 1)
    return arrays


def check_resnet50(module, arrays) -> None:
    """Some arrays of every kind, by hand from one naming to the other."""
    for theirs, ours in {
        "conv1_w": "stem.conv1.weight",
        "res_conv1_bn_s": "stem.conv1.norm.weight",
        "res2_0_branch2a_w": "res2.0.conv1.weight",
        "res3_0_branch1_w": "res3.0.shortcut.weight",
        "res3_0_branch1_bn_b": "res3.0.shortcut.norm.bias",
        "res4_5_branch2b_bn_s": "res4.5.conv2.norm.weight",
        "res5_2_branch2c_w": "res5.2.conv3.weight",
    }.items():
        assert np.array_equal(module.state_dict()[ours].numpy(), arrays[theirs]), ours
