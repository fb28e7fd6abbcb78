# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""A twin of a dataset in the shape that stock Detectron2 panoptic models train from.

Addition, not in the paper.

Detectron2's Panoptic FPN wants things and stuff apart ("separated", as in
``coco_2017_train_panoptic_separated``): instance masks with contiguous ids of things, and a
semantic map in which 0 is "things" and 1... are the stuff classes. This module makes that twin
from pseudo ground truth (the label store of a weak set) or from truth (a full set).

Objects have their annotated boxes, not those of their masks, which may be small parts of them;
those without a box have that of their mask. So has every object of a fully annotated image, whose
masks are whole, and annotated boxes fit them more or less. In the semantic map unknown pixels are
255, the ignore value; inside an object's box they are also its ``ignore_segmentation``.

With :class:`wsis_d2.data.mappers.separated_mapper.SeparatedMapper` and the mask head
``IgnoringMaskHead`` (``tools/train_stock.py``), the mask loss leaves them out and objects without a
mask pixel stay (``keep_all``). What Detectron2's own mapper and head cannot be told:

* Unknown pixels are background of the mask.
* An object without an agreed pixel has a box and no mask, so it is left out and counted, and the
  detector learns that nothing is there; without masks (``masks=False``, ``MODEL.MASK_ON False``) no
  box is lost.

Neither can be told that groups are crowds, which mappers drop: their regions count as background of
the detector.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.structures import BoxMode
from scipy.optimize import linear_sum_assignment

from wsis_d2.data.datasets.own.custom import dataset_classes, open_labels
from wsis_d2.data.panoptic_format import read_panoptic_png, write_png
from wsis_d2.structures.annotation import touched_boxes
from wsis_d2.structures.boxes import Box
from wsis_d2.structures.classes import match_classes, parse_categories
from wsis_d2.structures.labels import IGNORE, id_table
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.files import list_files
from wsis_d2.utils.json_io import read_json, write_json
from wsis_d2.utils.progress import progress
from wsis_d2.weak_labels.clean_steps import covered
from wsis_d2.weak_labels.recipe import annotation_digest
from wsis_d2.weak_labels.store import LabelStore
from wsis_d2.weak_labels.store_status import image_key

logger = logging.getLogger(__name__)

VERSION = 4


def register_separated(
    name: str,
    folder: str | os.PathLike | None = None,
    masks: bool = True,
    keep_all: bool = False,
) -> str:
    """Register ``NAME_separated`` for a registered dataset; its files are made on first use.

    Train stock models from it with ``INPUT.MASK_FORMAT "bitmask"``,
    ``MODEL.ROI_HEADS.NUM_CLASSES`` = number of things and ``MODEL.SEM_SEG_HEAD.NUM_CLASSES`` =
    number of stuff classes + 1.

    Args:
        name: a weak or mixed dataset with a label store, or a full one.
        folder: where the semantic maps and masks are kept; by default ``separated`` in the label
            store, and required for a dataset that has none.
        masks: objects have masks, and those without a pixel are left out; False: boxes alone, all
            of them.
        keep_all: with masks, objects without a pixel stay, for :class:`SeparatedMapper`.

    Returns:
        The new dataset's name.

    Raises:
        InputError: the dataset is not registered, or its truth is of other classes.
    """
    if name not in DatasetCatalog.list():
        raise InputError(f'separated twin: no dataset "{name}" is registered')
    base, classes = MetadataCatalog.get(name), dataset_classes(name)
    twin = f"{name}_separated"
    if twin in DatasetCatalog.list():
        DatasetCatalog.remove(twin)
        MetadataCatalog.remove(twin)
    things, stuff = list(base.thing_ids), list(base.stuff_ids)
    # Detectron2's evaluator compares with the truth by the truth's own ids.
    file_ids = list(classes.ids)
    if base.panoptic_json and os.path.isfile(base.panoptic_json):
        content = read_json(base.panoptic_json)
        categories = content.get("categories") if isinstance(content, dict) else None
        truth = parse_categories(categories, base.panoptic_json)
        for category, place in zip(truth.ids, match_classes(classes, truth), strict=True):
            file_ids[place] = category
    DatasetCatalog.register(twin, lambda: load_separated(name, folder, masks, keep_all))
    MetadataCatalog.get(twin).set(
        thing_classes=[base.thing_classes[k] for k in things],
        thing_colors=[base.thing_colors[k] for k in things],
        stuff_classes=["things"] + [base.stuff_classes[k] for k in stuff],
        stuff_colors=[[82, 18, 128]] + [base.stuff_colors[k] for k in stuff],
        thing_dataset_id_to_contiguous_id={file_ids[k]: i for i, k in enumerate(things)},
        stuff_dataset_id_to_contiguous_id={file_ids[k]: i + 1 for i, k in enumerate(stuff)},
        image_root=base.image_root,
        panoptic_json=base.panoptic_json,
        panoptic_root=base.panoptic_root,
        evaluator_type="coco_panoptic_seg",
        ignore_label=255,
        label_divisor=1000,
    )
    return twin


