# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The own-data format and the weak record: what weak supervision may know, checked on loading.

The file is COCO JSON without masks::

    {"images": [{"id": 1, "file_name": "a.jpg", "height": 480, "width": 640,
                 "image_tags": [11, 12],                                   # category ids
                 "crop_tags": [{"box": [0, 0, 320, 480], "tags": [11]}]}], # optional; x, y, w, h
     "categories": [{"id": 1, "name": "cow", "isthing": 1},
                    {"id": 11, "name": "sky", "isthing": 0}],
     "annotations": [{"id": 1, "image_id": 1, "category_id": 1,
                      "bbox": [x, y, w, h], "iscrowd": 0}]}

Points and scribbles are read by :mod:`wsis_d2.data.datasets.own.marks`; an object that has some may
be without ``bbox``.

A weak record (:data:`WEAK_RECORD_FIELDS`) is built field by field from it and has none that could
hold a mask or the path of one, so no mask can reach weak training through it.
"""

import math
import os
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode

from wsis_d2.data.datasets.own.marks import image_marks, inside_marks, object_marks
from wsis_d2.data.datasets.own.values import is_number, shorten
from wsis_d2.structures.classes import ClassTable, parse_categories
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.json_io import read_json
from wsis_d2.weak_labels.store_status import id_names, is_image_id

WEAK_RECORD_FIELDS = frozenset(
    {"file_name", "image_id", "height", "width", "annotations", "image_tags", "crop_tags",
     "supervision", "points", "scribbles", "unboxed"}
)  # fmt: skip
WEAK_ANNOTATION_FIELDS = frozenset(
    {"id", "bbox", "bbox_mode", "category_id", "iscrowd", "points", "scribbles"}
)
MAX_SIDE = 65535  # pixels; larger images are a mistake in the file
TOLERANCE = 1.0  # pixels that a box may lie outside the image; it is clipped


@dataclass(frozen=True)
class WeakFile:
    """A checked own-data file: its classes and one record per image, in the file's order."""

    classes: ClassTable
    records: list[dict]


def load_weak_json(
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    name: str | None = None,
    *,
    supervision: str = "weak",
    check_files: bool = True,
) -> list[dict]:
    """Load an own-data file as Detectron2 dataset dicts.

    Args:
        json_file: the own-data file.
        image_root: the folder that ``file_name`` is relative to.
        name: a dataset whose metadata gets classes and ids (:meth:`ClassTable.metadata`).
        supervision: "weak": every record is weak. "full": every record will be given truth by
            the caller. "mixed": an image entry's ``"supervision"`` decides, weak by default.
        check_files: whether every image file must be there.

    Returns:
        Records with fields of :data:`WEAK_RECORD_FIELDS` (``crop_tags``, ``points``, ``scribbles``
        and ``unboxed``, objects without a box, only where the file has them); ``bbox`` is XYXY_ABS
        floats inside the image; class ids are contiguous.

    Raises:
        InputError: naming the file, the record, what was found and what to change.
    """
    weak_file = read_weak_file(
        json_file, image_root, supervision=supervision, check_files=check_files
    )
    if name is not None:
        MetadataCatalog.get(name).set(**weak_file.classes.metadata())
    return weak_file.records


