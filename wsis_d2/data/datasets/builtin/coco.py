# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""COCO 2014 and 2017, the images with VOC classes, in VOC's 21 categories.

The paper pretrains its semantic subnetwork on 54 000 such images and gives no rule for choosing
them. Here an image is taken if it has at least one object, not a crowd, of a VOC class
(``min_area`` raises the bar); the count is reported. Rules:

* Weak: the released boxes, crowds flagged; no polygon is read for them. Tag: background.
* Full: polygons drawn crowds first, then from large to small, so that smaller objects lie on top;
  what no VOC object covers is background, other COCO classes too, as in VOC.
"""

import json
import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from wsis_d2.data.datasets.builtin.metadata import COCO_NAMES, VOC_CATEGORIES
from wsis_d2.data.datasets.builtin.preparation import Converted, ImageJob
from wsis_d2.data.datasets.builtin.segments import image_size
from wsis_d2.structures.rle import checked_rle
from wsis_d2.utils.errors import InputError

PREPARE_COMMAND = "python datasets/prepare_coco.py"
URL = "https://cocodataset.org/#download"
# Images of the official release; with VOC classes there are fewer.
SIZES = {("2014", "train"): 82783, ("2014", "val"): 40504,
         ("2017", "train"): 118287, ("2017", "val"): 5000}  # fmt: skip


def output_folder(year: str) -> str:
    """Return the name of the folder of the derived files."""
    return f"wsis_coco_{year}_vocclasses"


def read_instances(coco: Path, year: str, part: str) -> dict[str, Any]:
    """Read ``annotations/instances_PARTYEAR.json``.

    Raises:
        InputError: missing or not such a file.
    """
    path = coco / "annotations" / f"instances_{part}{year}.json"
    try:
        content = json.loads(path.read_bytes())
        if not {"images", "annotations", "categories"} <= content.keys():
            raise ValueError("images, annotations or categories missing")
    except FileNotFoundError:
        raise InputError(
            f"{path}: missing; unpack annotations_trainval{year}.zip ({URL}) in {coco}"
        ) from None
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path}: not an instance file of COCO ({error})") from None
    return content


def voc_category_ids(categories: list[dict[str, Any]], path: str) -> dict[int, int]:
    """Return {COCO category id: VOC category id} of the 20 VOC classes."""
    by_name = {category["name"]: category["id"] for category in categories}
    wanted = {c["id"]: COCO_NAMES.get(c["name"], c["name"]) for c in VOC_CATEGORIES if c["id"]}
    missing = [name for name in wanted.values() if name not in by_name]
    if missing:
        raise InputError(f"{path}: category {missing[0]!r} missing; take COCO's official file")
    return {by_name[name]: i for i, name in wanted.items()}


def make_jobs(
    coco: Path, year: str, part: str, *, min_area: float = 0.0
) -> tuple[list[ImageJob], int]:
    """Return the jobs of the images with VOC classes, by image id, and the number of all images.

    Args:
        coco: folder with ``annotations``, ``train2014`` and so on.
        year: "2014" or "2017".
        part: "train" or "val".
        min_area: an image needs an object of a VOC class larger than this, in pixels.
    """
    content = read_instances(coco, year, part)
    path = str(coco / "annotations" / f"instances_{part}{year}.json")
    try:
        return _jobs_of(content, path, coco, f"{part}{year}", min_area), len(content["images"])
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(
            f"{path}: not an instance file of COCO ({type(error).__name__} {str(error)[:120]}); "
            "take COCO's official file"
        ) from None


def _jobs_of(
    content: dict[str, Any], path: str, coco: Path, folder: str, min_area: float
) -> list[ImageJob]:
    to_voc = voc_category_ids(content["categories"], path)
    by_image: dict[int, list[dict[str, Any]]] = {}
    chosen = set()
    for annotation in content["annotations"]:
        if annotation["category_id"] not in to_voc:
            continue
        box = annotation["bbox"]
        if len(box) != 4 or not all(map(math.isfinite, [*box, annotation["area"]])):
            raise ValueError(f"annotation {annotation['id']}: bbox or area")
        crowd = int(annotation.get("iscrowd", 0))
        by_image.setdefault(annotation["image_id"], []).append(
            {
                "category_id": to_voc[annotation["category_id"]],
                "bbox": box,
                "iscrowd": crowd,
                "area": annotation["area"],
                "segmentation": annotation["segmentation"],
            }
        )
        if not crowd and annotation["area"] > min_area:
            chosen.add(annotation["image_id"])
    jobs = []
    for image in sorted(content["images"], key=lambda image: image["id"]):
        if image["id"] in chosen:
            name = f"{folder}/{image['file_name']}"
            size = (image["height"], image["width"])
            plain = Path(name).parent.as_posix() == folder and "\0" not in name
            if not plain or not all(type(v) is int and 0 < v < 1 << 16 for v in size):
                raise ValueError(f"image {image['id']}: file_name, height or width")
            jobs.append(
                ImageJob(image["id"], (str(coco / name),), (name, *size, by_image[image["id"]]))
            )
    return jobs


def converter() -> Callable[[ImageJob], Converted]:
    """Return the picklable conversion of one image."""
    return partial(_convert)


def _convert(job: ImageJob) -> Converted:
    name, height, width, objects = job.data
    found = image_size(job.sources[0])
    if found != (height, width):
        raise InputError(
            f"{job.sources[0]}: has {found[1]} x {found[0]} pixels, its annotation says {width} x "
            f"{height}; both must come from the official archives"
        )
    counts: Counter[str] = Counter()
    annotations = []
    for thing in objects:
        x, y, w, h = thing["bbox"]
        x0, y0, x1, y1 = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
        if x1 <= x0 or y1 <= y0:
            counts["boxes_without_area"] += 1
            continue
        annotations.append(
            {
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "category_id": thing["category_id"],
                "iscrowd": thing["iscrowd"],
            }
        )
    segment_ids = np.ones((height, width), np.int32)
    segments = [{"id": 1, "category_id": 0, "iscrowd": 0}]
    order = sorted(range(len(objects)), key=lambda k: (-objects[k]["iscrowd"], -objects[k]["area"]))
    for k in order:
        mask = decode(objects[k]["segmentation"], height, width, f"{name}, object {k}")
        segment_ids[mask] = k + 2
    for k, thing in enumerate(objects):
        if (segment_ids == k + 2).any():
            segments.append(
                {"id": k + 2, "category_id": thing["category_id"], "iscrowd": thing["iscrowd"]}
            )
        else:
            counts["objects_without_pixels"] += 1
    return Converted(
        image={"id": job.image_id, "file_name": name, "height": height, "width": width},
        tags=[0],
        annotations=annotations,
        segment_ids=segment_ids,
        segments=segments,
        counts=counts,
    )


def decode(segmentation: Any, height: int, width: int, what: str) -> np.ndarray:
    """Return the bool (H, W) mask of COCO polygons or of a run-length code.

    Raises:
        InputError: neither of them.
    """
    from pycocotools import mask as mask_util

    try:
        if isinstance(segmentation, dict):
            rle = checked_rle(segmentation, (height, width))
        else:
            if not segmentation or not all(
                len(part) % 2 == 0 and all(abs(v) < 1 << 16 for v in part) for part in segmentation
            ):  # pycocotools would draw, or write, far outside
                raise ValueError("a polygon with half a point, or one far outside")
            parts = [part for part in segmentation if len(part) >= 6]
            if not parts:  # two points have no area
                return np.zeros((height, width), bool)
            rle = mask_util.merge(mask_util.frPyObjects(parts, height, width))
        return mask_util.decode(rle).astype(bool)
    except Exception as error:
        raise InputError(f"{what}: its segmentation cannot be drawn ({error})") from None
