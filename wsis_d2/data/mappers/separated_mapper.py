# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Detectron2's mapper, with the unknown pixels of each object, for a separated twin.

Addition, not in the paper.
"""

import copy

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks

from wsis_d2.utils.image_io import image_tensor, read_label_png, read_record


class SeparatedMapper(DatasetMapper):
    """Adds ``gt_ignore`` to the instances, which :class:`IgnoringMaskHead` leaves out of its loss.

    Boxes stay the annotated ones, also under random crops, where Detectron2's mapper takes those of
    the masks; and objects without a mask pixel stay, with a mask that is all unknown. Arguments are
    those of :class:`DatasetMapper`; masks are bit masks.
    """

    def __call__(self, dataset_dict: dict) -> dict:
        """Return the sample of a record, its photograph read as everywhere in this project."""
        sample = copy.deepcopy(dataset_dict)
        path, semantic = sample.pop("sem_seg_file_name", None), None
        if path is not None:
            semantic = read_label_png(path)
        augmented = T.AugInput(read_record(sample, self.image_format), sem_seg=semantic)
        transforms = self.augmentations(augmented)
        sample["image"] = image_tensor(augmented.image)
        if semantic is not None:
            sample["sem_seg"] = torch.as_tensor(augmented.sem_seg.astype("long"))
        if self.is_train:
            self._transform_annotations(sample, transforms, augmented.image.shape[:2])
        else:
            sample.pop("annotations", None)
        return sample

    def _transform_annotations(
        self, dataset_dict: dict, transforms: T.TransformList, image_shape: tuple[int, int]
    ) -> None:
        size = dataset_dict["height"], dataset_dict["width"]
        annotations, masks, ignored = [], [], []
        for annotation in dataset_dict.pop("annotations"):
            if annotation.get("iscrowd", 0):
                continue
            masks.append(_moved(annotation.pop("segmentation", None), size, transforms))
            ignored.append(_moved(annotation.pop("ignore_segmentation", None), size, transforms))
            annotations.append(
                utils.transform_instance_annotations(annotation, transforms, image_shape)
            )
        instances = utils.annotations_to_instances(annotations, image_shape)
        if self.use_instance_mask:
            instances.gt_masks = _bit_masks(masks, image_shape)
            instances.gt_ignore = _bit_masks(ignored, image_shape)
        dataset_dict["instances"] = utils.filter_empty_instances(instances, by_mask=False)


def _moved(rle: dict | None, size: tuple[int, int], transforms: T.TransformList) -> np.ndarray:
    """Return a mask, (H, W) uint8, as it is after the transforms; None is empty."""
    mask = np.zeros(size, np.uint8) if rle is None else mask_util.decode(rle)
    return transforms.apply_segmentation(mask)


def _bit_masks(masks: list[np.ndarray], image_shape: tuple[int, int]) -> BitMasks:
    if not masks:
        return BitMasks(torch.zeros((0, *image_shape), dtype=torch.bool))
    return BitMasks(torch.from_numpy(np.stack(masks)).bool())