def read_weak_file(
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    *,
    supervision: str = "weak",
    check_files: bool = True,
) -> WeakFile:
    """Read and check an own-data file; arguments and errors as :func:`load_weak_json`."""
    source = os.fspath(json_file)
    image_root = os.fspath(image_root)
    content = read_json(source)
    if not isinstance(content, dict):
        raise InputError(f"{source}: expected an object, found {_kind(content)}")
    for key in ("images", "categories", "annotations"):
        if not isinstance(content.get(key), list):
            raise InputError(
                f'{source}: "{key}" is {_kind(content.get(key))}; expected a list; the own-data '
                "format is COCO JSON, see datasets/README.md or use tools/import_annotations.py"
            )
    classes = parse_categories(content["categories"], source)
    if not content["images"]:
        raise InputError(f'{source}: "images" is empty; nothing to load')
    records: dict[Any, dict] = {}
    names: dict[str, Any] = {}
    called: set[str] = set()
    for position, entry in enumerate(content["images"]):
        record = _image_record(entry, position, source, image_root, classes, supervision)
        key, where = str(record["image_id"]), f"{source}: images[{position}]"
        if called & id_names(record["image_id"]):
            raise InputError(f"{where}: image id {key} is used twice; make ids unique")
        called |= id_names(record["image_id"])
        if record["file_name"] in names:
            raise InputError(
                f'{where} (id {key}): file_name "{entry["file_name"]}" is that of image id '
                f"{names[record['file_name']]} too; keep one entry for an image"
            )
        names[record["file_name"]] = key
        records[key] = record
    seen: set = set()
    for position, annotation in enumerate(content["annotations"]):
        _add_annotation(annotation, position, source, classes, records, seen)
    for what, expected, found in (
        ("boxes", "[x, y, width, height]", _boxes(records.values())),
        ("boxes of crop_tags", "[x, y, width, height]", _crops(records.values())),
        ("points of points and scribbles", "[x, y]", _points(records.values())),
    ):
        if number := _relative(found):
            raise InputError(
                f"{source}: all {number} {what} lie within 0 to 1, so they are relative to "
                f"their images; expected {expected} in pixels"
            )
    if check_files:
        check_images_exist(records.values(), source, image_root)
    return WeakFile(classes, list(records.values()))


def _relative(points: Iterable[Sequence[float]]) -> int:
    """Return how many there are, if all lie within 0 to 1 and not all on whole numbers; else 0."""
    number, fraction = 0, False
    for point in points:
        if max(point) > 1:
            return 0
        number, fraction = number + 1, fraction or any(v % 1 for v in point)
    return number if fraction else 0


def _boxes(records: Iterable[dict]) -> Iterator[list[float]]:
    return (a["bbox"] for r in records for a in r["annotations"])


def _crops(records: Iterable[dict]) -> Iterator[list[float]]:
    boxes = (crop["box"] for r in records for crop in r.get("crop_tags", ()))
    return ([x, y, x + w, y + h] for x, y, w, h in boxes)


def _points(records: Iterable[dict]) -> Iterator[list[float]]:
    for record in records:
        yield from (mark["xy"] for mark in record.get("points", ()))
        yield from (point for mark in record.get("scribbles", ()) for point in mark["xy"])
        for thing in (*record["annotations"], *record.get("unboxed", ())):
            yield from (point[:2] for point in thing.get("points", ()))
            yield from (point for line in thing.get("scribbles", ()) for point in line)


def resolve_image_path(file_name: Any, image_root: str, where: str) -> str:
    """Join a file's ``file_name`` with the image root; refuse what leaves the root."""
    if not isinstance(file_name, str) or not file_name or "\0" in file_name:
        raise InputError(f"{where}: file_name is {shorten(file_name)}; expected a relative path")
    normal = posixpath.normpath(file_name.replace("\\", "/"))
    drive = len(normal) > 1 and normal[1] == ":"
    if normal.startswith(("/", "../")) or normal in (".", "..") or drive:
        raise InputError(
            f"{where}: file_name {shorten(file_name)} leaves the image root {image_root}; "
            "expected a path relative to that folder"
        )
    return os.path.join(image_root, normal)


def check_images_exist(records: Iterable[dict], source: str, image_root: str) -> None:
    """Raise InputError naming the first image that is not there; lists each folder once."""
    folders: dict[str, set[str]] = {}
    for record in records:
        folder, name = os.path.split(record["file_name"])
        if folder not in folders:
            try:
                folders[folder] = set(os.listdir(folder))
            except (FileNotFoundError, NotADirectoryError):
                folders[folder] = set()
        if name not in folders[folder]:
            raise InputError(
                f"{source}: image id {record['image_id']}: no file {record['file_name']}; expected "
                f"it under the image root {image_root}: name the right root, or remove the entry"
            )


