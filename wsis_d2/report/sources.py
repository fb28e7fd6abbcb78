# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""What can be looked at: annotation, label stores, predictions and truth as layers of a report."""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from wsis_d2.evaluation.image_match import joint_histogram
from wsis_d2.structures.classes import ClassTable, match_classes, record_in_classes
from wsis_d2.structures.labels import IGNORE
from wsis_d2.utils.errors import InputError, check_choice
from wsis_d2.visualization.layers import AnnotationLayer, LabelLayer
from wsis_d2.visualization.palette import class_list


@dataclass
class DataSource:
    """Images with their annotation, and the truth where there is some.

    Attributes:
        name: dataset name or annotation file.
        records: weak records (Detectron2 dataset dicts).
        classes: from :func:`wsis_d2.visualization.palette.class_list`, indexed by unified id.
        table: the same as a :class:`wsis_d2.structures.classes.ClassTable`.
        truth: the truth as :class:`wsis_d2.data.panoptic_format.PanopticFile` in these
            classes, or None.
        label_store: path of the dataset's label store, or None.
    """

    name: str
    records: list[dict[str, Any]]
    classes: list[dict[str, Any]]
    table: ClassTable
    truth: Any = None
    label_store: str | None = None

    def in_classes(self, other: "DataSource") -> "DataSource":
        """Return the same images in the classes of other data: those of one name are the same.

        Raises:
            InputError: see :func:`wsis_d2.structures.classes.match_classes`.
        """
        places = match_classes(other.table, self.table)
        return replace(
            self,
            records=[record_in_classes(record, places) for record in self.records],
            classes=other.classes,
            table=other.table,
            truth=None if self.truth is None else self.truth.in_classes(other.table),
        )


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name images, annotation and truth."""
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", metavar="NAME", help="a registered dataset")
    group.add_argument("--annotations", metavar="A.json", help="own data: boxes and tags")
    group.add_argument("--images", metavar="DIR", help="own data: folder of the images")
    group.add_argument("--gt-json", metavar="G.json", help="truth, COCO panoptic JSON")
    group.add_argument("--gt-dir", metavar="DIR", help="truth, folder of the PNGs")


def open_data(args: argparse.Namespace, cfg: Any = None) -> DataSource:
    """Open what :func:`add_data_arguments` named.

    Args:
        args: the parsed arguments.
        cfg: a config whose ``DATASETS.OWN`` is registered first, or None.

    Raises:
        InputError: neither or both ways of naming data, an unknown dataset, unusable files, truth
            of other classes.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    import wsis_d2.data.datasets  # noqa: F401  registers the built-in datasets
    from wsis_d2.data.datasets.own.custom import dataset_classes, register_own_datasets
    from wsis_d2.data.datasets.own.weak import read_weak_file
    from wsis_d2.data.panoptic_format import PanopticFile

    if (args.dataset is None) == (args.annotations is None):
        raise InputError(
            "expected either --dataset NAME or --annotations A.json --images DIR to name the data"
        )
    if (args.gt_json is None) != (args.gt_dir is None):
        raise InputError("expected both --gt-json and --gt-dir, or neither")
    if cfg is not None:
        register_own_datasets(cfg)
    store, gt_json, gt_dir = None, args.gt_json, args.gt_dir
    if (args.annotations is None) != (args.images is None):
        raise InputError("expected both --annotations A.json and --images DIR, its images' folder")
    if args.annotations is not None:
        file = read_weak_file(args.annotations, args.images, supervision="mixed")
        name, records, table = args.annotations, file.records, file.classes
    else:
        name = args.dataset
        if name not in DatasetCatalog.list():
            known = [n for n in sorted(DatasetCatalog.list()) if "supervision" in vars(
                MetadataCatalog.get(n))]  # fmt: skip
            check_choice("--dataset", name, known)
        records = DatasetCatalog.get(name)
        metadata = MetadataCatalog.get(name)
        table = dataset_classes(name)
        if table is None:
            raise InputError(f"--dataset {name}: its metadata has no 'categories'")
        store = metadata.get("label_store")
        if gt_json is None:
            gt_json, gt_dir = metadata.get("panoptic_json"), metadata.get("panoptic_root")
    truth = None
    if gt_json is not None and (args.gt_json is not None or os.path.isfile(gt_json)):
        truth = PanopticFile(gt_json, gt_dir).in_classes(table)
        for record in records:
            truth.pictures.check(record["image_id"], record["file_name"], f"the images of {name}")
    return DataSource(name, records, class_list(table.categories), table, truth, store)


def of_other_pictures(file: Any, data: DataSource) -> bool:
    """Whether all numbers that two files share are ids of pictures that each calls otherwise."""
    if not any(isinstance(image.get("file_name"), str) for image in file.images):
        return False
    shared = [
        record for record in data.records
        if isinstance(record["image_id"], int) and str(record["image_id"]) in file.annotations
    ]  # fmt: skip
    return bool(shared) and not any(file.pictures.ids(str(r["file_name"])) for r in shared)


def predictions_of(file: Any, data: DataSource) -> Any:
    """Return a :class:`PanopticFile` of predictions in the data's classes.

    Raises:
        InputError: they are of other classes than the dataset, or number its pictures otherwise.
    """
    if of_other_pictures(file, data):
        raise InputError(
            f"{file.json_file}: has the image ids of {data.name}, and none of its pictures' names; "
            "expected predictions on these images"
        )
    for record in data.records:
        if str(record["image_id"]) in file.annotations:
            file.pictures.check(record["image_id"], record["file_name"], data.name)
    return file.in_classes(data.table)


