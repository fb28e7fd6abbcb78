# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""COCO panoptic files of a label store, loaded the way that Mask2Former does."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import detection_utils as utils
from detectron2.structures import BitMasks
from helpers.tiny_panoptic import CATEGORIES, TinyData

from wsis_d2.data.datasets.own.panoptic_export import register_panoptic_files
from wsis_d2.utils.errors import InputError
from wsis_d2.weak_labels.store import LabelStore


@pytest.fixture
def tiny(tmp_path):
    data = TinyData(tmp_path / "data")
    yield tmp_path
    for name in ("tiny_weak_panoptic", "tiny_full_panoptic"):
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
    data.close()


def as_mask2former_maps(record):
    """What its COCOPanopticNewBaselineDatasetMapper does, without augmentation.

    Returns:
        the image, the classes, the masks.
    """
    image = utils.read_image(record["file_name"], format="RGB")
    utils.check_image_size(record, image)
    rgb = utils.read_image(record["pan_seg_file_name"], "RGB").astype(np.int64)
    ids = rgb[:, :, 0] + 256 * rgb[:, :, 1] + 256 * 256 * rgb[:, :, 2]  # panopticapi's rgb2id
    classes, masks = [], []
    for segment in record["segments_info"]:
        if not segment["iscrowd"]:
            classes.append(segment["category_id"])
            masks.append(ids == segment["id"])
    stacked = BitMasks(torch.stack([torch.from_numpy(m.copy()) for m in masks]))
    return image, classes, stacked


def test_a_label_store_as_mask2former_reads_it(tiny):
    name = register_panoptic_files("tiny_weak", tiny / "files")
    assert name == "tiny_weak_panoptic"
    weak = DatasetCatalog.get("tiny_weak")
    store = LabelStore.open(MetadataCatalog.get("tiny_weak").label_store)
    records = DatasetCatalog.get(name)  # Detectron2's own load_coco_panoptic_json
    assert len(records) == len(weak)
    for record, own in zip(records, weak, strict=True):
        assert record["image_id"] == own["image_id"]
        image, classes, masks = as_mask2former_maps(record)
        np.testing.assert_array_equal(image, utils.read_image(own["file_name"], "RGB"))
        ids, segments = store.instance(own["image_id"])
        present = [s for s in segments if (ids == s["id"]).any()]
        assert classes == [s["category_id"] for s in present]
        for mask, segment in zip(masks.tensor.numpy(), present, strict=True):
            np.testing.assert_array_equal(mask, ids == segment["id"])
        things = [s["isthing"] for s in record["segments_info"]]
        assert things == [bool(CATEGORIES[k]["isthing"]) for k in classes]
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_dataset_id_to_contiguous_id == {3: 0, 8: 2}
    assert metadata.stuff_dataset_id_to_contiguous_id == {3: 0, 5: 1, 8: 2, 9: 3}


def test_truth_is_written_the_same_way_and_again(tiny):
    for _ in range(2):
        name = register_panoptic_files("tiny_full", tiny / "files")
        for record, own in zip(
            DatasetCatalog.get(name), DatasetCatalog.get("tiny_full"), strict=True
        ):
            _, classes, masks = as_mask2former_maps(record)
            assert classes == [s["category_id"] for s in own["segments_info"]]
            ids = utils.read_image(own["pan_seg_file_name"], "RGB")[..., 0]
            areas = [int((ids == s["id"]).sum()) for s in own["segments_info"]]
            assert masks.tensor.sum(dim=(1, 2)).tolist() == areas


def test_segments_without_a_pixel_are_left_out(tiny):
    path = Path(MetadataCatalog.get("tiny_full").panoptic_json)
    content = json.loads(path.read_text())
    given = content["annotations"][0]["segments_info"]
    given.append({**given[0], "id": 99999})
    path.write_text(json.dumps(content))
    register_panoptic_files("tiny_full", tiny / "files")
    written = json.loads((tiny / "files/panoptic.json").read_text())["annotations"][0]
    assert [s["id"] for s in written["segments_info"]] == [s["id"] for s in given[:-1]]
    assert all(s["area"] > 0 for s in written["segments_info"])


def test_an_unknown_dataset_is_named(tiny):
    with pytest.raises(InputError, match="no_such"):
        register_panoptic_files("no_such", tiny / "files")
