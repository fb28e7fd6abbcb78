# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Own data: register boxes and tags, truth where there is some, labels where they are made."""

import logging
import os
from collections.abc import Sequence
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from wsis_d2.data.datasets.own.full_images import mark_full
from wsis_d2.data.datasets.own.truth import add_truth
from wsis_d2.data.datasets.own.weak import read_weak_file
from wsis_d2.structures.annotation import SUPERVISIONS
from wsis_d2.structures.classes import (
    ClassTable,
    in_order,
    match_classes,
    parse_categories,
    record_in_classes,
)
from wsis_d2.utils.errors import InputError, check_choice
from wsis_d2.utils.json_io import read_json
from wsis_d2.weak_labels.store import LabelStore

logger = logging.getLogger(__name__)

# What register_own_datasets has registered: name -> keyword arguments.
_registered: dict[str, dict] = {}


def register_weak_panoptic(
    name: str,
    json: str | os.PathLike,
    images: str | os.PathLike,
    labels: str | os.PathLike | None = None,
    panoptic_json: str | os.PathLike | None = None,
    panoptic_dir: str | os.PathLike | None = None,
    supervision: str = "weak",
    *,
    full_images: str | float | None = None,
    outside_boxes: str | int = "ignore",
    apr_thresholds: str = "0.1:0.9:0.1",
    classes: ClassTable | list[dict] | None = None,
    prepare_command: str | None = None,
) -> None:
    """Register an own-data set; its classes are read now, its records when they are asked for.

    Every file of the set meets these classes by name when it is read
    (:func:`wsis_d2.structures.classes.match_classes`): its own annotation and its truth.

    Args:
        name: the dataset's name; supervision is a property of the name.
        json: the own-data file (:mod:`wsis_d2.data.datasets.own.weak`).
        images: the folder its ``file_name`` entries are relative to.
        labels: the label store of a weak set (``tools/make_weak_labels.py --output``).
        panoptic_json, panoptic_dir: truth in COCO panoptic format. For a weak set it serves
            evaluation alone and never enters a record; a full set trains from it.
        supervision: "weak"; "full": every image has panoptic truth; "mixed": an image entry's
            ``"supervision": "full"`` tells which images train from truth, all others are weak.
        full_images: of a mixed set, more images that train from truth: a text file with one
            ``file_name`` a line, or a share of the images, 0 to 1 (a smaller share's images are
            among a larger one's).
        outside_boxes: what pixels outside all boxes are in the labels made from boxes: "ignore",
            or a background class, by its name or contiguous id.
        apr_thresholds: overlap thresholds of AP^r, ``first:last:step``.
        classes: the classes, or a list of categories, where they are known, so that files need
            not be there yet; None reads them from ``json``.
        prepare_command: what makes the files; told when one is missing.

    Raises:
        InputError: a file is missing or unusable, or arguments contradict each other.
    """
    if classes is None:
        content = read_json(json)
        categories = content.get("categories") if isinstance(content, dict) else None
        classes = parse_categories(categories, os.fspath(json))
    elif isinstance(classes, list):
        classes = parse_categories(classes, f'dataset "{name}"')
    check_choice(f'dataset "{name}": supervision', supervision, SUPERVISIONS)
    if supervision != "weak" and not (panoptic_json and panoptic_dir):
        raise InputError(
            f'dataset "{name}": supervision "{supervision}" trains from truth; give panoptic_json '
            "and panoptic_dir (COCO panoptic format)"
        )
    if (panoptic_json is None) != (panoptic_dir is None):
        raise InputError(f'dataset "{name}": give both panoptic_json and panoptic_dir, or none')
    if supervision == "full" and labels is not None:
        raise InputError(
            f'dataset "{name}": a full set trains from truth, so labels={labels} has no use; '
            "remove it, or use supervision weak or mixed"
        )
    if full_images is not None and supervision != "mixed":
        raise InputError(
            f'dataset "{name}": full_images is for mixed sets, but supervision is "{supervision}"'
        )
    outside_boxes = _outside_class(name, outside_boxes, classes)
    if name in DatasetCatalog.list():
        raise InputError(f'dataset "{name}" is registered already; choose another name')
    json, images, labels, panoptic_json, panoptic_dir = (
        None if p is None else os.fspath(p)
        for p in (json, images, labels, panoptic_json, panoptic_dir)
    )

    def load() -> list[dict]:
        for path in (json, images) + ((panoptic_json,) if supervision != "weak" else ()):
            if not os.path.exists(path):
                hint = f"; make it with: {prepare_command}" if prepare_command else ""
                raise InputError(f'dataset "{name}": {path} is not there{hint}')
        known = dataset_classes(name)
        file = read_weak_file(json, images, supervision=supervision)
        records, places = file.records, match_classes(known, file.classes)
        if not in_order(places):
            records = [record_in_classes(record, places) for record in records]
        if full_images is not None:
            records = mark_full(records, full_images, images, f'dataset "{name}"')
        if supervision != "weak":
            records = add_truth(records, panoptic_json, panoptic_dir, known)
        return records

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        **classes.metadata(),
        evaluator_type="wsis_panoptic",
        supervision=supervision,
        json_file=json,
        image_root=images,
        label_store=labels,
        panoptic_json=panoptic_json,
        panoptic_root=panoptic_dir,
        apr_thresholds=apr_thresholds,
        outside_boxes=outside_boxes,
        classes_by_name=True,
    )


