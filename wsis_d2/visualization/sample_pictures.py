# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Pictures of what training gets and gives: a sample of the data loader, a model's output."""

from typing import Any

import numpy as np
import torch

from wsis_d2.structures.labels import IGNORE
from wsis_d2.visualization.layers import AnnotationLayer, LabelLayer
from wsis_d2.visualization.visualizer import blend, draw_annotation, draw_labels


def draw_layer(
    image: np.ndarray,
    layer: AnnotationLayer | LabelLayer,
    classes: list[dict],
    palette: str = "dataset",
) -> np.ndarray:
    """Return an RGB image with a layer drawn over it, uint8 (H, W, 3)."""
    if isinstance(layer, AnnotationLayer):
        drawn = draw_annotation(
            image.shape[0], image.shape[1], layer.boxes, layer.class_ids, classes=classes,
            tags=layer.tags, crop_tags=layer.crop_tags, crowd=layer.crowd,
            scores=layer.scores, marks=layer.marks, palette=palette,
        )  # fmt: skip
    else:
        drawn = draw_labels(layer.semantic, layer.instance, classes=classes, palette=palette)
    return blend(image, drawn)


def sample_image(sample: dict[str, Any], input_format: str) -> np.ndarray:
    """Return a sample's ``image`` tensor as uint8 (H, W, 3) RGB."""
    image = sample["image"].permute(1, 2, 0).cpu().numpy().astype(np.uint8)
    return np.ascontiguousarray(image[..., ::-1] if input_format == "BGR" else image)


def sample_panels(
    sample: dict[str, Any],
    classes: list[dict],
    thing_ids: list[int],
    input_format: str,
    palette: str = "dataset",
) -> dict[str, np.ndarray]:
    """Return what a mapper's sample holds as named RGB pictures: image, boxes, label maps.

    Args:
        sample: of :class:`wsis_d2.data.mappers.PanopticMapper`.
        classes: of :func:`wsis_d2.visualization.palette.class_list`.
        thing_ids: unified ids of the box classes.
        input_format: "RGB" or "BGR", the config's INPUT.FORMAT.
        palette: "dataset" or "safe".
    """
    image = sample_image(sample, input_format)
    panels = {f"image ({sample.get('supervision', '')})": image}
    if "instances" in sample:
        boxes = sample["instances"].gt_boxes.tensor.tolist()
        ids = [thing_ids[i] for i in sample["instances"].gt_classes.tolist()]
        panels["boxes"] = draw_layer(image, AnnotationLayer(boxes, ids), classes, palette)
    if "sem_seg" in sample:
        semantic = sample["sem_seg"].numpy().astype(np.uint8)
        panels["sem_seg"] = draw_layer(image, LabelLayer(semantic), classes, palette)
    if "inst_seg" in sample:
        index, kinds = sample["inst_seg"].numpy(), sample["inst_classes"].numpy()
        table = np.append(kinds, IGNORE).astype(np.uint8)
        layer = LabelLayer(table[index], (index + 1).astype(np.int32))
        panels["inst_seg"] = draw_layer(image, layer, classes, palette)
    return panels


def predicted_layer(ids: np.ndarray, segments: list[dict[str, Any]]) -> LabelLayer:
    """Return a model's segments as a layer.

    Args:
        ids: int32 (H, W) segment ids, 0 = none.
        segments: ``{"id", "category_id" (unified), "isthing"}`` each.
    """
    table = np.full(max((s["id"] for s in segments), default=0) + 1, IGNORE, np.uint8)
    things = np.zeros(len(table), bool)
    for segment in segments:
        table[segment["id"]] = segment["category_id"]
        things[segment["id"]] = segment["isthing"]
    return LabelLayer(table[ids], np.where(things[ids], ids, 0).astype(np.int32))


def output_layer(output: dict[str, Any]) -> LabelLayer | AnnotationLayer | None:
    """Return the most that one image's model output holds: segments, classes or boxes."""
    if output.get("panoptic_seg") is not None:
        ids, segments = output["panoptic_seg"]
        return predicted_layer(ids.cpu().numpy().astype(np.int32), segments)
    if isinstance(output.get("sem_seg"), torch.Tensor):
        return LabelLayer(output["sem_seg"].argmax(0).cpu().numpy().astype(np.uint8))
    if output.get("instances") is not None:
        found = output["instances"].to("cpu")
        return AnnotationLayer(
            found.pred_boxes.tensor.tolist(), found.pred_classes.tolist(),
            scores=found.scores.tolist(),
        )  # fmt: skip
    return None
