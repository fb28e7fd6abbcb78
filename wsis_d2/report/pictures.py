# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The pictures of a report: each image's layers, drawn and written beside the page."""

from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np

from wsis_d2.report.blocks import finite
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.image_io import read_picture
from wsis_d2.visualization.layers import AnnotationLayer, LabelLayer, Layer
from wsis_d2.visualization.visualizer import draw_annotation, draw_labels

#: Photographs with a longer side are scaled down to it.
LARGEST = 1600
THUMBNAIL = 480


def write_item(
    index: int, item: dict, work: Path, folder: str, classes: list[dict]
) -> dict[str, Any]:
    """Write one image's layers and return its entry in the page's data."""
    name, place = str(item["name"]), quote(folder)  # a "#" or "%" means something in addresses
    layers: dict[str, dict] = {}
    size: tuple[int, int] | None = None
    for number, (layer_name, layer) in enumerate(item["layers"].items()):
        if layer is None:
            continue
        stem = f"{index:05d}_{number}"
        try:
            if size is not None and isinstance(layer, LabelLayer) and layer.semantic.shape != size:
                raise ValueError(f"is {layer.semantic.shape} pixels, the photograph {size}")
            drawn, safe = _draw(layer, size, classes)
        except (ValueError, IndexError, TypeError) as error:
            raise InputError(f"image {name!r}, layer {layer_name!r}: {error}") from error
        if size is None:
            size = drawn.shape[:2]
        kind = {LabelLayer: "labels", AnnotationLayer: "lines"}.get(type(layer))
        opaque = drawn.shape[2] == 3
        entry: dict[str, Any] = {"kind": kind or ("picture" if opaque else "overlay")}
        entry["src"] = f"{place}/{_save(work, stem, drawn, LARGEST)}"
        side = max(drawn.shape[:2])
        if opaque and side > 1.5 * THUMBNAIL:
            entry["thumb"] = f"{place}/{_save(work, stem + 't', drawn, THUMBNAIL)}"
        if safe is not None:
            entry["safe"] = f"{place}/{_save(work, stem + 's', safe, LARGEST)}"
        layers[str(layer_name)] = entry
    if size is None:
        raise InputError(f"image {name!r}: has no layer; expected at least the photograph")
    scores = {str(k): finite(v) for k, v in (item.get("scores") or {}).items()}
    return {
        "name": name,
        **({"id": item["id"]} if "id" in item else {}),
        "layers": layers,
        "scores": scores,
        "caption": str(item.get("caption") or ""),
        "classes": [str(c) for c in item.get("classes") or []],
        "width": size[1],
        "height": size[0],
    }


def _draw(
    layer: Layer, size: tuple[int, int] | None, classes: list[dict]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return a layer as RGB or RGBA in the dataset's colours and, for labels, in safe ones."""
    if isinstance(layer, LabelLayer):
        both = [
            draw_labels(layer.semantic, layer.instance, classes=classes, palette=palette)
            for palette in ("dataset", "safe")
        ]
        return both[0], both[1]
    if isinstance(layer, AnnotationLayer):
        if size is None:
            raise ValueError("an annotation needs the photograph as the first layer")
        both = [
            draw_annotation(
                *size, layer.boxes, layer.class_ids, classes=classes, tags=layer.tags,
                crop_tags=layer.crop_tags, crowd=layer.crowd, scores=layer.scores,
                marks=layer.marks, palette=palette,
            )
            for palette in ("dataset", "safe")
        ]  # fmt: skip
        return both[0], both[1]
    if isinstance(layer, str | Path):
        return read_picture(layer), None
    array = np.asarray(layer)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (3, 4) or not array.size:
        raise ValueError(
            f"expected a uint8 array (H, W, 3 or 4), found {array.dtype} {array.shape}"
        )
    return array, None


def _save(work: Path, stem: str, array: np.ndarray, max_side: int) -> str:
    """Write a picture, scaled down to ``max_side``; return its file name."""
    side = max(array.shape[:2])
    if side > max_side:
        height, width = (max(1, round(v * max_side / side)) for v in array.shape[:2])
        array = cv2.resize(array, (width, height), interpolation=cv2.INTER_AREA)
    if array.shape[2] == 4:
        name, flat = stem + ".png", cv2.cvtColor(array, cv2.COLOR_RGBA2BGRA)
        options = [cv2.IMWRITE_PNG_COMPRESSION, 4]
    else:
        small = max(array.shape[:2]) <= 320
        name = stem + (".png" if small else ".jpg")
        flat = cv2.cvtColor(array, cv2.COLOR_RGB2BGR)
        options = [] if small else [cv2.IMWRITE_JPEG_QUALITY, 90]
    # OpenCV's own writer does not tell what the system refused.
    (work / name).write_bytes(cv2.imencode(Path(name).suffix, flat, options)[1].tobytes())
    return name