def _outside_class(name: str, outside_boxes: str | int, classes: ClassTable) -> str | int:
    """Return "ignore", or the contiguous id of the stuff class that lies outside all boxes."""
    stuff = {own: k for k, own in enumerate(classes.names) if not classes.isthing[k]}
    if outside_boxes == "ignore":
        return outside_boxes
    if isinstance(outside_boxes, str) and outside_boxes in stuff:
        return stuff[outside_boxes]
    if type(outside_boxes) is int and outside_boxes in stuff.values():
        return outside_boxes
    raise InputError(
        f'dataset "{name}": outside_boxes is {outside_boxes!r}; expected "ignore" or a stuff '
        f"class: {', '.join(f'{own} ({k})' for own, k in stuff.items()) or 'there is none'}"
    )


def dataset_classes(name: str) -> ClassTable | None:
    """Return the classes of a registered dataset, None where its metadata has none."""
    return ClassTable.of_metadata(MetadataCatalog.get(name), f"dataset {name}")


def registered_classes(name: str) -> ClassTable | None:
    """As :func:`dataset_classes`, as they were before any :func:`share_classes`."""
    return MetadataCatalog.get(name).get("registered_classes") or dataset_classes(name)


def share_classes(name: str, classes: ClassTable) -> None:
    """Have a dataset speak of its classes in another list's order, for a run that joins both.

    Its records, truth, label store and ``outside_boxes`` follow, as they meet its metadata by name.

    Raises:
        InputError: the lists differ in a name or an ``isthing``, or the dataset's records were
            made by other code, which has its own order.
    """
    metadata = MetadataCatalog.get(name)
    places = match_classes(classes, dataset_classes(name))
    if in_order(places):
        return
    if not metadata.get("classes_by_name"):
        raise InputError(
            f"dataset {name}: lists its classes in another order than {classes.source} "
            f"({classes.id_text()}); register it in that order, or with register_weak_panoptic, "
            "which maps them"
        )
    outside = metadata.get("outside_boxes", "ignore")
    changed = {**classes.metadata(), "registered_classes": registered_classes(name)}
    changed["outside_boxes"] = outside if outside == "ignore" else places[outside]
    logger.info("dataset %s: its classes are taken in the order of %s", name, classes.source)
    for key, value in changed.items():
        metadata.__dict__.pop(key, None)  # Detectron2 refuses to change a value that is there
        setattr(metadata, key, value)


