# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""A twin of a dataset in the file layout of COCO panoptic, for Mask2Former and its kin.

Addition, not in the paper.

Their loaders are Detectron2's ``load_coco_panoptic_json`` or copies of it: an image is
``IMAGES/NAME.jpg`` where its segments are ``NAME.png``, ids are integers, and category ids go
through the metadata's tables. Pixels without a segment are in no mask, which such trainers take for
"not this object" at every mask: they cannot be told that pixels are unknown.
"""

import logging
import os
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco_panoptic import register_coco_panoptic

from wsis_d2.data.datasets.builtin.segments import segment_entries
from wsis_d2.data.datasets.own.custom import dataset_classes, open_labels
from wsis_d2.data.panoptic_format import read_panoptic_png, write_panoptic_png
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.json_io import write_json
from wsis_d2.utils.progress import progress
from wsis_d2.weak_labels.store import LabelStore
from wsis_d2.weak_labels.store_status import image_key

logger = logging.getLogger(__name__)


def register_panoptic_files(name: str, folder: str | os.PathLike) -> str:
    """Write a registered dataset as COCO panoptic files and register them as ``NAME_panoptic``.

    ``thing_dataset_id_to_contiguous_id`` and ``stuff_dataset_id_to_contiguous_id`` speak of one
    list of all classes, as Mask2Former's registration of COCO has it; so
    ``MODEL.SEM_SEG_HEAD.NUM_CLASSES`` is their number.

    Args:
        name: a weak or mixed dataset with a label store, or a full one.
        folder: gets ``panoptic.json``, ``panoptic/`` and ``images/`` (links to the photographs).

    Returns:
        The new dataset's name; Detectron2's own loader reads it.

    Raises:
        InputError: the dataset is not registered, or a label is missing.
    """
    if name not in DatasetCatalog.list():
        raise InputError(f'panoptic files: no dataset "{name}" is registered')
    classes, folder = dataset_classes(name), Path(folder)
    write_panoptic_files(name, folder)
    twin = f"{name}_panoptic"
    if twin in DatasetCatalog.list():
        DatasetCatalog.remove(twin)
        MetadataCatalog.remove(twin)
    files = (folder / "images", folder / "panoptic", folder / "panoptic.json")
    metadata = classes.metadata()
    for key in ("ignore_label", "label_divisor"):  # which Detectron2 sets itself
        del metadata[key]
    register_coco_panoptic(twin, metadata, *map(str, files))
    return twin


def write_panoptic_files(name: str, folder: Path) -> None:
    """Write the files of :func:`register_panoptic_files`; what is there is written anew."""
    classes = dataset_classes(name)
    records = DatasetCatalog.get(name)
    store = open_labels(name, records)
    for part in ("images", "panoptic"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    numbers = _numbers([r["image_id"] for r in records])
    for record in progress(records, desc=f"panoptic files of {name}"):
        number = numbers[record["image_id"]]
        stem = image_key(number)
        ids, segments = _segments(record, store)
        _link(Path(record["file_name"]), folder / "images" / f"{stem}.jpg")
        write_panoptic_png(folder / "panoptic" / f"{stem}.png", ids)
        images.append({"id": number, "file_name": f"{stem}.jpg", "height": record["height"],
                       "width": record["width"]})  # fmt: skip
        infos = segment_entries(
            ids,
            [
                {
                    "id": int(segment["id"]),
                    "category_id": int(classes.ids[segment["category_id"]]),
                    "iscrowd": int(segment.get("iscrowd", 0)),
                }
                for segment in segments
            ],
        )
        annotations.append({"image_id": number, "file_name": f"{stem}.png", "segments_info": infos})
    content = {"images": images, "annotations": annotations, "categories": classes.categories}
    write_json(folder / "panoptic.json", content)


def _numbers(ids: list) -> dict:
    """Return integers for image ids: themselves where all are, else from 1 on."""
    if all(isinstance(i, int) for i in ids):
        return {i: i for i in ids}
    return {image_id: k for k, image_id in enumerate(ids, start=1)}


def _segments(record: dict, store: LabelStore | None) -> tuple[np.ndarray, list[dict]]:
    """Return (H, W) int32 segment ids, 0 where there is none, and the segments."""
    if record["supervision"] == "weak":
        store.check(record)
        ids, segments = store.instance(record["image_id"])
        return np.maximum(ids, 0), segments
    return read_panoptic_png(record["pan_seg_file_name"]), record["segments_info"]


def _link(source: Path, target: Path) -> None:
    """Link to the photograph; readers look at what a file holds, not at its name."""
    target.unlink(missing_ok=True)
    target.symlink_to(source.resolve())
