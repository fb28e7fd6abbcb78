# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Relabelling with what the annotation rules out, before and after the CRF."""

import numpy as np
import pytest
import torch
from PIL import Image

from wsis_d2.engine.relabel import Relabeller
from wsis_d2.weak_labels.clean import IGNORE, CleanOptions
from wsis_d2.weak_labels.merge import Annotation
from wsis_d2.weak_labels.refine import RefineOptions


class Fixed(torch.nn.Module):
    """Sure of class 0, then of class 1, everywhere."""

    def forward(self, samples):
        shares = torch.tensor([0.6, 0.3, 0.1]).view(3, 1, 1)
        return [{"sem_seg": shares.expand(3, 8, 12).clone()} for _ in samples]


@pytest.fixture
def record(tmp_path):
    """Class 0 is tagged on the left, 1 on the right; 2 is a thing with a box."""
    path = tmp_path / "image.png"
    Image.fromarray(np.full((8, 12, 3), 90, np.uint8)).save(path)
    return {
        "file_name": str(path), "image_id": 7, "height": 8, "width": 12,
        "image_tags": [0, 1],
        "crop_tags": [
            {"box": [0, 0, 6, 8], "tags": [0]},
            {"box": [6, 0, 6, 8], "tags": [1]},
        ],
        "annotations": [{"bbox": [2, 2, 3, 3], "bbox_mode": 1, "category_id": 2}],
    }  # fmt: skip


def label(record, **refine):
    clean = CleanOptions(score_threshold=None, fill=False)
    relabeller = Relabeller(
        Fixed(), dict, Annotation(frozenset({2})), clean, RefineOptions(**refine), None
    )
    return relabeller(record).semantic


@pytest.mark.parametrize("crf", [False, True])
def test_pixels_take_the_most_probable_class_that_their_tags_allow(record, crf):
    deleted = label(record, enabled=crf)
    assert (deleted[:, :6] == 0).all() and (deleted[:, 6:] == IGNORE).all()
    given = label(record, enabled=crf, within_annotation=True)
    assert (given[:, :6] == 0).all() and (given[:, 6:] == 1).all()