def annotation_layer(record: Mapping[str, Any]) -> AnnotationLayer:
    """Return boxes, tags and crop tags of a weak or full record."""
    from detectron2.structures import BoxMode

    boxes = record.get("annotations") or []
    return AnnotationLayer(
        boxes=[BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in boxes],
        class_ids=[int(a["category_id"]) for a in boxes],
        tags=sorted(int(t) for t in record.get("image_tags") or []),
        crop_tags=[
            ((x, y, x + w, y + h), sorted(crop["tags"]))
            for crop in record.get("crop_tags") or []
            for x, y, w, h in [crop["box"]]
        ],
        crowd=[bool(a.get("iscrowd", 0)) for a in boxes],
        marks=_marks(record),
    )


def _marks(record: Mapping[str, Any]) -> list[tuple[int, list]]:
    """Return class and points of each point and scribble that says where something is."""
    marks = [(m["category_id"], [m["xy"]]) for m in record.get("points") or ()]
    marks += [(m["category_id"], m["xy"]) for m in record.get("scribbles") or ()]
    for entry in (*(record.get("annotations") or ()), *(record.get("unboxed") or ())):
        class_id = int(entry["category_id"])
        marks += [(class_id, [p[:2]]) for p in entry.get("points") or () if p[2:] != [0]]
        marks += [(class_id, line) for line in entry.get("scribbles") or ()]
    return marks


def store_layer(store: Any, image_id: int | str) -> LabelLayer | None:
    """Return one image's pseudo label of a label store, None where it was not made."""
    if not store.done(image_id):
        return None
    return LabelLayer(store.semantic(image_id), store.instance(image_id)[0])


def panoptic_layer(file: Any, image_id: int | str, classes: Sequence[dict]) -> LabelLayer | None:
    """Return one image of a COCO panoptic file, None where the file lacks it.

    Args:
        file: a :class:`wsis_d2.data.panoptic_format.PanopticFile` in the dataset's classes.
        image_id: the image.
        classes: the dataset's classes.
    """
    key = str(image_id)
    if key not in file.annotations:
        return None
    unified = {c["id"]: index for index, c in enumerate(classes)}
    return segments_layer(file.ids(key), file.segments(key), unified)


def segments_layer(
    ids: np.ndarray, segments: Sequence[Mapping[str, Any]], unified: Mapping[int, int]
) -> LabelLayer:
    """Return panoptic segment ids and their list as a layer.

    Args:
        ids: int (H, W), 0 = void.
        segments: ``{"id", "category_id", "iscrowd"}`` each; crowds become ignore.
        unified: category id to unified class id.
    """
    known, index = np.unique(ids, return_inverse=True)
    classes = np.full(len(known), IGNORE, np.uint8)
    position = {int(v): i for i, v in enumerate(known)}
    for segment in segments:
        if segment["id"] in position and not segment.get("iscrowd", 0):
            classes[position[segment["id"]]] = unified.get(segment["category_id"], IGNORE)
    semantic = classes[index.reshape(ids.shape)]
    return LabelLayer(semantic, np.where(semantic == IGNORE, 0, ids).astype(np.int32))


def coverage(labels: LabelLayer) -> float:
    """Return the share of labelled pixels."""
    return float((labels.semantic != IGNORE).mean())


def confusion(labels: LabelLayer, truth: LabelLayer, count: int, name: str = "") -> np.ndarray:
    """Return the pixels of each (truth class, label class), int64 (C, C + 1).

    The last column is "no label". Pixels without truth are left out.

    Raises:
        InputError: the two differ in size.
    """
    a, b = truth.semantic, labels.semantic
    if a.shape != b.shape:
        raise InputError(
            f"image {name}: label map of size {b.shape}, truth of size {a.shape}; expected one size"
        )
    rows, columns = np.minimum(a, count), np.minimum(b, count)
    return joint_histogram(rows, columns, count + 1, count + 1)[:count]


def class_quality(table: np.ndarray) -> dict[str, np.ndarray]:
    """Return IoU, precision and recall of each class, float (C,), NaN where undefined.

    Args:
        table: sum of :func:`confusion` over images.
    """
    right = np.diagonal(table).astype(float)
    truth = table.sum(1).astype(float)
    labelled = table[:, :-1].sum(0).astype(float)

    def ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.divide(a, b, out=np.full(len(a), np.nan), where=b > 0)

    union = truth + labelled - right
    return {
        "IoU": ratio(right, union),
        "precision": ratio(right, labelled),
        "recall": np.where(truth > 0, ratio(right, truth), np.nan),
    }


def disagreement(first: LabelLayer, second: LabelLayer) -> float:
    """Return the share of pixels, labelled in both, whose classes differ; NaN if there is none."""
    if first.semantic.shape != second.semantic.shape:
        return float("nan")
    both = (first.semantic != IGNORE) & (second.semantic != IGNORE)
    if not both.any():
        return float("nan")
    return float((first.semantic != second.semantic)[both].mean())


def image_name(record: Mapping[str, Any]) -> str:
    """Return what an image is called in a report."""
    return Path(str(record.get("file_name") or record["image_id"])).name


def class_names(
    labels: LabelLayer | None, record: Mapping[str, Any], classes: Sequence[dict]
) -> list:
    """Return the names of the classes in an image: annotated ones and labelled ones."""
    found = {int(a["category_id"]) for a in record.get("annotations") or []}
    found |= {int(t) for t in record.get("image_tags") or []}
    if labels is not None:
        found |= set(np.unique(labels.semantic).tolist()) - {IGNORE}
    return [classes[i]["name"] for i in sorted(found) if i < len(classes)]
