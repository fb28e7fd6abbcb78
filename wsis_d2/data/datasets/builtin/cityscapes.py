# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Cityscapes: official layout to boxes, image and crop tags, and COCO panoptic truth.

Read here without Detectron2's own Cityscapes loaders, which some of its versions cannot import.
Rules, beside the release's own:

* Category ids of the files are Cityscapes' label ids (7 road ... 33 bicycle); sorted, they are the
  train ids 0..18, the unified ids. Labels with train id 255 are void, caravan and trailer too.
* Segment ids are those of ``instanceIds``: the label id (stuff, groups) or label id * 1000 + k.
* A bare label id of a thing is a group: one box around its pixels, ``iscrowd``.
* Boxes follow ascending instance id, so groups come before objects.
* Tags: classes of the image, and of 15 crops of 400 x 500 (height x width; general rule in
  :func:`wsis_d2.data.datasets.builtin.segments.crop_starts`).
* ``train_extra`` (coarse polygons): boxes and tags as of the fine images, as the authors release
  them. Coarse annotation misses objects, so these boxes make masks and labels, and nothing is
  concluded from their absence (``has_boxes`` of the registered sets). The full twin keeps things
  as groups: a class for each pixel, no objects.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from wsis_d2.data.datasets.builtin.metadata import CITYSCAPES_CATEGORIES
from wsis_d2.data.datasets.builtin.preparation import Converted, ImageJob
from wsis_d2.data.datasets.builtin.segments import (
    crop_starts,
    image_size,
    read_labels,
)
from wsis_d2.structures.segments import segment_sizes
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.files import list_files

FOLDER = "wsis_cityscapes"
PREPARE_COMMAND = "python datasets/prepare_cityscapes.py"
URL = "https://www.cityscapes-dataset.com"
# split of ours: folder of the images, kind of annotation, images of the official release
SPLITS = {
    "train": ("train", "gtFine", 2975),
    "val": ("val", "gtFine", 500),
    "extra": ("train_extra", "gtCoarse", 19998),
    "test": ("test", None, 1525),
}
ARCHIVES = {
    "train": "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip",
    "val": "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip",
    "extra": "leftImg8bit_trainextra.zip and gtCoarse.zip",
    "test": "leftImg8bit_trainvaltest.zip",
}
CROP_HEIGHT, CROP_WIDTH = 400, 500
_IMAGE_SUFFIX = "_leftImg8bit.png"
_THINGS = {c["id"] for c in CITYSCAPES_CATEGORIES if c["isthing"]}
_KNOWN = {c["id"] for c in CITYSCAPES_CATEGORIES}
# Label ids with objects; caravan (29) and trailer (30) are evaluated nowhere.
_WITH_OBJECTS = _THINGS | {29, 30}
_MAX_LABEL_ID = 33
_IS_KNOWN = np.isin(np.arange(_MAX_LABEL_ID + 1), list(_KNOWN))


def list_images(cityscapes: Path, split: str) -> list[Path]:
    """Return the images of a split of ours (``SPLITS``), sorted by name.

    Raises:
        InputError: the folder is missing or has no image.
    """
    folder = cityscapes / "leftImg8bit" / SPLITS[split][0]
    images = list_files(folder, f"*/*{_IMAGE_SUFFIX}")
    if not images:
        raise InputError(
            f"{folder}: no images (*/*{_IMAGE_SUFFIX}); unpack {ARCHIVES[split]} ({URL}) in "
            f"{cityscapes}{other_place(cityscapes)}"
        )
    return images


def other_place(cityscapes: Path) -> str:
    """What to do where the official tools' variable names another folder, else nothing."""
    named = os.environ.get("CITYSCAPES_DATASET")
    if not named or os.path.realpath(named) == os.path.realpath(cityscapes):
        return ""
    return (
        f"; CITYSCAPES_DATASET={named} is not read here: ln -s {named} {cityscapes}, or set "
        "DETECTRON2_DATASETS to the folder that holds cityscapes/"
    )