def register_own_datasets(cfg: Any) -> None:
    """Register ``cfg.DATASETS.OWN`` and apply ``cfg.DATASETS.LABEL_STORES``; safe to repeat.

    ``OWN`` is a list of :func:`register_weak_panoptic`'s keyword arguments; ``LABEL_STORES`` a
    list of [dataset name, store folder].

    Raises:
        InputError: an entry of the wrong shape, an unknown dataset, a name that is taken.
    """
    register_own(cfg.DATASETS.OWN, cfg.DATASETS.LABEL_STORES)


def register_own(own: Sequence[dict], label_stores: Sequence[Sequence[str]] = ()) -> None:
    """As :func:`register_own_datasets`, of plain lists."""
    allowed = ("name", "json", "images", "labels", "panoptic_json", "panoptic_dir", "supervision",
               "full_images", "outside_boxes", "apr_thresholds")  # fmt: skip
    for position, entry in enumerate(own):
        where = f"DATASETS.OWN[{position}]"
        if not isinstance(entry, dict):
            raise InputError(f"{where}: is {entry!r:.80}; expected keywords {', '.join(allowed)}")
        entry = {key: value for key, value in entry.items() if value is not None}
        unknown = [key for key in entry if key not in allowed]
        missing = [key for key in ("name", "json", "images") if not entry.get(key)]
        if unknown or missing:
            what = f"unknown keyword {unknown[0]}" if unknown else f"{missing[0]} is missing"
            raise InputError(f"{where}: {what}; expected {', '.join(allowed)}")
        for key, value in entry.items():
            number = key in ("full_images", "outside_boxes") and isinstance(value, int | float)
            if not number and not isinstance(value, str | os.PathLike):
                raise InputError(f"{where}: {key} is {value!r:.80}; expected a text")
        name = entry["name"]
        if _registered.get(name) == entry and name in DatasetCatalog.list():
            continue
        if name in _registered:
            logger.warning('%s: dataset "%s" is registered anew with other arguments', where, name)
            unregister(name)
        try:
            register_weak_panoptic(**entry)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        _registered[name] = entry
    for position, pair in enumerate(label_stores):
        where = f"DATASETS.LABEL_STORES[{position}]"
        texts = isinstance(pair, list | tuple) and all(isinstance(part, str) for part in pair)
        if not texts or len(pair) != 2:
            raise InputError(f"{where}: is {pair!r:.80}; expected [dataset name, store folder]")
        name, store = pair
        set_label_store(name, store, where=where)


def set_label_store(name: str, store: str | os.PathLike, where: str = "label store") -> None:
    """Tell a weak or mixed dataset where its pseudo ground truth lies."""
    if name not in DatasetCatalog.list():
        raise InputError(
            f'{where}: no dataset "{name}"; expected a registered name, built in or of DATASETS.OWN'
        )
    metadata = MetadataCatalog.get(name)
    if metadata.get("supervision") == "full":
        raise InputError(
            f'{where}: dataset "{name}" is fully supervised and takes no label store; '
            "name its weak twin"
        )
    if "label_store" in metadata.__dict__:
        del metadata.label_store
    metadata.label_store = os.fspath(store)


def open_labels(name: str, records: Sequence[dict]) -> LabelStore | None:
    """Open the label store of a dataset, in its classes; None where no record is weak.

    Raises:
        InputError: weak records without a label store, with the command that makes one.
    """
    if all(record["supervision"] != "weak" for record in records):
        return None
    path = MetadataCatalog.get(name).label_store
    if not path:
        raise InputError(
            f'dataset "{name}" has no label store; make one with: python '
            f"tools/make_weak_labels.py all --dataset {name} --output STORE, and name it in "
            "DATASETS.LABEL_STORES or labels="
        )
    return LabelStore.open(path).in_classes(dataset_classes(name))


def unregister(name: str) -> None:
    """Forget a dataset and its metadata."""
    _registered.pop(name, None)
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
    if name in MetadataCatalog.list():
        MetadataCatalog.remove(name)
