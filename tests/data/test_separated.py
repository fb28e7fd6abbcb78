# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The twin that stock Detectron2 trains from, compared with the maps it was made of."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from PIL import Image

from wsis_d2.data.datasets.own.custom import register_weak_panoptic, unregister
from wsis_d2.data.datasets.own.separated import register_separated
from wsis_d2.data.datasets.sample.dataset import prepare_sample
from wsis_d2.utils.errors import InputError
from wsis_d2.weak_labels.store import LabelStore


@pytest.fixture
def weak(tmp_path):
    """A weak set of two images whose store holds their truth, with a margin of ignore."""
    root = tmp_path / "wsis_sample"
    prepare_sample(root, train=2, val=1)
    truth = {"panoptic_json": root / "panoptic_train.json", "panoptic_dir": root / "panoptic_train"}
    register_weak_panoptic(
        "own_weak", root / "weak_train.json", root / "images/train", labels=tmp_path / "store"
    )
    register_weak_panoptic(
        "own_full", root / "weak_train.json", root / "images/train", supervision="full", **truth
    )
    metadata = MetadataCatalog.get("own_weak")
    store = LabelStore.create(tmp_path / "store", {"made": "by hand"}, metadata.categories)
    maps = {}
    full = {r["image_id"]: r for r in DatasetCatalog.get("own_full")}
    for record in DatasetCatalog.get("own_weak"):
        true = full[record["image_id"]]
        ids = np.asarray(Image.open(true["pan_seg_file_name"])).astype(np.int32) @ [1, 256, 65536]
        semantic = np.zeros(ids.shape, np.uint8)
        for s in true["segments_info"]:
            semantic[ids == s["id"]] = s["category_id"]
        ids[:10], semantic[:10] = -1, 255
        segments = [{k: s[k] for k in ("id", "category_id")} for s in true["segments_info"]]
        store.write(record, semantic, ids.astype(np.int32), segments, {})
        maps[record["image_id"]] = (semantic, ids)
    store.finish()
    yield tmp_path, maps
    for name in ("own_weak", "own_full", "own_weak_separated", "own_full_separated"):
        unregister(name)


def check(records, maps):
    for record in records:
        semantic, ids = maps[record["image_id"]]
        stuff = np.asarray(Image.open(record["sem_seg_file_name"]))
        # sample: contiguous 0..2 are things, 3..6 stuff
        expected = np.where(semantic == 255, 255, np.where(semantic < 3, 0, semantic - 2))
        np.testing.assert_array_equal(stuff, expected)
        things = [i for i in np.unique(ids[(semantic < 3)])]
        assert len(things) == len(record["annotations"])
        for sid, annotation in zip(things, record["annotations"], strict=True):
            mask = mask_util.decode(annotation["segmentation"])
            np.testing.assert_array_equal(mask, ids == sid)
            assert annotation["category_id"] == semantic[ids == sid][0]
            ys, xs = np.nonzero(mask)
            assert annotation["bbox"] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]


def test_twin_of_a_store_and_of_truth(weak, tmp_path):
    folder, maps = weak
    assert register_separated("own_weak") == "own_weak_separated"
    check(DatasetCatalog.get("own_weak_separated"), maps)
    metadata = MetadataCatalog.get("own_weak_separated")
    assert metadata.thing_classes == ["fish", "tree", "star"]
    assert metadata.stuff_classes == ["things", "sky", "grass", "water", "brick"]
    assert metadata.stuff_dataset_id_to_contiguous_id == {11: 1, 12: 2, 13: 3, 14: 4}
    register_separated("own_full", tmp_path / "truth_twin")
    records = DatasetCatalog.get("own_full_separated")
    full = {}
    for image_id, record in zip(maps, DatasetCatalog.get("own_full"), strict=True):
        ids = np.asarray(Image.open(record["pan_seg_file_name"])).astype(int) @ [1, 256, 65536]
        semantic = np.zeros(ids.shape, int)
        for s in record["segments_info"]:
            semantic[ids == s["id"]] = s["category_id"]
        full[image_id] = (semantic, ids)
    check(records, full)


def test_stock_mapper_takes_it(weak):
    register_separated("own_weak")
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.INPUT.MIN_SIZE_TRAIN = (128,)
    mapper = DatasetMapper(cfg, is_train=True)
    for record in DatasetCatalog.get("own_weak_separated"):
        sample = mapper(record)
        assert sample["instances"].gt_masks.tensor.shape[1:] == sample["image"].shape[1:]
        assert sample["sem_seg"].shape == sample["image"].shape[1:]


def test_twin_follows_its_store(weak):
    folder, maps = weak
    register_separated("own_weak")
    DatasetCatalog.get("own_weak_separated")
    metadata = MetadataCatalog.get("own_weak")
    store = LabelStore.create(folder / "store", {"made": "by hand"}, metadata.categories)
    for record in DatasetCatalog.get("own_weak"):
        semantic, ids = maps[record["image_id"]]
        semantic[-20:], ids[-20:] = 255, -1
        present = np.unique(ids)
        _, segments = store.instance(record["image_id"])
        segments = [s for s in segments if s["id"] in present]
        store.write(record, semantic, ids.astype(np.int32), segments, {})
    store.finish()
    check(DatasetCatalog.get("own_weak_separated"), maps)


def test_missing_labels_name_the_command(weak):
    with pytest.raises(InputError, match="no dataset"):
        register_separated("own_none")
    register_separated("own_full")
    with pytest.raises(InputError, match="folder"):
        DatasetCatalog.get("own_full_separated")
    del MetadataCatalog.get("own_weak").label_store
    MetadataCatalog.get("own_weak").label_store = None
    register_separated("own_weak")
    with pytest.raises(InputError, match="make_weak_labels"):
        DatasetCatalog.get("own_weak_separated")