def make_jobs(cityscapes: Path, split: str) -> list[ImageJob]:
    """Return one job for each image of a split."""
    folder, kind, _ = SPLITS[split]
    jobs = []
    for image in list_images(cityscapes, split):
        stem = image.name.removesuffix(_IMAGE_SUFFIX)
        sources: tuple[str, ...] = (str(image),)
        if kind:
            truth = cityscapes / kind / folder / image.parent.name
            sources += (str(truth / f"{stem}_{kind}_instanceIds.png"),)
        jobs.append(ImageJob(stem, sources, f"{image.parent.name}/{image.name}"))
    return jobs


def converter(
    split: str, *, tags: str = "stuff", crop: tuple[int, int] = (CROP_HEIGHT, CROP_WIDTH)
) -> Callable[[ImageJob], Converted]:
    """Return the picklable conversion of one image.

    Args:
        split: name in ``SPLITS``.
        tags: "stuff" (paper 1: things have boxes) or "all" classes.
        crop: (height, width) of the crops that tags are given for.
    """
    kind = SPLITS[split][1]
    return partial(_convert, coarse=kind == "gtCoarse", tags=tags, crop=crop)


def _convert(job: ImageJob, *, coarse: bool, tags: str, crop: tuple[int, int]) -> Converted:
    height, width = image_size(job.sources[0])
    image = {"id": job.image_id, "file_name": job.data, "height": height, "width": width}
    if len(job.sources) == 1:
        return Converted(image=image, tags=[], annotations=[])
    path = job.sources[1]
    instance_ids = read_labels(path, "Cityscapes instance ids")
    if instance_ids.shape != (height, width):
        raise InputError(
            f"{path}: {instance_ids.shape[1]}x{instance_ids.shape[0]} pixels, but "
            f"{job.sources[0]} has {width}x{height}; take both from the official archives"
        )
    _check_values(instance_ids, path)
    labels = np.where(instance_ids < 1000, instance_ids, instance_ids // 1000)
    known = np.where(_IS_KNOWN[labels], instance_ids, 0)
    segments, annotations = [], []
    for value, (_, box) in segment_sizes(known).items():
        label = value if value < 1000 else value // 1000
        group = int(value < 1000 and label in _THINGS)
        segments.append({"id": value, "category_id": label, "iscrowd": group})
        if label in _THINGS:
            annotations.append({"bbox": box, "category_id": label, "iscrowd": group})
    segment_ids = known
    if coarse:
        segment_ids = np.where(_IS_KNOWN[labels], labels, 0)
        segments = [
            {"id": label, "category_id": label, "iscrowd": int(label in _THINGS)}
            for label in segment_sizes(segment_ids)
        ]
    named = _KNOWN if tags == "all" else _KNOWN - _THINGS
    crop_tags = []
    for x in crop_starts(width, crop[1]):
        for y in crop_starts(height, crop[0]):
            window = labels[y : y + crop[0], x : x + crop[1]]
            crop_tags.append(
                {
                    "box": [x, y, window.shape[1], window.shape[0]],
                    "tags": _present(window, named),
                }
            )
    return Converted(
        image=image,
        tags=_present(labels, named),
        annotations=annotations,
        crop_tags=crop_tags,
        segment_ids=segment_ids.astype(np.int32),
        segments=segments,
    )


def _check_values(instance_ids: np.ndarray, path: str) -> None:
    low, high = int(instance_ids.min()), int(instance_ids.max())
    wrong = [value for value in (low, high) if not 0 <= value < 1000 * (_MAX_LABEL_ID + 1)]
    if not wrong:
        for value in np.flatnonzero(np.bincount(instance_ids.reshape(-1))).tolist():
            label = value // 1000 if value >= 1000 else value
            if label > _MAX_LABEL_ID or (value >= 1000 and label not in _WITH_OBJECTS):
                wrong.append(value)
    if wrong:
        raise InputError(
            f"{path}: value {wrong[0]} is no instance id of Cityscapes (label id, or label id * "
            "1000 + number of an object); take the *_instanceIds.png as it was released"
        )


def _present(labels: np.ndarray, named: set[int]) -> list[int]:
    found = np.flatnonzero(np.bincount(labels.reshape(-1), minlength=1))
    return sorted(set(found.tolist()) & named)
