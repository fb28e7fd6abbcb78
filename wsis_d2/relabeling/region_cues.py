# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Tags to cue labels by a trained tag segmenter, whose distributions over classes are the cues.

Addition, not in the paper.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from wsis_d2.modeling.meta_arch.tag_segmenter import TagSegmenter
from wsis_d2.structures.annotation import (
    record_crops,
    stuff_crops,
    touched_boxes,
    whole_image_groups,
)
from wsis_d2.structures.labels import IGNORE
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.image_io import image_tensor, read_record
from wsis_d2.utils.progress import progress
from wsis_d2.weak_labels.appearance import check_weight, weigh_by_appearance
from wsis_d2.weak_labels.reliability import tag_reliability
from wsis_d2.weak_labels.workers import Labels

_MOST_RECORDS = 1000


class RegionCueLabeller:
    """Weak record to cue labels; the labelling function of the ``tags`` command.

    Args:
        segmenter: in evaluation mode.
        threshold: probability from which a pixel takes its most probable class, in (0, 1].
        image_format: channel order of the segmenter's input, "BGR" or "RGB".
        has_boxes: whether the dataset's boxes are complete.
        appearance_weight: power of what each class looks like in the image itself; see
            :func:`wsis_d2.weak_labels.appearance.weigh_by_appearance`; 0: off.
    """

    def __init__(
        self,
        segmenter: TagSegmenter,
        *,
        threshold: float = 0.5,
        image_format: str = "BGR",
        has_boxes: bool = True,
        appearance_weight: float = 0.0,
    ) -> None:
        if not 0 < threshold <= 1:
            raise InputError(f"CAM.THRESHOLD is {threshold}, expected above 0 and at most 1")
        check_weight(appearance_weight, "CAM.APPEARANCE_WEIGHT")
        self.segmenter = segmenter
        self.threshold = threshold
        self.image_format = image_format
        self.has_boxes = has_boxes
        self.appearance_weight = appearance_weight

    def distribution(self, record: Mapping) -> np.ndarray:
        """Return the distribution over the classes that annotation allows at each pixel.

        Returns:
            (C, H, W) float32; sums of 1 over C, or 0 where tags and boxes allow no class.
        """
        return self.distributions([record])[0]

    @torch.no_grad()
    def distributions(self, records: Sequence[Mapping]) -> list[np.ndarray]:
        """Return the distributions of records whose images the segmenter sees together."""
        images = [self._read(record) for record in records]
        cells = self.segmenter.probabilities([tensor for _, tensor in images])
        return [
            self._allowed(record, *image, own)
            for record, image, own in zip(records, images, cells, strict=True)
        ]

    def _allowed(
        self, record: Mapping, image: np.ndarray, tensor: torch.Tensor, cells: torch.Tensor
    ) -> np.ndarray:
        size = tuple(tensor.shape[-2:])
        found = _in_size(cells, size)
        sample = {"image": tensor, "has_boxes": self.has_boxes}
        sample["crops"], sample["crop_targets"] = [], []
        for x0, y0, x1, y1, tags in record_crops(record):
            target = torch.zeros(self.segmenter.num_classes)
            target[sorted(tags)] = 1.0
            sample["crops"].append((x0, y0, x1, y1))
            sample["crop_targets"].append(target)
        groups = whole_image_groups(record, self.segmenter.thing_ids)
        sample["boxes"] = [
            (box.corners, box.class_id, box.is_group) for box in (*touched_boxes(record), *groups)
        ]
        found = found * self.segmenter.annotation.possible(sample, size, found.device)
        found = (found / found.sum(0).clamp(min=1e-12)).cpu().numpy()
        return weigh_by_appearance(found, image, self.appearance_weight)

    def _read(self, record: Mapping) -> tuple[np.ndarray, torch.Tensor]:
        image = read_record(record, self.image_format)
        return image, image_tensor(image)

    @torch.no_grad()
    def reliability(self, records: Sequence[Mapping]) -> np.ndarray:
        """Return how reliable the segmenter's classes are by the tags, (C,) float64 in (0, 1].

        Windows with one index among equally many are taken to lie at the same place; what is no
        stuff has 1, its masks come from boxes. Of more than 1000 records, 1000 or fewer, evenly
        spread, are looked at. See :func:`wsis_d2.weak_labels.reliability.tag_reliability`.
        """
        shares, tagged, places = [], [], []
        chosen = records[:: -(-len(records) // _MOST_RECORDS) or 1]
        for record in progress(chosen, desc="reliability of tags"):
            crops = stuff_crops(record, self.segmenter.thing_ids)
            if not crops:
                continue
            try:
                image = self._read(record)[1]
            except InputError:  # named by the labelling of this image, which goes on without it
                continue
            # Large images are no better known: the segmenter saw them in its own size.
            shrink = min(1.0, self.segmenter.size / max(image.shape[-2:]))
            height, width = (max(1, round(side * shrink)) for side in image.shape[-2:])
            found = _in_size(self.segmenter.probabilities([image])[0], (height, width))
            for index, (*corners, tags) in enumerate(crops):
                x0, y0, x1, y1 = (max(0, round(corner * shrink)) for corner in corners)
                window = found[:, y0:y1, x0:x1]
                if not window.numel():
                    continue
                shares.append(window.mean((1, 2)).cpu().numpy())
                tagged.append([c in tags for c in range(self.segmenter.num_classes)])
                places.append((len(crops), index))
        if not shares:
            return np.ones(self.segmenter.num_classes)
        place_ids = np.unique(np.array(places), axis=0, return_inverse=True)[1].reshape(-1)
        result = tag_reliability(np.stack(shares), np.array(tagged), place_ids)
        result[self.segmenter.thing_ids] = 1.0
        return result

    def __call__(self, record: Mapping) -> Labels:
        """Return cue labels; there are no instances in them."""
        return self.batch([record])[0]

    def batch(self, records: Sequence[Mapping]) -> list[Labels]:
        """Return the cue labels of records whose images the segmenter sees together."""
        found = self.distributions(records)
        return [self._labels(*pair) for pair in zip(records, found, strict=True)]

    def _labels(self, record: Mapping, distribution: np.ndarray) -> Labels:
        size = distribution.shape[1:]
        cues = distribution.argmax(0).astype(np.uint8)
        cues[distribution.max(0) < self.threshold] = IGNORE
        cues[np.isin(cues, self.segmenter.thing_ids)] = IGNORE
        things = set(self.segmenter.thing_ids)
        tagged = set().union(*(crop[4] for crop in record_crops(record))) - things
        counters = {
            "pixels": cues.size,
            "cue_pixels": int(np.count_nonzero(cues != IGNORE)),
            "tagged_classes": len(tagged),
            "classes_without_cue": len(tagged - set(np.unique(cues).tolist())),
        }
        return Labels(cues, np.full(size, -1, np.int32), [], counters)


def _in_size(cells: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return the segmenter's distribution in a size, (C, *size), whatever annotation says."""
    return F.interpolate(cells[None], size=size, mode="bilinear", align_corners=False)[0]
