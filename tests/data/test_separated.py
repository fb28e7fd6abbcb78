# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The twin that stock Detectron2 trains from, compared with the maps it was made of."""

import json

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from PIL import Image

from wsis_d2.data.datasets.own.custom import register_weak_panoptic, unregister
from wsis_d2.data.datasets.own.separated import register_separated
from wsis_d2.data.datasets.sample.dataset import prepare_sample
from wsis_d2.data.mappers.separated_mapper import SeparatedMapper
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


def xywh(annotation):
    assert annotation["bbox_mode"] == 0
    x0, y0, x1, y1 = annotation["bbox"]
    return [x0, y0, x1 - x0, y1 - y0]


def check(records, maps):
    boxes_of = {
        r["image_id"]: [(a["category_id"], xywh(a)) for a in r["annotations"]]
        for r in DatasetCatalog.get("own_weak")
    }
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
            x, y, w, h = annotation["bbox"]
            boxes = boxes_of[record["image_id"]]
            assert (annotation["category_id"], [x, y, w, h]) in boxes  # as annotated
            ys, xs = np.nonzero(mask)
            assert x <= xs.min() and xs.max() < x + w and y <= ys.min() and ys.max() < y + h
            inside = np.zeros(mask.shape, bool)
            inside[int(y) : int(y + h), int(x) : int(x + w)] = True
            unknown = mask_util.decode(annotation["ignore_segmentation"])
            np.testing.assert_array_equal(unknown, inside & (semantic == 255))


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


def test_an_object_without_a_mask_keeps_its_box_where_masks_are_not_needed(weak, caplog):
    folder, maps = weak
    first = next(iter(maps))
    record = next(r for r in DatasetCatalog.get("own_weak") if r["image_id"] == first)
    store = LabelStore.create(
        folder / "store", {"made": "by hand"}, MetadataCatalog.get("own_weak").categories
    )
    semantic, ids = maps[first]
    _, segments = store.instance(first)
    gone = next(s for s in segments if s["category_id"] < 3)
    semantic[ids == gone["id"]], ids[ids == gone["id"]] = 255, -1
    store.write(record, semantic, ids, [s for s in segments if s != gone], {})
    store.finish()
    name = register_separated("own_weak")
    with caplog.at_level("WARNING"):
        check(DatasetCatalog.get(name), maps)
    left = next(r for r in DatasetCatalog.get(name) if r["image_id"] == first)
    missing = len(record["annotations"]) - len(left["annotations"])
    assert missing >= 1 and "objects have a box and no pixel of a mask" in caplog.text
    register_separated("own_weak", keep_all=True)
    kept = next(r for r in DatasetCatalog.get(name) if r["image_id"] == first)
    assert len(kept["annotations"]) == len(record["annotations"])
    cfg = get_cfg()
    cfg.MODEL.MASK_ON, cfg.INPUT.MASK_FORMAT, cfg.INPUT.MIN_SIZE_TRAIN = True, "bitmask", (256,)
    for _ in range(4):  # mirrored or not
        sample = SeparatedMapper(cfg, True)(kept)
        instances, known = sample["instances"], sample["sem_seg"] != 255
        assert len(instances) == len(record["annotations"])
        for mask, ignore, box in zip(
            instances.gt_masks.tensor, instances.gt_ignore.tensor, instances.gt_boxes.tensor,
            strict=True,
        ):  # fmt: skip
            assert not (mask & ignore).any() and not (ignore & known).any()
            x0, y0, x1, y1 = (round(v) for v in box.tolist())
            inside = torch.zeros_like(ignore)
            inside[y0:y1, x0:x1] = True
            assert (ignore[inside] == ~known[inside]).float().mean() > 0.95
        empty = ~instances.gt_masks.tensor.flatten(1).any(dim=1)
        assert empty.any() and instances.gt_ignore.tensor[empty].flatten(1).any(dim=1).all()
    register_separated("own_weak", masks=False)
    alone = next(r for r in DatasetCatalog.get(name) if r["image_id"] == first)
    found = sorted((a["category_id"], a["bbox"]) for a in alone["annotations"])
    assert found == sorted((a["category_id"], xywh(a)) for a in record["annotations"])
    assert not any("segmentation" in a or "ignore_segmentation" in a for a in alone["annotations"])


