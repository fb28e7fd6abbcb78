# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""COCO panoptic files (JSON + RGB PNG): read with every check, written whole or not at all."""

import contextlib
import copy
import logging
import os
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from wsis_d2.structures.classes import (
    ClassTable,
    check_segment_kind,
    match_classes,
    parse_categories,
    place_table,
)
from wsis_d2.structures.labels import IGNORE
from wsis_d2.structures.pictures import PictureNames
from wsis_d2.structures.segments import id_picture, picture_ids
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.files import atomic_write, list_files
from wsis_d2.utils.image_io import check_bits, opened_png
from wsis_d2.utils.json_io import read_json, write_json
from wsis_d2.utils.png import check_png

logger = logging.getLogger(__name__)

try:
    # Optional: reads label pictures seven times faster than Pillow.
    from kornia_rs import io as fast_png
except ImportError:
    fast_png = None

MAX_ID = 256**3 - 1
VOID_ID = 0
_SMALL = 1 << 24  # pixels that a broken header may take memory for
# What an evaluation writes into its folder.
PREDICTION_JSON = "panoptic_pred.json"
PREDICTION_FOLDER = "panoptic_pred"
SEMANTIC_FOLDER = "semantic_pred"


def _is_int(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


class PanopticFile:
    """One COCO panoptic JSON with its folder of PNGs.

    Segments are kept packed, a seventh of what their dicts take: a set may have millions.

    Args:
        json_file: the JSON.
        folder: where the ``file_name`` of an annotation lies.
        default_classes: the classes of a file without ``categories``, and what the things are in
            one whose ``categories`` do not say; None: the file must have its own.

    Raises:
        InputError: a file is missing, is no JSON, or lacks what the format asks for.
    """

    def __init__(
        self,
        json_file: str | os.PathLike,
        folder: str | os.PathLike,
        default_classes: ClassTable | None = None,
    ) -> None:
        self.json_file = Path(json_file)
        self.folder = Path(folder)
        data = read_json(self.json_file, object_hook=_pack_segments)
        if not isinstance(data, dict) or not isinstance(data.get("annotations"), list):
            raise InputError(
                f"{self.json_file}: no 'annotations' list, expected COCO panoptic JSON"
            )
        if not self.folder.is_dir():
            raise InputError(f"{self.folder}: no such folder, expected the PNGs of {json_file}")
        self.classes = _classes(data.get("categories"), str(self.json_file), default_classes)
        self._new_ids: dict[int, int] | None = None  # category ids that segments() replaces
        self.images: list[dict[str, Any]] = data.get("images") or []
        if not isinstance(self.images, list):
            raise InputError(f"{self.json_file}: 'images' is no list, expected COCO panoptic JSON")
        self.pictures = PictureNames(self.images, str(self.json_file))
        # Without segments_info, which :meth:`segments` unpacks.
        self.annotations: dict[str, dict[str, Any]] = {}
        self._packed: dict[str, bytes] = {}
        for position, annotation in enumerate(data["annotations"]):
            self._check(annotation, position)
            key = str(annotation["image_id"])
            if key in self.annotations:
                raise InputError(f"{self.json_file}: image_id {key} has two annotations")
            self._packed[key] = annotation.pop("segments_info")
            self.annotations[key] = annotation
        # By id, as in COCO's evaluation: what orders equal scores, however the file is sorted.
        in_order = sorted(self.annotations, key=lambda key: (len(key), key))
        self.position = {key: position for position, key in enumerate(in_order)}

    def in_classes(self, classes: ClassTable) -> "PanopticFile":
        """Return the file as one of other classes: the same ones by name, with their ids.

        Raises:
            InputError: see :func:`match_classes`.
        """
        places = match_classes(classes, self.classes)
        result = copy.copy(self)
        result.classes = classes
        new = {old: classes.ids[k] for old, k in zip(self.classes.ids, places, strict=True)}
        if self._new_ids is not None:
            new = {old: new[category] for old, category in self._new_ids.items()}
        result._new_ids = None if all(a == b for a, b in new.items()) else new
        return result

    def __len__(self) -> int:
        return len(self.annotations)

    def __iter__(self) -> Iterator[str]:
        return iter(self.annotations)

    def _check(self, annotation: Any, position: int) -> None:
        where = f"{self.json_file}: annotation {position}"
        if not isinstance(annotation, dict) or "image_id" not in annotation:
            raise InputError(f"{where}: no 'image_id'")
        where = f"{self.json_file}: image_id {annotation['image_id']}"
        name = annotation.get("file_name")
        if not isinstance(name, str) or not name:
            raise InputError(f"{where}: 'file_name' is {name!r}, expected the PNG's name")
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name:
            raise InputError(f"{where}: file_name {name!r} leaves the folder of PNGs")
        segments = annotation.get("segments_info")
        if segments is None or not isinstance(pickle.loads(segments), list):
            raise InputError(
                f"{where}: no 'segments_info' list, expected COCO panoptic JSON, not instances"
            )
        seen = set()
        for segment in pickle.loads(segments):
            if not isinstance(segment, dict) or not _is_int(segment.get("id")):
                raise InputError(f"{where}: segment {segment!r} has no integer 'id'")
            number = segment["id"]
            if not 0 < number <= MAX_ID:
                raise InputError(f"{where}: segment id {number}, expected 1 to {MAX_ID}")
            if number in seen:
                raise InputError(f"{where}: segment id {number} is given twice")
            seen.add(number)
            category = segment.get("category_id")
            known = isinstance(category, int | float)
            place = self.classes.contiguous.get(category) if known else None
            if place is None:
                raise InputError(
                    f"{where}: segment {number} has category_id {category!r:.60},"
                    f" expected one of the {len(self.classes)} category ids of"
                    f" {self.classes.source}: {self.classes.id_text()}"
                )
            check_segment_kind(segment, self.classes.isthing[place], f"{where}: segment {number}")

    def png(self, key: str) -> Path:
        """Return the PNG of an image."""
        return self.folder / self.annotations[key]["file_name"]

    def picture(self, key: str) -> np.ndarray:
        """Return the PNG of an image as it is, uint8 (H, W, 3)."""
        return read_id_picture(self.png(key))

    def ids(self, key: str) -> np.ndarray:
        """Return the segment ids of an image, int32 (H, W), 0 = void."""
        return read_panoptic_png(self.png(key))

    def segments(self, key: str) -> list[dict[str, Any]]:
        """Return ``segments_info`` of an image."""
        segments = pickle.loads(self._packed[key])
        if self._new_ids is not None:
            for segment in segments:
                segment["category_id"] = self._new_ids[segment["category_id"]]
        return segments


def _classes(categories: Any, source: str, default: ClassTable | None) -> ClassTable:
    if default is not None:
        if categories is None:
            return default
        isthing = dict(zip(default.names, default.isthing, strict=True))
        if isinstance(categories, list):
            categories = [
                {"isthing": int(isthing.get(str(c.get("name")), 1)), **c}
                if isinstance(c, dict)
                else c
                for c in categories
            ]
    return parse_categories(categories, source)


def _pack_segments(entry: dict[str, Any]) -> dict[str, Any]:
    if "segments_info" in entry:
        entry["segments_info"] = pickle.dumps(entry["segments_info"])
    return entry


def read_id_picture(path: Path) -> np.ndarray:
    """Read the colours of a PNG; transparency does not count.

    Returns:
        uint8 (H, W, 3).

    Raises:
        InputError: not there, truncated, grey, or of another number of bits than 8.
    """
    with opened_png(path, check=False) as image:
        if image.mode not in ("RGB", "RGBA", "P"):  # a palette makes the same picture smaller
            raise InputError(
                f"{path}: a picture of mode {image.mode}, expected RGB with segment ids"
            )
        check_bits(path, image)
        if image.mode == "RGB" and fast_png is not None and image.width * image.height <= _SMALL:
            # It looks at the checksums itself; what it refuses, Pillow explains.
            with contextlib.suppress(Exception):
                return np.asarray(fast_png.read_image_png_u8(str(path), "rgb"))
        check_png(path)
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def read_panoptic_png(path: Path) -> np.ndarray:
    """Return segment ids R + 256 G + 65536 B of a PNG (see :func:`read_id_picture`).

    Returns:
        int32 (H, W), 0 to 2^24 - 1.
    """
    return picture_ids(read_id_picture(path))


def semantic_map(
    ids: np.ndarray, segments: list[dict[str, Any]], classes: ClassTable
) -> np.ndarray:
    """Return unified class ids of a panoptic picture, uint8 (H, W), 255 where void."""
    table = np.full(int(ids.max(initial=0)) + 1, IGNORE, np.uint8)
    for segment in segments:
        if segment["id"] < len(table):
            table[segment["id"]] = classes.contiguous[segment["category_id"]]
    return table.take(ids)


def write_semantic_classes(folder: Path, classes: ClassTable, pngs: Sequence[str]) -> None:
    """Write, beside a folder of semantic PNGs, the classes that their numbers stand for.

    Args:
        folder: the PNGs.
        classes: theirs.
        pngs: their names in the folder; others in it are of an earlier evaluation.
    """
    images = [{"file_name": name} for name in pngs]
    write_json(_semantic_json(folder), {"images": images, "categories": classes.categories})


def semantic_pngs(folder: Path) -> list[Path]:
    """Return the semantic PNGs of a folder, without those that are left of an earlier evaluation.

    Those are told. Where nothing names the folder's PNGs, or they were renamed since, all count.
    """
    files = list_files(folder, "**/*.png")
    path = _semantic_json(folder)
    content = read_json(path) if path.is_file() else None
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        return files
    names = {image.get("file_name") for image in images if isinstance(image, dict)}
    kept = [file for file in files if file.relative_to(folder).as_posix() in names]
    if not kept:
        return files
    if len(kept) < len(files):
        logger.warning(
            "%s: %d PNGs are not of the last evaluation and are left out",
            folder, len(files) - len(kept),
        )  # fmt: skip
    return kept


def semantic_table(folder: Path, classes: ClassTable) -> np.ndarray:
    """Return what the numbers in a folder of semantic PNGs are in other classes.

    Args:
        folder: with 8-bit PNGs; what :func:`write_semantic_classes` wrote lies beside it, else the
            numbers are taken as those of ``classes``.
        classes: the wanted classes.

    Returns:
        uint8 (256,); values that are no class stay.

    Raises:
        InputError: see :func:`match_classes`.
    """
    path = _semantic_json(folder)
    if not path.is_file():
        return np.arange(256, dtype=np.uint8)
    content = read_json(path)
    categories = content.get("categories") if isinstance(content, dict) else None
    return place_table(match_classes(classes, parse_categories(categories, str(path))))


def _semantic_json(folder: Path) -> Path:
    beside, target = (  # "." has no name; a folder that is a link may have it beside its target
        path.parent / f"{path.name}.json"
        for path in (Path(os.path.abspath(folder)), Path(folder).resolve())
    )
    return target if target.is_file() and not beside.is_file() else beside


def write_panoptic_png(path: Path, ids: np.ndarray) -> None:
    """Write segment ids (H, W), 0 to 2^24 - 1, as an RGB PNG, atomically."""
    write_png(path, id_picture(ids))


def write_png(path: Path, array: np.ndarray) -> None:
    """Write a uint8 array (H, W) or (H, W, 3) as PNG, atomically and fast (light compression)."""
    with atomic_write(path) as file:
        Image.fromarray(array).save(file, format="PNG", compress_level=1)
