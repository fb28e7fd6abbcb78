# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Samples of the tag classifier: which classes are present, absent, unknown in a window."""

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from PIL import Image

from wsis_d2.data.mappers import TagMapper, TagRegionMapper
from wsis_d2.modeling.annotation_losses import AnnotationLosses
from wsis_d2.utils.errors import InputError


@pytest.fixture
def record(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(tmp_path / "a.png")
    return {
        "file_name": str(tmp_path / "a.png"),
        "image_id": 1,
        "height": 20,
        "width": 30,
        "annotations": [
            {"bbox": [0, 0, 10, 10], "bbox_mode": 0, "category_id": 0, "iscrowd": 0},
            {"bbox": [8, 0, 20, 10], "bbox_mode": 1, "category_id": 1, "iscrowd": 0},
        ],
        "image_tags": [3, 4],
        "crop_tags": [
            {"box": [0.0, 0.0, 15.0, 20.0], "tags": [3]},
            {"box": [15.0, 0.0, 15.0, 20.0], "tags": [3, 4]},
        ],
        "supervision": "weak",
    }


def mapper(**changes):
    return TagMapper(**{"is_train": True, "num_classes": 5, "flip": False, **changes})


def test_boxes_count_by_their_share_in_the_window(record):
    own = mapper()
    # Box 1 spans columns 8 to 28: 7 of 20 columns lie in the left crop, 13 in the right.
    assert own.target(record, (0, 0, 15, 20), [3]).tolist() == [1, -1, 0, 1, 0]
    assert own.target(record, (15, 0, 30, 20), [3, 4]).tolist() == [0, 1, 0, 1, 1]
    assert own.target(record, (0, 10, 15, 20), []).tolist() == [0, 0, 0, 0, 0]


def test_a_tag_beats_an_unknown_and_boxes_can_be_switched_off(record):
    assert mapper().target(record, (0, 0, 15, 20), [1]).tolist() == [1, 1, 0, 0, 0]
    alone = mapper(box_share=2.0).target(record, (0, 0, 15, 20), [3])
    assert alone.tolist() == [0, 0, 0, 1, 0]


def test_training_draws_every_crop_with_its_own_tags(record):
    image = np.asarray(Image.open(record["file_name"]))[:, :, ::-1]
    seen = set()
    np.random.seed(0)  # noqa: NPY002
    for _ in range(20):
        sample = mapper()(record)
        left = np.array_equal(sample["image"].numpy(), image[:, :15].transpose(2, 0, 1))
        right = np.array_equal(sample["image"].numpy(), image[:, 15:].transpose(2, 0, 1))
        assert left != right
        assert sample["tags"][4] == (0 if left else 1)
        assert not {"annotations", "crops", "segments_info", "sem_seg"} & set(sample)
        seen.add(left)
    assert seen == {True, False}


def test_without_crop_tags_the_image_is_the_sample(record):
    del record["crop_tags"]
    sample = mapper()(record)
    assert sample["image"].shape == (3, 20, 30)
    assert sample["tags"].tolist() == [1, 1, 0, 1, 1]


def test_test_samples_hold_the_image_and_all_crops(record):
    sample = mapper(is_train=False)(record)
    assert sample["image"].shape == (3, 20, 30) and sample["image"].dtype == torch.uint8
    assert sample["crops"] == [(0, 0, 15, 20), (15, 0, 30, 20)]
    assert sample["crop_targets"].tolist() == [[1, -1, 0, 1, 0], [0, 1, 0, 1, 1]]


def test_augmentation_keeps_crop_and_tags_together(record):
    np.random.seed(1)  # noqa: NPY002
    sample = mapper(scale_range=(2.0, 2.0), flip=True, color_jitter=0.2)(record)
    assert sample["image"].shape == (3, 40, 30)
    assert sample["tags"].shape == (5,)


def test_a_full_record_tells_its_tags_by_its_segments_and_silence_is_an_error(record):
    del record["crop_tags"], record["image_tags"]
    with pytest.raises(InputError, match="a.png: no image_tags"):
        mapper()(record)
    full = {**record, "supervision": "full", "segments_info": [{"id": 1, "category_id": 2}]}
    assert mapper(is_train=False)(full)["tags"].tolist() == [1, 1, 1, 0, 0]
    # Sets that are registered have the field, empty where the file has none.
    assert mapper()({**full, "image_tags": []})["tags"].tolist() == [1, 1, 1, 0, 0]
    with pytest.raises(InputError, match="no image_tags"):
        mapper()({**full, "supervision": "weak"})


def test_the_region_mapper_moves_windows_and_boxes_with_the_image(record):
    own = TagRegionMapper(is_train=True, num_classes=5, flip=False)
    plain = own(record)
    assert plain["crops"] == [(0, 0, 15, 20), (15, 0, 30, 20)]
    assert plain["boxes"] == [((0, 0, 10, 10), 0, False), ((8, 0, 28, 10), 1, False)]
    assert plain["crop_targets"].tolist() == [[1, -1, 0, 1, 0], [0, 1, 0, 1, 1]]
    own.augmentations = T.AugmentationList([T.RandomFlip(prob=1.0)])
    flipped = own(record)
    assert torch.equal(flipped["image"], plain["image"].flip(-1))
    assert flipped["crops"] == [(15, 0, 30, 20), (0, 0, 15, 20)]
    assert flipped["boxes"][0][0] == (20, 0, 30, 10)
    assert torch.equal(flipped["crop_targets"], plain["crop_targets"])
    del record["crop_tags"]
    whole = own(record)
    assert whole["crops"] == [(0, 0, 30, 20)] and whole["crop_targets"].shape == (1, 5)


def test_stuff_that_nobody_tagged_is_unknown(record):
    """An image whose row is missing in the table of tags has boxes and no tag."""
    name = "tagged_in_part"
    metadata = MetadataCatalog.get(name)
    metadata.set(thing_ids=[0, 1], stuff_ids=[2, 3, 4], has_boxes=True)
    try:
        whole, given = (0, 0, 30, 20), {**record, "dataset_name": name, "crop_tags": []}
        for tags, target in (([], [1, 1, -1, -1, -1]), ([0], [1, 1, -1, -1, -1]),
                             ([3], [1, 1, 0, 1, 0])):  # fmt: skip
            own = {**given, "image_tags": tags}
            assert mapper().target(own, whole, tags).tolist() == target
        sample = TagRegionMapper(is_train=True, num_classes=5, flip=False)(
            {**given, "image_tags": [], "annotations": record["annotations"][:1]}
        )
        # Its boxes hold stuff too, whichever.
        possible = AnnotationLosses(5, [0, 1]).possible(sample, (20, 30))
        assert possible[2:].all() and possible[0].sum() == 100 and not possible[1].any()
    finally:
        MetadataCatalog.remove(name)


def test_a_thing_that_only_a_point_tells_of_may_be_in_any_window(record):
    MetadataCatalog.get("marked_things").set(thing_ids=[0, 1, 2])
    record |= {"dataset_name": "marked_things", "points": [{"category_id": 2, "xy": [3.0, 4.0]}]}
    try:
        assert mapper().target(record, (15, 0, 30, 20), [3]).tolist() == [0, 1, -1, 1, 0]
        sample = TagRegionMapper(is_train=True, num_classes=5, flip=False)(record)
        assert sample["boxes"][2:] == [((0, 0, 30, 20), 2, True)]
    finally:
        MetadataCatalog.remove("marked_things")
