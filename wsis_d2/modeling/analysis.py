# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Parameters, FLOPs and activations of a model, by part."""

from typing import Any

import torch
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from torch import nn

from wsis_d2.modeling.backbone.color_texture import color_texture
from wsis_d2.modeling.meta_arch import TagClassifier, TagSegmenter


class _Part(nn.Module):
    """Wraps one tensor-in, tensors-out piece of a model, so that it can be traced."""

    def __init__(self, module: nn.Module, function: Any) -> None:
        super().__init__()
        self.module = module
        self.function = function

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.function(image)


def parameter_table(model: nn.Module) -> list[dict[str, Any]]:
    """Return parameters of each part: of the top-level modules and of their children.

    Returns:
        ``{"part", "parameters", "trained", "buffers"}`` each; the first row is the whole model.
    """
    modules = [("model", model)]
    for name, child in model.named_children():
        modules.append((name, child))
        modules += [
            (f"{name}.{sub}", inner) for sub, inner in child.named_children() if _count(inner)
        ]
    return [
        {
            "part": name,
            "parameters": _count(module),
            "trained": sum(p.numel() for p in module.parameters() if p.requires_grad),
            "buffers": sum(b.numel() for b in module.buffers()),
        }
        for name, module in modules
    ]


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@torch.no_grad()
def compute_table(model: nn.Module, height: int, width: int) -> list[dict[str, Any]]:
    """Return FLOPs (multiply-adds) and activations of each part for one image of a size.

    The detector's backbone and proposal head, and the semantic subnetwork, are traced, or the
    whole network that learns from tags. What depends on the picture is not counted: the box head
    runs once a proposal, the CRF's lattice grows with the colours.

    Args:
        model: a WeakPanopticRCNN, TagClassifier or TagSegmenter in evaluation mode.
        height, width: of the image.

    Returns:
        ``{"part", "flops", "activations", "not_counted"}`` each.
    """
    device = model.device
    image = torch.rand(3, height, width, device=device) * 255
    parts: dict[str, _Part] = {}
    rcnn = getattr(getattr(model, "detector", None), "rcnn", None)
    if rcnn is not None:

        def detect(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            images = rcnn.preprocess_image([{"image": x}])
            features = rcnn.backbone(images.tensor)
            if not hasattr(rcnn, "proposal_generator"):  # RetinaNet and others of one stage
                found = rcnn.head([features[name] for name in rcnn.head_in_features])
                return tuple(x for level in found for x in level)
            chosen = [features[name] for name in rcnn.proposal_generator.in_features]
            logits, deltas = rcnn.proposal_generator.rpn_head(chosen)
            return (*logits, *deltas)

        parts["detector: backbone and proposal head"] = _Part(rcnn, detect)
    if getattr(model, "semantic", None) is not None:
        semantic = model.semantic
        parts["semantic"] = _Part(semantic, lambda x: (semantic.logits([x])[0],))
    if isinstance(model, TagClassifier):
        parts["tag classifier"] = _Part(model, lambda x: (model.logits(model.normalize(x)[None]),))
    if isinstance(model, TagSegmenter):
        # What an image's cells look like is arithmetic without a network.
        cells = color_texture(image, model.size).flatten(1).T
        parts["tag segmenter"] = _Part(model, lambda x: (model.layers(model.standardize(cells)),))
    rows = []
    for name, part in parts.items():
        flops = FlopCountAnalysis(part, (image,))
        flops.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        flops.tracer_warnings("none")
        activations = ActivationCountAnalysis(part, (image,))
        activations.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        activations.tracer_warnings("none")
        total = int(flops.total())  # computed here; what was skipped is known afterwards
        skipped = flops.unsupported_ops()
        rows.append(
            {
                "part": name,
                "flops": total,
                "activations": int(activations.total()),
                "not_counted": sorted(skipped),
            }
        )
    return rows
