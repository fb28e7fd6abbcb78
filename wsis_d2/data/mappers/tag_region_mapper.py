# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Samples of the tag segmenter: a whole image, what its windows hold, where its boxes are.

Addition, not in the paper.
"""

from collections.abc import Mapping

from detectron2.data import transforms as T

from wsis_d2.data.mappers.build import DATASET_MAPPER_REGISTRY
from wsis_d2.data.mappers.regions import annotation_regions
from wsis_d2.data.mappers.tag_mapper import TagMapper, crop_windows, image_tags, things_of
from wsis_d2.utils.image_io import image_tensor, read_record


@DATASET_MAPPER_REGISTRY.register()
class TagRegionMapper(TagMapper):
    """Make a tag segmenter's sample from a weak record; masks are never read.

    A training sample is the augmented image with ``crops``, a list of ``(x0, y0, x1, y1)`` with
    exclusive ends (the whole image where the record has no crop tags), ``crop_targets`` (crops,
    classes) as :class:`TagMapper`'s, ``boxes``, a list of ``(corners, class, is a group)``, and
    ``has_boxes``, whether the dataset's boxes are complete. A test sample is :class:`TagMapper`'s.
    """

    def __call__(self, record: Mapping) -> dict:
        """Return the sample of one record."""
        if not self.is_train:
            return super().__call__(record)
        image = read_record(record, self.image_format)
        whole = (0, 0, record["width"], record["height"])
        windows = crop_windows(record) or [(whole, image_tags(record))]
        augmented = T.AugInput(image)
        transforms = self.augmentations(augmented)
        return {
            **{k: record[k] for k in ("file_name", "image_id", "height", "width") if k in record},
            "image": image_tensor(augmented.image),
            **annotation_regions(
                record,
                [(window, self.target(record, window, tags)) for window, tags in windows],
                transforms,
                *things_of(record),
            ),
        }
