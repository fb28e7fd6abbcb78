# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The panoptic network as one graph: detector, semantic subnetwork and CRF, for any image size."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from torch import nn

from wsis_d2.export.detector import DetectorGraph, pad_by_index
from wsis_d2.modeling.instance import make_labels
from wsis_d2.modeling.postprocessing import assign_labels
from wsis_d2.utils.errors import InputError

OUTPUTS = ("label", "classes", "scores", "boxes", "label_scores", "probabilities")


class PanopticGraph(nn.Module):
    """Tensors in, tensors out: what :class:`WeakPanopticRCNN` computes before it makes lists.

    Args:
        model: a trained model of an instance stage, in evaluation mode.
        detect: whether the detector is inside; else detections are inputs.

    Raises:
        InputError: a model of the detector or semantic stage, which has no CRF; one without stuff,
            whose pixels may have no label at all; see also :class:`DetectorGraph`.
    """

    def __init__(self, model: nn.Module, detect: bool = True) -> None:
        super().__init__()
        if getattr(model, "instance", None) is None or getattr(model, "semantic", None) is None:
            raise InputError(
                f"stage {getattr(model, 'stage', '?')}: has no instance head to export; expected a "
                "model of the stage instance_piecewise or end_to_end"
            )
        if not model.stuff_ids:
            raise InputError("export: the model has no stuff class, so a picture may have no label")
        self.semantic, self.instance = model.semantic, model.instance
        self.detector = DetectorGraph(model.detector, model.thing_ids) if detect else None
        self.stuff_ids = model.stuff_ids
        self.areas = (model.min_thing_area, model.min_stuff_area)

    def forward(
        self,
        image: torch.Tensor,
        boxes: torch.Tensor | None = None,
        scores: torch.Tensor | None = None,
        classes: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Give every pixel of an image a label: a detection or a stuff class.

        Args:
            image: (3, H, W) float32, 0 to 255, channels in the config's order (BGR).
            boxes: (D, 4) float32 XYXY, where the detector is not inside; so are
            scores: (D,) float32, and
            classes: (D,) int64 unified class ids.

        Returns:
            As ``OUTPUTS`` names them: label of each pixel, (H, W) int64 in [0, L), detections
            first, then stuff classes; the labels' classes (L,) int64, scores (L,) and boxes
            (L, 4); scores of labels at each pixel, (L, H, W); class probabilities, (C, H, W).
        """
        if self.detector is not None:
            boxes, scores, classes = self.detector(image)
        probabilities = self._probabilities(image)
        size = image.shape[-2:]
        labels = make_labels(boxes, scores, classes, self.stuff_ids, size)
        label_scores = self.instance(probabilities, image, labels)
        label = assign_labels(label_scores, labels, *self.areas)
        return label, labels.classes, labels.scores, labels.boxes, label_scores, probabilities

    def _probabilities(self, image: torch.Tensor) -> torch.Tensor:
        """Return class probabilities as ``SemanticSubnetwork.probabilities`` does.

        Cutting goes by index here, as padding does: slices would make the program depend on
        whether a size needs padding.
        """
        semantic = self.semantic
        height, width = image.shape[-2:]
        high, wide = semantic.padded(height), semantic.padded(width)
        batch = (image - semantic.pixel_mean) / semantic.pixel_std
        batch = pad_by_index(batch, high, wide)
        logits, _ = semantic.head(semantic.backbone(batch[None]))
        logits = semantic.upsample(logits, (high, wide))[0]
        logits = logits.index_select(1, torch.arange(height, device=image.device))
        logits = logits.index_select(2, torch.arange(width, device=image.device))
        return F.softmax(logits.float(), dim=0)


def export_model(model: nn.Module, detect: bool = True) -> torch.export.ExportedProgram:
    """Export a trained model with ``torch.export``; image size and number of boxes are dynamic.

    Args:
        model: a trained model of an instance stage whose semantic inference is "whole", at one
            scale, without flip.
        detect: see :class:`PanopticGraph`.

    Raises:
        InputError: another stage or inference mode; a torch that cannot export it.
    """
    model = model.eval()
    graph = PanopticGraph(model, detect).eval()
    options = model.semantic.inference_mode
    if not options.is_plain:
        raise InputError(
            "MODEL.SEMANTIC.TILE_SIZE, TEST.AUG: tiles, sizes and mirror images are loops outside "
            "the network; export with TILE_SIZE 0, TEST.AUG.ENABLED False"
        )
    from torch.fx.experimental import _config

    if not hasattr(_config, "backed_size_oblivious"):
        raise InputError(
            f"torch {torch.__version__} cannot export a network whose number of boxes may be 0 or "
            "1; use a newer one for this command, such as that of requirements.txt"
        )
    auto = torch.export.Dim.AUTO
    dynamic = {"image": {1: auto, 2: auto}}
    example = (torch.rand(3, 100, 131, device=model.device) * 255,)
    if not detect:
        dynamic.update(boxes={0: auto}, scores={0: auto}, classes={0: auto})
        example += _made_up_detections(model, 3)
    # Without it a program would refuse the sizes 0 and 1, e.g. of the number of boxes.
    with torch.no_grad(), _config.patch(backed_size_oblivious=True):
        return torch.export.export(graph, example, dynamic_shapes=dynamic, strict=False)


def _made_up_detections(model: nn.Module, count: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(count)
    corner = torch.rand(count, 2, generator=generator) * 40
    thing = model.thing_ids[0] if model.thing_ids else 0
    found = (
        torch.cat([corner, corner + 25], dim=1),
        torch.rand(count, generator=generator),
        torch.full((count,), thing, dtype=torch.int64),
    )
    return tuple(t.to(model.device) for t in found)


@torch.no_grad()
def compare_with_eager(
    program: torch.export.ExportedProgram,
    model: nn.Module,
    detect: bool = True,
    tolerance: float = 1e-3,
) -> dict[str, float]:
    """Compare an exported program with the model on sizes and box counts it was not traced with.

    The reference goes through the model's own functions, not through the exported graph.

    Args:
        program: of :func:`export_model`.
        model: the model it was made from.
        detect: as it was exported.
        tolerance: of scores and probabilities; boxes may differ by 0.05 pixels.

    Returns:
        description of a picture to the largest difference of its scores and probabilities.

    Raises:
        InputError: the two differ by more than the tolerance.
    """
    run = program.module()
    generator = torch.Generator().manual_seed(0)
    differences = {}
    for height, width, count in ((128, 160, 5), (75, 211, 1), (181, 97, 0)):
        coarse = torch.rand(1, 3, 5, 7, generator=generator)
        image = F.interpolate(coarse, size=(height, width))[0].to(model.device) * 255
        given = () if detect else _made_up_detections(model, count)
        found = dict(zip(OUTPUTS, run(image, *given), strict=True))
        things = found["boxes"].shape[0] - len(model.stuff_ids)
        name = f"{height} x {width}, {things} detections"
        if detect:
            wanted = model._unified(model.detector.detect([image])[0])
            _check_detections(found, wanted, things, tolerance, name)
        probabilities = model.semantic.probabilities([image])[0]
        boxes, scores, classes = (found[k][:things] for k in ("boxes", "scores", "classes"))
        labels = make_labels(boxes, scores, classes, model.stuff_ids, (height, width))
        wanted = model.instance(probabilities, image, labels)
        if found["label_scores"].shape != wanted.shape:
            raise InputError(f"export: another number of labels than the model on {name}")
        difference = max(
            float((found["label_scores"] - wanted).abs().max()),
            float((found["probabilities"] - probabilities).abs().max()),
        )
        if not difference <= tolerance:
            raise InputError(
                f"export: differs from the model by {difference:.2e} on {name}, expected at most "
                f"{tolerance:g}"
            )
        label = assign_labels(wanted, labels, model.min_thing_area, model.min_stuff_area)
        if float((label != found["label"]).float().mean()) > 1e-3:
            raise InputError(f"export: gives pixels other labels than the model on {name}")
        differences[name] = difference
    return differences


def _check_detections(
    found: Mapping[str, torch.Tensor], wanted: Instances, count: int, tolerance: float, name: str
) -> None:
    """Every detection of the model is the program's, whatever their order."""
    if count != len(wanted):
        raise InputError(f"export: {count} detections where the model has {len(wanted)} on {name}")
    boxes, scores, classes = (found[k][:count] for k in ("boxes", "scores", "classes"))
    far = (boxes[:, None] - wanted.pred_boxes.tensor[None]).abs().amax(dim=2) > 0.05
    far |= (scores[:, None] - wanted.scores[None]).abs() > tolerance
    far |= classes[:, None] != wanted.pred_classes[None]
    if count and bool((far.all(dim=0) | far.all(dim=1)).any()):
        raise InputError(f"export: detects other boxes than the model on {name}")