def load_separated(
    name: str,
    folder: str | os.PathLike | None = None,
    masks: bool = True,
    keep_all: bool = False,
) -> list[dict]:
    """Make the twin's files where they are missing or stale, and load its records.

    Args:
        name: a dataset whose twin :func:`register_separated` has registered.
        folder, masks, keep_all: as for :func:`register_separated`.

    Returns:
        Dataset dicts with ``file_name``, ``image_id``, ``height``, ``width``,
        ``sem_seg_file_name`` and ``annotations``: ``bbox`` as annotated, or of the mask,
        ``category_id`` of the things, ``iscrowd``, and with ``masks`` ``segmentation`` and, of
        objects, ``ignore_segmentation`` (compressed RLE), the unknown pixels of the box.

    Raises:
        InputError: a label is missing, with the command that makes it.
    """
    base, twin = MetadataCatalog.get(name), MetadataCatalog.get(f"{name}_separated")
    records = DatasetCatalog.get(name)
    store = open_labels(name, records)
    if folder is None:
        if store is None:
            raise InputError(f'dataset "{name}": give a folder for its separated twin')
        folder = Path(base.label_store) / "separated"
    folder = Path(folder)
    maps_folder = folder / "stuff"
    index_file = folder / "instances.json"
    fingerprint = _fingerprint(name, base, twin, records, store)
    try:
        index = json.loads(index_file.read_text())
    except (OSError, ValueError):
        index = {}
    if not isinstance(index, dict) or index.get("fingerprint") != fingerprint:
        index = {"fingerprint": fingerprint, "annotations": {}, "unlabelled": []}
        for record, semantic, annotations in progress(
            _separate(records, base, twin, store), total=len(records), desc=f"separating {name}"
        ):
            key = image_key(record["image_id"])
            write_png(maps_folder / f"{key}.png", semantic)
            index["annotations"][key] = annotations
            if (semantic == IGNORE).all():
                index["unlabelled"].append(key)
        write_json(index_file, index)
    result, lost, crowds = [], 0, 0
    if index["unlabelled"]:
        logger.warning(
            "%s: %d images have no label at all and are left out", name, len(index["unlabelled"])
        )
    for record in records:
        key = image_key(record["image_id"])
        if key in index["unlabelled"]:  # the mean loss of stock heads over no pixel is NaN
            continue
        annotations = []
        for entry in index["annotations"][key]:
            crowds += entry["iscrowd"]
            if masks and not keep_all and "segmentation" not in entry:
                lost += 1
                continue
            kept = entry if masks else {k: v for k, v in entry.items() if "segmentation" not in k}
            annotations.append({**kept, "bbox_mode": BoxMode.XYWH_ABS})
        result.append(
            {
                **{k: record[k] for k in ("file_name", "image_id", "height", "width")},
                "sem_seg_file_name": str(maps_folder / f"{key}.png"),
                "annotations": annotations,
            }
        )
    if lost:
        logger.warning(
            "%s: %d objects have a box and no pixel of a mask; they are left out (masks=False "
            "keeps the boxes of all)",
            name,
            lost,
        )
    if crowds:
        logger.info("%s: %d groups are crowds, which stock mappers drop", name, crowds)
    return result


def _fingerprint(
    name: str, base: Metadata, twin: Metadata, records: list[dict], store: LabelStore | None
) -> str:
    """Changes with the classes, the labels, the truth or the list of images."""
    classes = [base.stuff_classes, twin.thing_classes, twin.stuff_classes]
    digest = hashlib.sha256(f"{VERSION} {name} {json.dumps(classes)}".encode())
    for record in records:
        digest.update(f"{record['image_id']} {record['supervision']}".encode())
        digest.update(json.dumps(record.get("segments_info")).encode())
        digest.update(annotation_digest(record).encode())
        if "pan_seg_file_name" in record:
            stat = os.stat(record["pan_seg_file_name"])
            digest.update(f"{stat.st_size} {stat.st_mtime_ns}".encode())
    if store is not None:
        digest.update(store.recipe_hash.encode())
        for path in list_files(store.path / "status", "*.json"):
            digest.update(path.read_bytes())
            digest.update(str(path.stat().st_mtime_ns).encode())
    return digest.hexdigest()


