# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Relabelling with what the annotation rules out, before and after the CRF."""

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from PIL import Image

from wsis_d2.config import add_wsis_config
from wsis_d2.relabeling.earlier_labels import prior_factors
from wsis_d2.relabeling.relabeller import Relabeller
from wsis_d2.structures.annotation import AnnotatedClasses
from wsis_d2.structures.labels import IGNORE
from wsis_d2.utils.errors import InputError
from wsis_d2.weak_labels.clean import CleanOptions
from wsis_d2.weak_labels.label_prior import class_factors
from wsis_d2.weak_labels.refine import RefineOptions
from wsis_d2.weak_labels.reliability import save_reliability
from wsis_d2.weak_labels.store import LabelStore

CATEGORIES = [{"id": k + 1, "name": f"class {k}", "isthing": int(k == 2)} for k in range(3)]


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


def sample_of(record):
    return {**record, "image": torch.zeros(3, record["height"], record["width"])}


def label(record, **refine):
    clean = CleanOptions(score_threshold=None, fill=False)
    relabeller = Relabeller(
        Fixed(), sample_of, AnnotatedClasses(frozenset({2})), clean, RefineOptions(**refine), None
    )
    return relabeller(record).semantic


@pytest.mark.parametrize("crf", [False, True])
def test_pixels_take_the_most_probable_class_that_their_tags_allow(record, crf):
    deleted = label(record, enabled=crf)
    assert (deleted[:, :6] == 0).all() and (deleted[:, 6:] == IGNORE).all()
    given = label(record, enabled=crf, within_annotation=True)
    assert (given[:, :6] == 0).all() and (given[:, 6:] == 1).all()


class Store:
    """Labels of one image as round 0 and the last round left them."""

    def __init__(self, label):
        self.label = np.array(label, np.uint8)

    def image_ids(self):
        return [7]

    def semantic(self, image_id):
        assert image_id == 7
        return self.label


def test_rare_classes_weigh_more_than_the_network_says(record):
    """The network gives 0.6, 0.3, 0.1 everywhere; class 1 was a tenth of its labels."""
    del record["crop_tags"], record["annotations"][:]
    last = Store(np.array([0] * 90 + [1] * 10).reshape(10, 10))
    clean = CleanOptions(score_threshold=None, fill=False)

    def labels(balance):
        options = RefineOptions(enabled=False, class_balance=balance)
        annotation = AnnotatedClasses(frozenset({2}))
        factors = class_factors(balance, last, 3)
        return Relabeller(
            Fixed(), sample_of, annotation, clean, options, None, factors=factors
        )(record).semantic  # fmt: skip

    assert (labels(0.0) == 0).all()
    assert (labels(0.2) == 0).all()  # 0.6 against 0.3 * 9 ** 0.2 = 0.47
    assert (labels(0.4) == 1).all()  # 0.3 * 9 ** 0.4 = 0.72


def test_what_tags_do_not_vouch_for_is_held_back(record, tmp_path):
    """Of 0.6, 0.3, 0.1 the first is trusted to 0.6 only: 0.36 against 0.3, squared 0.216."""
    del record["crop_tags"], record["annotations"][:]
    first = LabelStore.create(tmp_path / "first", {"kind": "t"}, CATEGORIES)
    first.write(record, np.zeros((8, 12), np.uint8), np.full((8, 12), -1, np.int32), [])

    def labels(power):
        cfg = get_cfg()
        add_wsis_config(cfg)
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 3
        cfg.REFINE.ENABLED = False
        cfg.REFINE.RELIABILITY_POWER = power
        options = RefineOptions.from_config(cfg)
        factors = prior_factors(cfg, first.classes, first.path, first.path)
        clean = CleanOptions(score_threshold=None, fill=False)
        annotation = AnnotatedClasses(frozenset({2}))
        return Relabeller(
            Fixed(), sample_of, annotation, clean, options, None, factors=factors
        )(record).semantic  # fmt: skip

    with pytest.raises(InputError, match="reliability.json: no such file"):
        labels(1.0)
    save_reliability(first.path, [c["name"] for c in CATEGORIES], np.array([0.6, 1.0, 1.0]))
    assert (labels(0.0) == 0).all() and (labels(1.0) == 0).all()
    assert (labels(2.0) == 1).all()
    with pytest.raises(InputError, match="REFINE.RELIABILITY_POWER is -1.0"):
        labels(-1.0)
