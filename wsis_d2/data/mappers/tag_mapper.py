# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Samples of the tag classifier: an image or one of its crops, and the classes in it."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

from wsis_d2.data.augmentations import RandomScale
from wsis_d2.data.augmentations import color_jitter as jitter_augmentations
from wsis_d2.data.mappers.build import DATASET_MAPPER_REGISTRY
from wsis_d2.data.mappers.regions import UNKNOWN
from wsis_d2.structures.annotation import record_crops, whole_image_groups
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.image_io import image_tensor, read_record


@DATASET_MAPPER_REGISTRY.register()
class TagMapper:
    """Make a classifier's sample from a weak record; masks are never read.

    A training sample is one crop of the record's ``crop_tags``, drawn at random, or the whole
    image where it has none: ``image`` (3, H, W) uint8 and ``tags`` (classes,) float32, 1 present,
    0 absent, -1 unknown. A test sample is the whole image with ``crops``, all crops of the record,
    and ``tags`` and ``crop_targets`` as truth.
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        num_classes: int,
        image_format: str = "BGR",
        scale_range: Sequence[float] = (1.0, 1.0),
        flip: bool = True,
        color_jitter: float = 0.0,
        box_share: float = 0.5,
    ) -> None:
        """
        Args:
            is_train: draw crops and augment.
            num_classes: number of classes, stuff and things.
            image_format: channel order, "BGR" or "RGB".
            scale_range: range of the random scale.
            flip: mirror half of the samples.
            color_jitter: strength of random brightness, contrast and saturation.
            box_share: share of a box inside the crop from which its class counts as a tag; a box
                that meets the crop with less makes the class unknown. Above 1, boxes are not used.
        """
        self.is_train = is_train
        self.num_classes = num_classes
        self.image_format = image_format
        self.box_share = box_share
        augmentations: list[T.Augmentation] = []
        if is_train:
            if tuple(scale_range) != (1.0, 1.0):
                augmentations.append(RandomScale(*scale_range))
            if flip:
                augmentations.append(T.RandomFlip())
            augmentations += jitter_augmentations(color_jitter)
        self.augmentations = T.AugmentationList(augmentations)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        names = cfg.DATASETS.TRAIN if is_train else cfg.DATASETS.TEST
        if names and "stuff_classes" in MetadataCatalog.get(names[0]).as_dict():
            num_classes = len(MetadataCatalog.get(names[0]).stuff_classes)
        return {
            "is_train": is_train,
            "num_classes": num_classes,
            "image_format": cfg.INPUT.FORMAT,
            "scale_range": tuple(cfg.INPUT.SCALE_RANGE),
            "flip": cfg.INPUT.RANDOM_FLIP != "none",
            "color_jitter": cfg.INPUT.COLOR_JITTER,
        }

    def __call__(self, record: Mapping) -> dict:
        """Return the sample of one record."""
        image = read_record(record, self.image_format)
        crops = crop_windows(record)
        sample = {
            key: record[key]
            for key in ("file_name", "image_id", "height", "width")
            if key in record
        }
        whole = (0, 0, record["width"], record["height"])
        if not self.is_train:
            sample["image"] = image_tensor(image)
            sample["tags"] = self.target(record, whole, image_tags(record))
            if crops:
                sample["crops"] = [window for window, _ in crops]
                sample["crop_targets"] = torch.stack(
                    [self.target(record, window, tags) for window, tags in crops]
                )
            return sample
        window, tags = whole, image_tags(record)
        if crops:
            # Detectron2's loader seeds NumPy's global generator in each worker.
            window, tags = crops[int(np.random.randint(len(crops)))]  # noqa: NPY002
        x0, y0, x1, y1 = window
        augmented = T.AugInput(np.ascontiguousarray(image[y0:y1, x0:x1]))
        self.augmentations(augmented)
        sample["image"] = image_tensor(augmented.image)
        sample["tags"] = self.target(record, window, tags)
        return sample

    def target(
        self, record: Mapping, window: Sequence[int], tags: Sequence[int] | None
    ) -> torch.Tensor:
        """Return the (classes,) float32 target of one window of a record.

        Where a dataset's boxes are not complete, a thing without a box or a tag is unknown; so is
        all stuff of an image that has no tag of any.

        Args:
            record: boxes are taken from its annotations.
            window: ``(x0, y0, x1, y1)``, ends exclusive.
            tags: the classes known to be there.
        """
        target = torch.zeros(self.num_classes)
        things, complete = things_of(record)
        if not complete:
            target[things] = UNKNOWN
        target[_untagged_stuff(record)] = UNKNOWN
        if self.box_share <= 1:
            for annotation in record.get("annotations", ()):
                share = _share_inside(annotation, window)
                class_id = int(annotation["category_id"])
                if share >= self.box_share:
                    target[class_id] = 1.0
                elif share > 0 and target[class_id] == 0:
                    target[class_id] = UNKNOWN
        for group in whole_image_groups(record, things):  # of which window is not told
            if target[group.class_id] == 0:
                target[group.class_id] = UNKNOWN
        target[list(tags or ())] = 1.0
        return target


def things_of(record: Mapping) -> tuple[list[int], bool]:
    """Return the things of a record's dataset, and whether its boxes are complete."""
    if "dataset_name" not in record:
        return [], True
    metadata = MetadataCatalog.get(record["dataset_name"])
    return list(metadata.thing_ids), metadata.get("has_boxes", True)


def _untagged_stuff(record: Mapping) -> list[int]:
    """Return the stuff of a record's dataset if the image has no tag of any, else nothing."""
    if "dataset_name" not in record:
        return []
    metadata = MetadataCatalog.get(record["dataset_name"])
    tagged = set(image_tags(record)) - set(metadata.thing_ids)
    return [] if tagged else list(metadata.stuff_ids)


def image_tags(record: Mapping) -> list[int]:
    """Return the classes of an image: its tags, or those of a full record's segments.

    Raises:
        InputError: the record tells neither.
    """
    tags = record.get("image_tags")
    if not tags and record.get("supervision") == "full" and "segments_info" in record:
        return sorted({int(segment["category_id"]) for segment in record["segments_info"]})
    if tags is not None:
        return list(tags)
    raise InputError(
        f"{record['file_name']}: no image_tags, which the tag classifier learns from; add them to "
        "the annotation file"
    )


def crop_windows(record: Mapping) -> list[tuple[tuple[int, int, int, int], list[int]]]:
    """Return the window ``(x0, y0, x1, y1)``, ends exclusive, and the tags of each crop."""
    if not record.get("crop_tags"):
        return []
    return [(crop[:4], sorted(crop.tags)) for crop in record_crops(record)]


def _share_inside(annotation: Mapping, window: Sequence[int]) -> float:
    """Return the share of the annotation's box that lies inside the window."""
    x0, y0, x1, y1 = BoxMode.convert(
        annotation["bbox"], BoxMode(annotation["bbox_mode"]), BoxMode.XYXY_ABS
    )
    width = min(x1, window[2]) - max(x0, window[0])
    height = min(y1, window[3]) - max(y0, window[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / ((x1 - x0) * (y1 - y0))