def box_to_xyxy(box: Any, width: int, height: int, where: str, label: str = "bbox") -> list[float]:
    """Check an XYWH box against its image and return XYXY floats clipped to it.

    Raises:
        InputError: not four finite numbers, no area, or more than a pixel outside the image.
    """
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(map(is_number, box)):
        raise InputError(f"{where}: {label} is {shorten(box)}; expected [x, y, width, height]")
    if not all(map(math.isfinite, box)):
        raise InputError(f"{where}: {label} is {shorten(box)}; NaN and infinity are no pixels")
    x, y, w, h = map(float, box)
    if w <= 0 or h <= 0:
        raise InputError(
            f"{where}: {label} is {shorten(box)}, a box without area; remove it or give it a "
            "width and a height above 0"
        )
    x1, y1 = x + w, y + h
    if x < -TOLERANCE or y < -TOLERANCE or x1 > width + TOLERANCE or y1 > height + TOLERANCE:
        raise InputError(
            f"{where}: {label} is {shorten(box)}, more than a pixel outside its image of "
            f"{width} x {height}; expected [x, y, width, height] in pixels of that image"
        )
    x, y, x1, y1 = max(x, 0.0), max(y, 0.0), min(x1, float(width)), min(y1, float(height))
    if x1 <= x or y1 <= y:
        raise InputError(f"{where}: {label} is {shorten(box)}, nothing of it is in the image")
    return [x, y, x1, y1]


def _kind(value: Any) -> str:
    return "missing" if value is None else f"{type(value).__name__} {shorten(value, 40)}"


def _tags(tags: Any, where: str, label: str, classes: ClassTable) -> list[int]:
    if not isinstance(tags, list):
        raise InputError(f"{where}: {label} is {_kind(tags)}; expected a list of category ids")
    for tag in tags:
        if isinstance(tag, bool) or not isinstance(tag, int) or tag not in classes.contiguous:
            raise InputError(
                f"{where}: {label} has {shorten(tag)}, no category of this file; expected ids "
                f"among {classes.id_text()}"
            )
    return sorted({classes.contiguous[tag] for tag in tags})


def _image_record(
    entry: Any,
    position: int,
    source: str,
    image_root: str,
    classes: ClassTable,
    supervision: str,
) -> dict:
    where = f"{source}: images[{position}]"
    if not isinstance(entry, dict):
        raise InputError(f"{where}: is {_kind(entry)}; expected an object")
    image_id = entry.get("id")
    if not is_image_id(image_id):
        raise InputError(
            f"{where}: id is {_kind(image_id)}; expected an integer or a name, short enough for a "
            "file of its own"
        )
    where += f" (id {shorten(image_id)})"
    sides = {}
    for key in ("height", "width"):
        side = entry.get(key)
        whole = is_number(side) and math.isfinite(side) and side == int(side)
        if not whole or not 1 <= side <= MAX_SIDE:
            raise InputError(
                f"{where}: {key} is {_kind(side)}; expected whole pixels, 1 to {MAX_SIDE}"
            )
        sides[key] = int(side)
    wanted = entry.get("supervision", "weak")
    if wanted not in ("weak", "full"):
        raise InputError(f'{where}: supervision is {shorten(wanted)}; expected "weak" or "full"')
    if supervision == "weak" and wanted == "full":
        raise InputError(
            f'{where}: supervision is "full" in a dataset registered as weak; register the '
            'dataset with supervision="mixed" and panoptic_json, or remove the field'
        )
    record: dict[str, Any] = {
        "file_name": resolve_image_path(entry.get("file_name"), image_root, where),
        "image_id": image_id,
        **sides,
        "annotations": [],
        "image_tags": [],
        "supervision": "full" if supervision == "full" else wanted,
    }
    tags = entry.get("image_tags")
    tags = _tags([] if tags is None else tags, where, "image_tags", classes)
    crops = entry.get("crop_tags")
    if crops is not None:
        if not isinstance(crops, list):
            raise InputError(f"{where}: crop_tags is {_kind(crops)}; expected a list")
        record["crop_tags"] = []
        for k, crop in enumerate(crops):
            if not isinstance(crop, dict):
                raise InputError(
                    f'{where}: crop_tags[{k}] is {_kind(crop)}; expected {{"box", "tags"}}'
                )
            x, y, x1, y1 = box_to_xyxy(
                crop.get("box"), sides["width"], sides["height"], where, f"crop_tags[{k}].box"
            )
            found = _tags(crop.get("tags"), where, f"crop_tags[{k}].tags", classes)
            record["crop_tags"].append({"box": [x, y, x1 - x, y1 - y], "tags": found})
            tags = sorted({*tags, *found})  # what is in a crop is in the image
    marks = image_marks(entry, sides["width"], sides["height"], where, classes)
    record.update(marks)
    marked = {mark["category_id"] for found in marks.values() for mark in found}
    record["image_tags"] = sorted({*tags, *marked})
    return record