def test_boxes_drawn_beside_the_truth_make_no_second_objects(weak, tmp_path):
    folder = weak[0] / "wsis_sample"
    content = json.loads((folder / "weak_train.json").read_text())
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["bbox"] = [x + 1, y + 1, w - 1.5, h - 1.5]
    (folder / "by_hand.json").write_text(json.dumps(content))
    register_weak_panoptic(
        "own_by_hand", folder / "by_hand.json", folder / "images/train", supervision="full",
        panoptic_json=folder / "panoptic_train.json", panoptic_dir=folder / "panoptic_train",
    )  # fmt: skip
    try:
        for name in ("own_by_hand", "own_full"):
            register_separated(name, tmp_path / name, keep_all=True)
        found, wanted = (
            [r["annotations"] for r in DatasetCatalog.get(f"{name}_separated")]
            for name in ("own_by_hand", "own_full")
        )
        assert found == wanted and any(found)
    finally:
        unregister("own_by_hand_separated")
        unregister("own_by_hand")


def test_a_photograph_of_16_bits_is_that_of_other_trainings(tmp_path):
    """Detectron2's reader makes it white."""
    grey = np.linspace(0, 65535, 20 * 30).reshape(20, 30).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), grey)
    Image.fromarray(np.full((20, 30), 255, np.uint8)).save(tmp_path / "map.png")
    record = {"file_name": str(tmp_path / "a.png"), "image_id": 1, "height": 20, "width": 30}
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = 0, (20,), "none"
    tested = SeparatedMapper(cfg, False)({**record, "annotations": []})
    np.testing.assert_array_equal(tested["image"].numpy(), np.stack(3 * [grey >> 8]))
    assert "annotations" not in tested
    trained = {**record, "annotations": [], "sem_seg_file_name": str(tmp_path / "map.png")}
    sample = SeparatedMapper(cfg, True)(trained)
    np.testing.assert_array_equal(sample["image"].numpy(), np.stack(3 * [grey >> 8]))
    assert sample["sem_seg"].shape == (20, 30) and (sample["sem_seg"] == 255).all()


def test_groups_are_crowds_and_nested_boxes_find_their_masks(tmp_path):
    """Two boxes of one class, one in the other, and a group; the inner object is the smaller."""
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(images / "a.png")
    entries = [([0, 0, 30, 20], 0), ([2.5, 3, 5.25, 6], 0), ([20, 2, 8, 8], 1)]
    categories = [{"id": 1, "name": "cow", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 20, "width": 30, "image_tags": [2]}],
        "annotations": [
            {"id": k, "image_id": 1, "category_id": 1, "bbox": bbox, "iscrowd": crowd}
            for k, (bbox, crowd) in enumerate(entries, 1)
        ],
        "categories": categories,
    }
    (tmp_path / "weak.json").write_text(json.dumps(content))
    register_weak_panoptic("own_nested", tmp_path / "weak.json", images, labels=tmp_path / "store")
    try:
        store = LabelStore.create(
            tmp_path / "store", {"kind": "test"}, MetadataCatalog.get("own_nested").categories
        )
        ids = np.full((20, 30), -1, np.int32)
        ids[4:7, 3:6], ids[10:18, 1:28] = 8, 5
        semantic = np.where(ids > 0, 0, 255).astype(np.uint8)
        segments = [{"id": 5, "category_id": 0}, {"id": 8, "category_id": 0}]
        (record,) = DatasetCatalog.get("own_nested")
        store.write(record, semantic, ids, segments, {})
        store.finish()
        (twin,) = DatasetCatalog.get(register_separated("own_nested"))
        outer, inner, group = twin["annotations"]
        assert (outer["bbox"], inner["bbox"]) == ([0, 0, 30, 20], [2.5, 3, 5.25, 6])
        assert mask_util.area(inner["segmentation"]) == 9 and not inner["iscrowd"]
        # Columns 2 to 7 and rows 3 to 8 meet the box; nine pixels are known.
        assert mask_util.area(inner["ignore_segmentation"]) == 36 - 9
        assert (group["iscrowd"], group["bbox"]) == (1, [20, 2, 8, 8])
    finally:
        unregister("own_nested")
        unregister("own_nested_separated")


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
