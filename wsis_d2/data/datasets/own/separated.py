# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""A twin of a dataset in the shape that stock Detectron2 panoptic models train from.

Detectron2's Panoptic FPN wants things and stuff apart ("separated", as in
``coco_2017_train_panoptic_separated``): instance masks with contiguous ids of things, and a
semantic map in which 0 is "things" and 1... are the stuff classes. This module makes that twin
from pseudo ground truth (the label store of a weak set) or from truth (a full set).
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from wsis_d2.data.datasets.own.custom import dataset_classes
from wsis_d2.structures.classes import match_classes, parse_categories
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.json_io import read_json
from wsis_d2.utils.progress import progress

VERSION = 1


def register_separated(name: str, folder: str | os.PathLike | None = None) -> str:
    """Register ``NAME_separated`` for a registered dataset; its files are made on first use.

    Train stock models from it with ``INPUT.MASK_FORMAT "bitmask"``,
    ``MODEL.ROI_HEADS.NUM_CLASSES`` = number of things and ``MODEL.SEM_SEG_HEAD.NUM_CLASSES`` =
    number of stuff classes + 1.

    Args:
        name: a weak or mixed dataset with a label store, or a full one.
        folder: where the semantic maps and masks are kept; by default ``separated`` in the label
            store, and required for a dataset that has none.

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
        truth = parse_categories(content.get("categories"), base.panoptic_json)
        for category, place in zip(truth.ids, match_classes(classes, truth), strict=True):
            file_ids[place] = category
    DatasetCatalog.register(twin, lambda: load_separated(name, folder))
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


def load_separated(name: str, folder: str | os.PathLike | None = None) -> list[dict]:
    """Make the twin's files where they are missing or stale, and load its records.

    Args:
        name: a dataset whose twin :func:`register_separated` has registered.
        folder: as for :func:`register_separated`.

    Returns:
        Dataset dicts with ``file_name``, ``image_id``, ``height``, ``width``,
        ``sem_seg_file_name`` and ``annotations`` with ``segmentation`` (compressed RLE).

    Raises:
        InputError: a label is missing, with the command that makes it.
    """
    from wsis_d2.weak_labels.store import LabelStore, image_key

    base, twin = MetadataCatalog.get(name), MetadataCatalog.get(f"{name}_separated")
    records = DatasetCatalog.get(name)
    store = None
    if any(r["supervision"] == "weak" for r in records):
        if not base.label_store:
            raise InputError(
                f'dataset "{name}" has no label store; make one with: python '
                f"tools/make_weak_labels.py all --dataset {name} --output STORE, and name it in "
                "DATASETS.LABEL_STORES or labels="
            )
        store = LabelStore.open(base.label_store).in_classes(dataset_classes(name))
    if folder is None:
        if store is None:
            raise InputError(f'dataset "{name}": give a folder for its separated twin')
        folder = Path(base.label_store) / "separated"
    folder = Path(folder)
    maps_folder = folder / "stuff"
    maps_folder.mkdir(parents=True, exist_ok=True)
    index_file = folder / "instances.json"
    fingerprint = _fingerprint(name, base, twin, records, store)
    try:
        index = json.loads(index_file.read_text())
    except (OSError, ValueError):
        index = {}
    if index.get("fingerprint") != fingerprint:
        index = {"fingerprint": fingerprint, "annotations": {}}
        for record, semantic, annotations in progress(
            _separate(records, base, twin, store), total=len(records), desc=f"separating {name}"
        ):
            key = image_key(record["image_id"])
            temporary = maps_folder / f".{key}.{os.getpid()}.tmp"
            Image.fromarray(semantic).save(temporary, format="PNG")
            os.replace(temporary, maps_folder / f"{key}.png")
            index["annotations"][key] = annotations
        temporary = folder / f".instances.{os.getpid()}.tmp"
        temporary.write_text(json.dumps(index))
        os.replace(temporary, index_file)
    result = []
    for record in records:
        key = image_key(record["image_id"])
        annotations = [
            {**a, "bbox_mode": BoxMode.XYWH_ABS, "iscrowd": 0} for a in index["annotations"][key]
        ]
        result.append(
            {
                **{k: record[k] for k in ("file_name", "image_id", "height", "width")},
                "sem_seg_file_name": str(maps_folder / f"{key}.png"),
                "annotations": annotations,
            }
        )
    return result


def _fingerprint(name: str, base, twin, records: list[dict], store) -> str:
    """Changes with the classes, the labels, the truth or the list of images."""
    classes = [base.stuff_classes, twin.thing_classes, twin.stuff_classes]
    digest = hashlib.sha256(f"{VERSION} {name} {json.dumps(classes)}".encode())
    for record in records:
        digest.update(f"{record['image_id']} {record['supervision']}".encode())
        digest.update(json.dumps(record.get("segments_info")).encode())
        if "pan_seg_file_name" in record:
            stat = os.stat(record["pan_seg_file_name"])
            digest.update(f"{stat.st_size} {stat.st_mtime_ns}".encode())
    if store is not None:
        digest.update(store.recipe_hash.encode())
        for path in sorted((store.path / "status").glob("*.json")):
            digest.update(path.read_bytes())
            digest.update(str(path.stat().st_mtime_ns).encode())
    return digest.hexdigest()


def _separate(records, base, twin, store) -> Iterator[tuple[dict, np.ndarray, list[dict]]]:
    """Yield each record with its (H, W) uint8 semantic map and its instances."""
    names = base.stuff_classes  # all of them, see ClassTable.metadata
    thing_index = {names.index(name): i for i, name in enumerate(twin.thing_classes)}
    to_stuff = np.full(256, 255, np.uint8)
    to_stuff[list(thing_index)] = 0
    for i, name in enumerate(twin.stuff_classes[1:], start=1):
        to_stuff[names.index(name)] = i
    for record in records:
        if record["supervision"] == "weak":
            store.check(record)
            semantic = to_stuff[store.semantic(record["image_id"])]
            ids, segments = store.instance(record["image_id"])
        else:
            with Image.open(record["pan_seg_file_name"]) as image:
                rgb = np.array(image.convert("RGB")).astype(np.int32)
            ids = rgb[..., 0] + (rgb[..., 1] << 8) + (rgb[..., 2] << 16)
            segments = [s for s in record["segments_info"] if not s["iscrowd"]]
            semantic = np.full(ids.shape, 255, np.uint8)
            for segment in segments:
                semantic[ids == segment["id"]] = to_stuff[segment["category_id"]]
        annotations = []
        for segment in segments:
            if segment["category_id"] not in thing_index:
                continue
            mask = ids == segment["id"]
            if not mask.any():
                continue
            rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
            box = [float(v) for v in mask_util.toBbox(rle)]
            rle["counts"] = rle["counts"].decode()
            annotations.append(
                {
                    "bbox": box,
                    "category_id": thing_index[segment["category_id"]],
                    "segmentation": rle,
                }
            )
        yield record, semantic, annotations