def _add_annotation(
    annotation: Any,
    position: int,
    source: str,
    classes: ClassTable,
    records: Mapping[str, dict],
    seen: set,
) -> None:
    where = f"{source}: annotations[{position}]"
    if not isinstance(annotation, dict):
        raise InputError(f"{where}: is {_kind(annotation)}; expected an object")
    number = annotation.get("id")
    if number is not None:
        where += f" (id {shorten(number)})"
        if isinstance(number, bool) or not isinstance(number, int | str):
            raise InputError(f"{where}: id is {_kind(number)}; expected an integer")
        if number in seen:
            raise InputError(f"{where}: this annotation id is used twice; make ids unique")
        seen.add(number)
    image_id = annotation.get("image_id")
    record = records.get(str(image_id))
    if record is None or record["image_id"] != image_id or isinstance(image_id, bool):
        raise InputError(
            f"{where}: image_id {shorten(image_id)} is no image of this file; add the image's "
            'entry to "images" or remove the annotation'
        )
    category = annotation.get("category_id")
    if isinstance(category, bool) or not isinstance(category, int):
        raise InputError(f"{where}: category_id is {_kind(category)}; expected an integer")
    if category not in classes.contiguous:
        raise InputError(
            f"{where}: unknown class: category_id {category}; expected one of {classes.id_text()}"
        )
    class_id = classes.contiguous[category]
    if not classes.isthing[class_id]:
        raise InputError(
            f'{where}: category "{classes.names[class_id]}" is stuff, and a box is for a thing; '
            'put it into the image\'s "image_tags", or set "isthing": 1 for the category'
        )
    if record["supervision"] == "weak" and annotation.get("segmentation"):
        raise InputError(
            f"{where}: has a segmentation, and weak annotation holds no mask; drop the masks with: "
            "python tools/import_annotations.py coco --annotations FILE --images DIR --output FILE"
        )
    crowd = annotation.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise InputError(f"{where}: iscrowd is {shorten(crowd)}; expected 0 or 1")
    marks = object_marks(annotation, record["width"], record["height"], where)
    if number is not None:
        marks = {"id": number, **marks}
    if annotation.get("bbox") is None and inside_marks(marks):
        if crowd:
            raise InputError(f"{where}: a group (iscrowd) without a bbox; expected its box")
        record.setdefault("unboxed", []).append({"category_id": class_id, **marks})
        record["image_tags"] = sorted({*record["image_tags"], class_id})
        return
    record["annotations"].append(
        {
            **marks,
            "bbox": box_to_xyxy(annotation.get("bbox"), record["width"], record["height"], where),
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": class_id,
            "iscrowd": int(crowd),
        }
    )
