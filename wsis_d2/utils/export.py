# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The panoptic network as one graph: semantic subnetwork and CRF, for any image size."""

import torch
import torch.nn.functional as F
from torch import nn

from wsis_d2.modeling.instance.labels import InstanceLabels
from wsis_d2.utils.errors import InputError


class PanopticGraph(nn.Module):
    """Tensors in, tensors out: what :meth:`WeakPanopticRCNN.merge` computes before its lists.

    Args:
        model: a trained model of an instance stage, in evaluation mode.

    Raises:
        InputError: a model of the detector or semantic stage, which has no CRF.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if getattr(model, "instance", None) is None or getattr(model, "semantic", None) is None:
            raise InputError(
                f"stage {getattr(model, 'stage', '?')}: has no instance head to export; expected a "
                "model of the stage instance_piecewise or end_to_end"
            )
        self.semantic = model.semantic
        self.instance = model.instance
        stuff = torch.tensor(list(model.stuff_ids), dtype=torch.int64, device=model.device)
        self.register_buffer("_stuff_ids", stuff, persistent=False)

    def forward(
        self, image: torch.Tensor, boxes: torch.Tensor, scores: torch.Tensor, classes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Join an image and detections to one label a pixel.

        Args:
            image: (3, H, W) float32, 0 to 255, channels in the config's order (BGR).
            boxes: (D, 4) float32 XYXY.
            scores: (D,) float32.
            classes: (D,) int64 unified class ids.

        Returns:
            label of each pixel, (H, W) int64 in [0, L), detections first, then stuff classes;
            scores of labels, (L, H, W) float32; class probabilities, (C, H, W) float32.
        """
        height, width = image.shape[-2:]
        probabilities = self._probabilities(image)
        # As make_labels, but len() of a tensor would fix the number of boxes in the program.
        stuff = self._stuff_ids
        whole = torch.stack(
            [torch.full_like(stuff, side, dtype=torch.float32) for side in (0, 0, width, height)],
            dim=1,
        )
        labels = InstanceLabels(
            classes=torch.cat([classes, stuff]),
            scores=torch.cat([scores, torch.ones_like(stuff, dtype=torch.float32)]),
            boxes=torch.cat([boxes, whole]),
            num_things=boxes.shape[0],
        )
        label_scores = self.instance(probabilities, image, labels)
        return label_scores.argmax(dim=0), label_scores, probabilities

    def _probabilities(self, image: torch.Tensor) -> torch.Tensor:
        """Return class probabilities as ``SemanticSubnetwork.probabilities`` does.

        Padding and cutting go by index here: slices of a padded tensor would make the program
        depend on whether a size needs padding.
        """
        semantic, stride = self.semantic, self.semantic.head.stride
        height, width = image.shape[-2:]
        high = -(-(height - 1) // stride) * stride + 1
        wide = -(-(width - 1) // stride) * stride + 1
        rows = torch.arange(high, device=image.device)
        columns = torch.arange(wide, device=image.device)
        batch = (image - semantic.pixel_mean) / semantic.pixel_std
        batch = batch.index_select(1, rows.clamp(max=height - 1))
        batch = batch.index_select(2, columns.clamp(max=width - 1))
        inside = (rows < height)[:, None] & (columns < width)[None, :]
        logits, _ = semantic.head(semantic.backbone((batch * inside)[None]))
        logits = F.interpolate(logits, size=(high, wide), mode="bilinear", align_corners=True)[0]
        logits = logits.index_select(1, torch.arange(height, device=image.device))
        logits = logits.index_select(2, torch.arange(width, device=image.device))
        return F.softmax(logits.float(), dim=0)


def export_model(model: nn.Module) -> torch.export.ExportedProgram:
    """Export a trained model with ``torch.export``; image size and number of boxes are dynamic.

    Args:
        model: a trained model of an instance stage whose semantic inference is "whole", at one
            scale, without flip.

    Raises:
        InputError: another stage or inference mode.
    """
    model = model.eval()
    graph = PanopticGraph(model)
    options = model.semantic.inference_mode
    if options.mode != "whole" or tuple(options.scales) != (1.0,) or options.flip:
        raise InputError(
            "MODEL.SEMANTIC.INFERENCE: tiles, scales and flips are loops outside the network; "
            "export with MODE whole, SCALES [1.0], FLIP False"
        )
    auto = torch.export.Dim.AUTO
    dynamic = {"image": {1: auto, 2: auto}}
    dynamic.update(boxes={0: auto}, scores={0: auto}, classes={0: auto})
    thing = model.thing_ids[0] if model.thing_ids else 0
    example = (
        torch.rand(3, 100, 131) * 255,
        torch.tensor([[5.0, 5.0, 40.0, 60.0], [30.0, 10.0, 90.0, 80.0], [60.0, 20.0, 99.0, 70.0]]),
        torch.tensor([0.9, 0.8, 0.7]),
        torch.full((3,), thing, dtype=torch.int64),
    )
    with torch.no_grad():
        return torch.export.export(graph, example, dynamic_shapes=dynamic, strict=False)


@torch.no_grad()
def compare_with_eager(
    program: torch.export.ExportedProgram, model: nn.Module, tolerance: float = 1e-3
) -> dict[str, float]:
    """Compare an exported program with the model on sizes and box counts it was not traced with.

    Args:
        program: of :func:`export_model`.
        model: the model it was made from.
        tolerance: of label scores.

    Returns:
        size to the largest difference of label scores.

    Raises:
        InputError: the two differ by more than the tolerance.
    """
    from wsis_d2.modeling.instance import make_labels

    run = program.module()
    generator = torch.Generator().manual_seed(0)
    thing = model.thing_ids[0] if model.thing_ids else 0
    differences = {}
    for height, width, count in ((128, 160, 5), (75, 211, 2)):
        image = (torch.rand(3, height, width, generator=generator) * 255).to(model.device)
        corner = torch.rand(count, 2, generator=generator) * 40
        boxes = torch.cat([corner, corner + 25], dim=1).to(model.device)
        scores = torch.rand(count, generator=generator).to(model.device)
        classes = torch.full((count,), thing, dtype=torch.int64, device=model.device)
        _, found, probabilities = run(image, boxes, scores, classes)
        # The reference goes through the model's own functions, not through the exported graph.
        wanted_probabilities = model.semantic.probabilities(image)
        labels = make_labels(boxes, scores, classes, model.stuff_ids, (height, width))
        wanted = model.instance(wanted_probabilities, image, labels)
        difference = float((found - wanted).abs().max())
        difference = max(difference, float((probabilities - wanted_probabilities).abs().max()))
        name = f"{height} x {width}, {count} boxes"
        if found.shape != wanted.shape or not difference <= tolerance:
            raise InputError(
                f"export: differs from the model by {difference:.2e} on {name}, expected at most "
                f"{tolerance:g}"
            )
        differences[name] = difference
    return differences
