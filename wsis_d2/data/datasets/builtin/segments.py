# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Pictures of the official archives, and their segments in COCO's panoptic format."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wsis_d2.structures.segments import id_picture, segment_sizes
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.image_io import check_bits, opened_png, picture_size


def read_labels(path: str | Path, what: str) -> np.ndarray:
    """Read a label PNG (palette, 8 or 16 bit grey) as an int32 array (H, W).

    Raises:
        InputError: the file is missing, broken or a colour picture.
    """
    if not Path(path).exists():
        raise InputError(f"{path}: missing ({what})")
    with opened_png(path, f"download it again ({what})") as image:
        labels = np.asarray(image)
        if labels.ndim == 2:
            check_bits(path, image)
    if labels.ndim != 2:
        raise InputError(
            f"{path}: a picture with {labels.shape[-1]} channels, expected one channel of label "
            f"values ({what}); take the file as it was released, not a coloured copy"
        )
    return labels.astype(np.int32)


def image_size(path: str | Path) -> tuple[int, int]:
    """Return (height, width) from the header of an official archive's image."""
    try:
        width, height = picture_size(path, whole=False)
    except InputError as error:
        raise InputError(f"{error}; unpack the official archive again") from None
    return height, width


def crop_starts(length: int, crop: int) -> list[int]:
    """Return the starts of the crops that cover a side of ``length`` pixels.

    n = ceil(length / crop) crops share ceil((n * crop - length) / (n - 1)) pixels with the next.
    """
    count = -(-length // crop)
    if count <= 1:
        return [0]
    overlap = -(-(count * crop - length) // (count - 1))
    return [k * (crop - overlap) for k in range(count)]


def encode_panoptic(segment_ids: np.ndarray) -> bytes:
    """Return the PNG of a COCO panoptic map: id = R + 256 G + 65536 B."""
    buffer = io.BytesIO()
    Image.fromarray(id_picture(segment_ids)).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def segment_entries(
    segment_ids: np.ndarray, segments: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Complete segments with their area and box; those without a pixel are left out."""
    sizes = segment_sizes(segment_ids)
    return [
        {**segment, "area": sizes[segment["id"]][0], "bbox": sizes[segment["id"]][1]}
        for segment in segments
        if segment["id"] in sizes
    ]
