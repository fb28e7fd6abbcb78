# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The label files that the paper's authors released for Cityscapes, into a label store.

They are palette PNGs of train ids, one an image, 255 = ignore, named as the photographs:
class activation maps ("cam"), GrabCut and MCG masks ("mandg", where 0 means "no box here") and
both merged ("merged"). A store made from them stands where one of our own would: "cam" for the
``tags`` part of a merge, "mandg" for the ``boxes`` part, "merged" to train from.
"""

import dataclasses
import functools
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from wsis_d2.structures.annotation import AnnotatedClasses, touched_boxes
from wsis_d2.structures.labels import IGNORE, INSTANCE_IGNORE
from wsis_d2.utils.errors import InputError, check_choice
from wsis_d2.utils.files import list_files
from wsis_d2.utils.image_io import read_label_png
from wsis_d2.weak_labels import driver
from wsis_d2.weak_labels.driver import LabelRun
from wsis_d2.weak_labels.instance_labels import instance_labels
from wsis_d2.weak_labels.store import LabelStore
from wsis_d2.weak_labels.store_status import files_digest
from wsis_d2.weak_labels.workers import Labels

logger = logging.getLogger(__name__)

KINDS = {"cam": "tags", "mandg": "boxes", "merged": "merge"}
"""What a released folder may hold, and the kind of store it becomes."""


@dataclasses.dataclass
class ReleasedLabels:
    """Weak record to the labels that the authors released for it; checks every file.

    Attributes:
        kind: a key of :data:`KINDS`.
        files: name of a photograph without suffix to its label file.
        annotation: the dataset's classes.
        num_classes: number of classes.
    """

    kind: str
    files: dict[str, str]
    annotation: AnnotatedClasses
    num_classes: int

    def __call__(self, record: Mapping) -> Labels:
        """Return the labels of one image.

        Raises:
            InputError: the file is missing, of another size, or holds what it cannot.
        """
        stem = Path(record["file_name"]).stem
        if stem not in self.files:
            raise InputError(f"{record['file_name']}: no label file {stem}.png in the folder given")
        path = self.files[stem]
        labels = read_label_png(path)
        size = (int(record["height"]), int(record["width"]))
        if labels.shape != size:
            raise InputError(
                f"{path}: is {labels.shape[1]} x {labels.shape[0]}, the image is "
                f"{size[1]} x {size[0]}"
            )
        present = set(np.unique(labels).tolist()) - {IGNORE}
        if max(present, default=0) >= self.num_classes:
            raise InputError(
                f"{path}: holds class {max(present)}, expected 0 to {self.num_classes - 1} or 255"
            )
        boxes = touched_boxes(record)
        things = self.annotation.thing_ids
        if self.kind == "mandg":
            wrong = present - things - {0}
            if wrong:
                raise InputError(
                    f"{path}: holds stuff class {min(wrong)}; box masks hold things, 0 and 255: "
                    "this folder may hold activation maps or merged labels"
                )
            labels = np.where(np.isin(labels, list(things)), labels, IGNORE).astype(np.uint8)
        if self.kind != "cam" and self.annotation.has_boxes:
            unboxed = (present & things) - {box.class_id for box in boxes}
            if unboxed:
                raise InputError(
                    f"{path}: holds thing class {min(unboxed)}, and the record has no box of it; "
                    "these labels belong to another image or another annotation"
                )
        instance = np.full(size, INSTANCE_IGNORE, np.int32)
        segments: list[dict] = []
        if self.kind != "cam" and self.annotation.has_boxes:
            stuff = sorted(present - things) if self.kind == "merged" else []
            instance, segments = instance_labels(
                labels, [box.clipped(*size) for box in boxes], stuff
            )
        counters = {
            "pixels": int(labels.size),
            "ignored_pixels": int(np.count_nonzero(labels == IGNORE)),
            "instances": len(segments),
        }
        return Labels(labels, instance, segments, counters)


def find_label_files(folder: str | os.PathLike) -> dict[str, str]:
    """Return every PNG below a folder by its name without suffix.

    Raises:
        InputError: there are none, or two of one name.
    """
    found: dict[str, str] = {}
    for path in list_files(folder, "**/*.png"):
        if path.stem in found:
            raise InputError(
                f"{folder}: two files {path.name}: {found[path.stem]} and {path}; name the folder "
                "that holds one kind of labels"
            )
        found[path.stem] = str(path)
    if not found:
        raise InputError(f"{folder}: no PNG files in it; unpack the released archive there")
    return found


def import_released(
    kind: str,
    folder: str | os.PathLike,
    records: Sequence[Mapping],
    categories: list[dict],
    output: str | os.PathLike,
    *,
    has_boxes: bool = True,
    run: LabelRun = LabelRun(),
) -> int:
    """Import released labels into a store.

    Args:
        kind: "cam", "mandg" or "merged".
        folder: with the PNGs, in any sub-folders.
        records: weak records of the dataset.
        categories: its categories; contiguous ids are Cityscapes' train ids.
        output: the store.
        has_boxes: see :class:`wsis_d2.structures.annotation.AnnotatedClasses`.
        run: how to run.

    Returns:
        The exit status: 0, or 1 if an image has no usable file; those are named.
    """
    check_choice("kind", kind, KINDS)
    annotation = AnnotatedClasses.of(categories, has_boxes=has_boxes)
    files = find_label_files(folder)
    records = [
        {**record, "made_of": files_digest([files.get(Path(record["file_name"]).stem, "")])}
        for record in records
    ]
    recipe = {"kind": KINDS[kind], "released": kind, "folder": Path(folder).name}
    if run.dry_run:
        driver.report_plan(records, categories, recipe, output, run)
        return 0
    store = LabelStore.create(output, recipe, categories, run.force)
    make = functools.partial(ReleasedLabels, kind, files, annotation, len(categories))
    result = driver.run(
        make, records, store, workers=run.workers, limit=run.limit, desc=f"released {kind}",
        ray_address=run.ray_address, image_seconds=run.image_seconds,
    )  # fmt: skip
    return result.exit_status