def _separate(
    records: list[dict], base: Metadata, twin: Metadata, store: LabelStore | None
) -> Iterator[tuple[dict, np.ndarray, list[dict]]]:
    """Yield each record with its (H, W) uint8 semantic map and its instances."""
    names = base.stuff_classes  # all of them, see ClassTable.metadata
    thing_index = {names.index(name): i for i, name in enumerate(twin.thing_classes)}
    stuff_index = {names.index(n): i for i, n in enumerate(twin.stuff_classes[1:], start=1)}
    to_stuff = id_table(dict.fromkeys(thing_index, 0) | stuff_index)
    for record in records:
        if record["supervision"] == "weak":
            store.check(record)
            semantic = to_stuff[store.semantic(record["image_id"])]
            ids, segments = store.instance(record["image_id"])
        else:
            ids = read_panoptic_png(record["pan_seg_file_name"])
            segments = record["segments_info"]
            record = {**record, "annotations": []}
            semantic = np.full(ids.shape, IGNORE, np.uint8)
            for segment in segments:
                semantic[ids == segment["id"]] = to_stuff[segment["category_id"]]
        things = [s for s in segments if s["category_id"] in thing_index]
        unknown = semantic == IGNORE
        if record["supervision"] == "weak":  # a thing of unknown instance
            unknown |= (semantic == 0) & (ids <= 0)
        annotations = [
            {**entry, "category_id": thing_index[entry["category_id"]]}
            for entry in _objects(record, ids, things, unknown)
        ]
        yield record, semantic, annotations


def _objects(
    record: dict, ids: np.ndarray, segments: list[dict], unknown: np.ndarray
) -> Iterator[dict]:
    """Yield the annotations of one image: each segment with its box, then boxes without a segment.

    Args:
        record: its boxes are read.
        ids: (H, W) int32, segment ids.
        segments: those of things.
        unknown: (H, W) bool.
    """
    bboxes = [
        BoxMode.convert(list(a["bbox"]), BoxMode(a["bbox_mode"]), BoxMode.XYWH_ABS)
        for a in record["annotations"]
    ]
    annotated: dict[Box, list[float]] = {}
    for box, bbox in zip(touched_boxes(record), bboxes, strict=True):
        annotated.setdefault(box, [float(v) for v in bbox])
    masks, tight = [], []
    for segment in segments:
        mask = ids == segment["id"]
        if mask.any():
            rows, columns = (np.flatnonzero(mask.any(axis)).tolist() for axis in (1, 0))
            corners = columns[0], rows[0], columns[-1], rows[-1]
            masks.append(mask)
            tight.append(Box(segment["category_id"], *corners, bool(segment.get("iscrowd", 0))))
    own = _boxes_of(tight, list(annotated))
    for mask, box in zip(masks, own, strict=True):
        entry = {**_entry(box, annotated.get(box)), "segmentation": _rle(mask)}
        if not box.is_group:
            entry["ignore_segmentation"] = _rle(unknown & _filled(box, mask.shape))
        yield entry
    for box, bbox in annotated.items():
        if box not in own:
            inside = _filled(box, ids.shape)
            if box.is_group:
                yield {**_entry(box, bbox), "segmentation": _rle(inside)}
            else:
                yield {**_entry(box, bbox), "ignore_segmentation": _rle(unknown & inside)}


def _boxes_of(tight: list[Box], annotated: list[Box]) -> list[Box]:
    """Return the annotated box of each mask: of its class and kind, around it, and the closest.

    A mask that no box is around keeps its own tight one.
    """
    gain = np.zeros((len(tight), len(annotated)))
    for row, mask in enumerate(tight):
        for column, box in enumerate(annotated):
            around = (
                (mask.class_id, mask.is_group) == (box.class_id, box.is_group)
                and box.x0 <= mask.x0 and box.y0 <= mask.y0
                and box.x1 >= mask.x1 and box.y1 >= mask.y1
            )  # fmt: skip
            if around:
                gain[row, column] = mask.area / box.area
    own = list(tight)
    for row, column in zip(*linear_sum_assignment(gain, maximize=True), strict=True):
        if gain[row, column] > 0:
            own[row] = annotated[column]
    return own


def _entry(box: Box, bbox: list[float] | None) -> dict:
    height, width = box.shape
    return {
        "bbox": bbox or [float(v) for v in (box.x0, box.y0, width, height)],
        "category_id": box.class_id,
        "iscrowd": int(box.is_group),
    }


def _filled(box: Box, shape: tuple[int, int]) -> np.ndarray:
    return covered([box.clipped(*shape)], shape)


def _rle(mask: np.ndarray) -> dict:
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {**rle, "counts": rle["counts"].decode()}
