# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Pictures of annotations and label maps as transparent overlays in a dataset's colours.

Every ``draw_*`` function returns a straight-alpha RGBA array that is laid over the picture by
:func:`blend`, by a browser or by anything else. Small pictures are drawn enlarged (``scale``), so
that lines and class names stay readable; an overlay may therefore be larger than its picture.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from wsis_d2.structures.labels import IGNORE
from wsis_d2.visualization.palette import IGNORE_COLOR, IGNORE_PATTERN, pattern_mask, safe_style

LABEL_ALPHA = 165
STUFF_SEGMENT = 1 << 20
_BAND = 64  # rows


def drawing_scale(height: int, width: int, target: int = 640) -> int:
    """Return the whole factor by which a picture is enlarged to be drawn on (1 if large)."""
    return max(1, min(8, -(-target // max(height, width, 1)) if max(height, width) < target else 1))


@lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    try:
        return ImageFont.load_default(size=size)
    except TypeError:  # Pillow before 10.1 has one size
        return ImageFont.load_default()


def _draw_text(
    draw: ImageDraw.ImageDraw,
    position: tuple[float, float],
    text: str,
    size: int,
    anchor: str = "la",
    bounds: tuple[int, int] | None = None,
) -> None:
    """Write white text with a dark rim, moved inside ``bounds`` (width, height)."""
    font = _font(size)
    x, y = position
    if bounds is not None:
        left, top, right, bottom = draw.textbbox((x, y), text, font=font, anchor=anchor)
        x += max(0, 2 - left) - max(0, right - bounds[0] + 2)
        y += max(0, 2 - top) - max(0, bottom - bounds[1] + 2)
    draw.text(
        (x, y), text, fill=(255, 255, 255, 255), font=font, anchor=anchor,
        stroke_width=max(1, size // 8), stroke_fill=(0, 0, 0, 230),
    )  # fmt: skip


def class_style(
    classes: Sequence[dict[str, Any]], class_id: int, palette: str
) -> tuple[tuple[int, int, int], str]:
    """Return (RGB, pattern) of a class in ``palette`` ``"dataset"`` or ``"safe"``."""
    if palette == "safe":
        return safe_style(class_id)
    if 0 <= class_id < len(classes):
        return tuple(classes[class_id]["color"]), "solid"
    return (255, 0, 255), "solid"


def _class_name(classes: Sequence[dict[str, Any]], class_id: int) -> str:
    return classes[class_id]["name"] if 0 <= class_id < len(classes) else f"class {class_id}?"


def _enlarge(labels: np.ndarray, scale: int) -> np.ndarray:
    return labels if scale == 1 else labels.repeat(scale, axis=0).repeat(scale, axis=1)


def segment_map(semantic: np.ndarray, instance: np.ndarray | None) -> np.ndarray:
    """Return one id a segment: instances where there are any, else the class.

    Args:
        semantic: uint8 (H, W), 255 ignore.
        instance: int32 (H, W), 0 and negative where there is no instance; None for none.

    Returns:
        int32 (H, W); -1 where the semantic map is ignore.
    """
    segments = STUFF_SEGMENT + semantic.astype(np.int32)
    if instance is not None:
        np.copyto(segments, instance, where=instance > 0, casting="same_kind")
    segments[semantic == IGNORE] = -1
    return segments


def draw_labels(
    semantic: np.ndarray,
    instance: np.ndarray | None = None,
    *,
    classes: Sequence[dict[str, Any]],
    palette: str = "dataset",
    names: bool = True,
    scale: int | None = None,
) -> np.ndarray:
    """Draw a semantic or panoptic label map.

    Classes are filled with their colour (and pattern, in the ``"safe"`` palette), ignored pixels
    are hatched in grey, segments have a light border, and each large enough segment carries the
    name of its class.

    Args:
        semantic: uint8 (H, W) unified class ids, 255 ignore.
        instance: int32 (H, W) instance ids, positive; 0 or negative elsewhere. Instances of one
            class are told apart by their borders.
        classes: from :func:`wsis_d2.visualization.palette.class_list`.
        palette: ``"dataset"`` or ``"safe"`` (colour-blind-safe, patterned).
        names: whether class names are written.
        scale: enlargement; None chooses by size.

    Returns:
        uint8 (H·scale, W·scale, 4) RGBA.

    Raises:
        ValueError: maps that are not two-dimensional or differ in size.
    """
    if semantic.ndim != 2 or (instance is not None and instance.shape != semantic.shape):
        shape = None if instance is None else instance.shape
        raise ValueError(f"label maps must be (H, W) of one size: {semantic.shape}, {shape}")
    scale = drawing_scale(*semantic.shape) if scale is None else scale
    segments = segment_map(semantic, instance)
    big = _enlarge(semantic, scale)
    height, width = big.shape
    period = max(8, max(height, width) // 60)
    # Two colours a class, paper and ink; the pattern tells which pixels are inked.
    colors = np.zeros((256, 2, 4), np.uint8)
    ink = np.zeros((height, width), np.uint8)
    users: dict[str, np.ndarray] = {}
    for class_id in np.unique(semantic).tolist():
        if class_id == IGNORE:
            pattern = IGNORE_PATTERN
            colors[class_id] = ((*IGNORE_COLOR, 70), (*IGNORE_COLOR, 200))
        else:
            color, pattern = class_style(classes, class_id, palette)
            mark = (255, 255, 255) if sum(color) < 380 else (0, 0, 0)
            colors[class_id] = ((*color, LABEL_ALPHA), (*mark, LABEL_ALPHA))
        users.setdefault(pattern, np.zeros(256, bool))[class_id] = True
    for pattern, ids in users.items():
        if pattern != "solid":
            ink |= ids[big] & pattern_mask(pattern, height, width, period)
    out = colors[big, ink]
    edges = _borders(_enlarge(segments, scale), max(1, min(height, width) // 350))
    out[edges] = (255, 255, 255, 235)
    if names:
        _write_names(out, semantic, segments, classes, scale)
    return out


def _borders(segments: np.ndarray, thickness: int) -> np.ndarray:
    """Return bool (H, W), True along the borders of segments."""
    edges = np.zeros(segments.shape, bool)
    across = segments[:, 1:] != segments[:, :-1]
    down = segments[1:] != segments[:-1]
    edges[:, 1:] |= across
    edges[1:] |= down
    if thickness > 1:
        kernel = np.ones((thickness, thickness), np.uint8)
        edges = cv2.dilate(edges.astype(np.uint8), kernel).astype(bool)
    return edges


def _write_names(
    out: np.ndarray,
    semantic: np.ndarray,
    segments: np.ndarray,
    classes: Sequence[dict[str, Any]],
    scale: int,
) -> None:
    """Write class names into ``out``, each at the innermost point of its segment, in place."""
    height, width = out.shape[:2]
    size = int(np.clip(min(height, width) // 21, 11, 34))
    picture = Image.fromarray(out, "RGBA")
    draw = ImageDraw.Draw(picture)
    ids, counts = np.unique(segments, return_counts=True)
    for segment, count in zip(ids.tolist(), counts.tolist(), strict=True):
        if segment < 0 or count * scale * scale < 6 * size * size:
            continue
        mask = np.pad((segments == segment).astype(np.uint8), 1)
        distance = cv2.distanceTransform(mask, cv2.DIST_L2, 3)[1:-1, 1:-1]
        y, x = np.unravel_index(int(distance.argmax()), distance.shape)
        name = _class_name(classes, int(semantic[y, x]))
        center = ((x + 0.5) * scale, (y + 0.5) * scale)
        _draw_text(draw, center, name, size, "mm", (width, height))
    out[...] = np.asarray(picture)


def draw_annotation(
    height: int,
    width: int,
    boxes: Sequence[Sequence[float]],
    class_ids: Sequence[int],
    *,
    classes: Sequence[dict[str, Any]],
    tags: Sequence[int] = (),
    crop_tags: Sequence[tuple[Sequence[float], Sequence[int]]] = (),
    crowd: Sequence[bool] = (),
    scores: Sequence[float] | None = None,
    marks: Sequence[tuple[int, Sequence[Sequence[float]]]] = (),
    palette: str = "dataset",
    scale: int | None = None,
) -> np.ndarray:
    """Draw boxes with class names, marks, the tags of the image and, thin and dashed, of its crops.

    Args:
        height, width: size of the picture.
        boxes: XYXY, absolute, exclusive ends.
        class_ids: unified class id of each box.
        classes: from :func:`wsis_d2.visualization.palette.class_list`.
        tags: unified ids of the image's tags.
        crop_tags: (XYXY box, unified ids) each.
        crowd: per box, True for groups, drawn dashed.
        scores: per box, written after the name.
        marks: unified class id and [[x, y], ...] of each point or scribble.
        palette: ``"dataset"`` or ``"safe"``.
        scale: enlargement; None chooses by size.

    Returns:
        uint8 (H·scale, W·scale, 4) RGBA.
    """
    scale = drawing_scale(height, width) if scale is None else scale
    high, wide = height * scale, width * scale
    picture = Image.new("RGBA", (wide, high), (0, 0, 0, 0))
    draw = ImageDraw.Draw(picture)
    size = int(np.clip(min(high, wide) // 21, 11, 34))
    line = max(2, min(high, wide) // 160)
    for box, ids in crop_tags:
        corners = [v * scale for v in box]
        _dashed(draw, corners, (255, 255, 255, 150), max(1, line // 2))
        names = ", ".join(_class_name(classes, i) for i in ids)
        _draw_text(
            draw,
            (corners[0] + 4, corners[3] - 4),
            names,
            max(10, size * 2 // 3),
            "ld",
            (wide, high),
        )
    order = sorted(range(len(boxes)), key=lambda i: -_box_area(boxes[i]))
    for index in order:
        x0, y0, x1, y1 = (v * scale for v in boxes[index])
        color, _ = class_style(classes, class_ids[index], palette)
        corners = [x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)]
        if index < len(crowd) and crowd[index]:
            _dashed(draw, corners, (*color, 255), line)
        else:
            rim = (255, 255, 255, 190) if sum(color) < 300 else (0, 0, 0, 160)
            draw.rectangle(corners, outline=rim, width=line + 2)
            draw.rectangle(corners, outline=(*color, 255), width=line)
    for class_id, points in marks:
        color, _ = class_style(classes, class_id, palette)
        path = [(x * scale, y * scale) for x, y in points]
        for width, ink in ((2 * line + 2, (255, 255, 255, 220)), (2 * line, (*color, 255))):
            if len(path) > 1:
                draw.line(path, fill=ink, width=width, joint="curve")
                continue
            (x, y), radius = path[0], width * 0.8
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=ink)
    for index in order:
        name = _class_name(classes, class_ids[index])
        if scores is not None:
            name += f" {100 * scores[index]:.0f}%"
        x, y = boxes[index][0] * scale + line + 1, boxes[index][1] * scale + line + 1
        _draw_text(draw, (x, y), name, size, "la", (wide, high))
    if tags:
        text = "tags: " + ", ".join(_class_name(classes, i) for i in tags)
        draw.rectangle([0, high - size * 3 // 2, wide, high], fill=(0, 0, 0, 130))
        _draw_text(draw, (4, high - 4), text, size, "ld", (wide, high))
    return np.asarray(picture).copy()


def _box_area(box: Sequence[float]) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def _dashed(draw: ImageDraw.ImageDraw, box: Sequence[float], fill: tuple, line: int) -> None:
    """Draw a dashed rectangle."""
    x0, y0, x1, y1 = box
    dash = 6 * line
    for x in np.arange(x0, x1, 2 * dash):
        for y in (y0, y1):
            draw.line([(x, y), (min(x + dash, x1), y)], fill=fill, width=line)
    for y in np.arange(y0, y1, 2 * dash):
        for x in (x0, x1):
            draw.line([(x, y), (x, min(y + dash, y1))], fill=fill, width=line)


def draw_regions(regions: np.ndarray, *, scale: int | None = None) -> np.ndarray:
    """Draw the outlines of a partition (superpixels, proposals), yellow on black.

    Args:
        regions: int (H, W), one id a region.
        scale: enlargement; None chooses by size.

    Returns:
        uint8 (H·scale, W·scale, 4) RGBA.
    """
    scale = drawing_scale(*regions.shape) if scale is None else scale
    big = _enlarge(regions, scale)
    out = np.zeros((*big.shape, 4), np.uint8)
    edges = _borders(big, 1)
    rim = cv2.dilate(edges.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    out[rim] = (0, 0, 0, 150)
    out[edges] = (255, 225, 40, 255)
    return out


def blend(image: np.ndarray, *overlays: np.ndarray) -> np.ndarray:
    """Lay overlays over a picture.

    Args:
        image: uint8 (H, W, 3) RGB.
        overlays: uint8 RGBA; all of one size. The picture is enlarged to it if it differs.

    Returns:
        uint8 (H', W', 3) RGB, of the overlays' size.
    """
    if not overlays:
        return image.copy()
    height, width = overlays[0].shape[:2]
    if image.shape[:2] != (height, width):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    result = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, _BAND):  # real numbers of a large picture are not held at once
        out = image[top : top + _BAND].astype(np.float32)
        for overlay in overlays:
            part = overlay[top : top + _BAND]
            alpha = part[..., 3:].astype(np.float32) / np.float32(255)
            out = out * (1 - alpha) + part[..., :3] * alpha
        result[top : top + _BAND] = np.clip(out + 0.5, 0, 255)
    return result


def side_by_side(pictures: dict[str, np.ndarray], height: int = 360) -> np.ndarray:
    """Return named RGB pictures in one row, each under its name, all scaled to ``height``."""
    columns = []
    for name, picture in pictures.items():
        width = max(1, round(picture.shape[1] * height / max(1, picture.shape[0])))
        method = cv2.INTER_AREA if picture.shape[0] > height else cv2.INTER_CUBIC
        panel = Image.new("RGB", (width, height + 28), (255, 255, 255))
        panel.paste(
            Image.fromarray(cv2.resize(picture, (width, height), interpolation=method)), (0, 28)
        )
        ImageDraw.Draw(panel).text((4, 6), name, fill=(20, 20, 20), font=_font(15))
        columns += [np.asarray(panel), np.full((height + 28, 6, 3), 255, np.uint8)]
    return np.concatenate(columns[:-1], axis=1)
