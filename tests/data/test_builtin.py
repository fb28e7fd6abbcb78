# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Registered sets: names, metadata, records of both twins, no mask on the weak side."""

import shutil

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers.official_trees import (
    make_cityscapes,
    make_coco,
    make_voc,
    registered_names,
    registered_under,
    run_prepare,
)

from wsis_d2.data.datasets import WEAK_RECORD_FIELDS
from wsis_d2.utils.errors import InputError

PAIRS = [
    "voc_2012_train_panoptic", "voc_2012_trainaug_panoptic", "voc_2012_val_panoptic",
    "coco_2014_vocclasses", "coco_2017_vocclasses", "coco_2017_vocclasses_val",
    "cityscapes_fine_panoptic_train", "cityscapes_fine_panoptic_val", "cityscapes_extra",
]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("all")
    make_voc(root)
    make_cityscapes(root)
    partial = ("--root", root, "--workers", 1, "--allow-partial")
    run_prepare("prepare_voc", *partial)
    run_prepare("prepare_cityscapes", *partial)
    for year in ("2014", "2017"):
        make_coco(root, year)
        run_prepare("prepare_coco", *partial, "--year", year)
    with registered_under(root):
        yield root


@pytest.mark.parametrize("stem", PAIRS)
def test_twins_hold_the_same_images(root, stem):
    weak, full = (DatasetCatalog.get(f"{stem}_{kind}") for kind in ("weak", "full"))
    assert weak and [r["file_name"] for r in weak] == [r["file_name"] for r in full]
    for one, two in zip(weak, full, strict=True):
        assert set(one) <= WEAK_RECORD_FIELDS and one["supervision"] == "weak"
        assert two["supervision"] == "full" and two["pan_seg_file_name"].endswith(".png")
        assert one["annotations"] == two["annotations"]
        assert str(root / "wsis") not in repr(one)  # no path of a derived file, so of no mask
        classes = len(MetadataCatalog.get(f"{stem}_weak").stuff_classes)
        assert all(0 <= s["category_id"] < classes for s in two["segments_info"])


def test_unified_ids(root):
    record = DatasetCatalog.get("cityscapes_fine_panoptic_val_weak")[0]
    assert [(a["category_id"], a["iscrowd"]) for a in record["annotations"]] == [
        (11, 1), (13, 0), (13, 0), (18, 0),
    ]  # fmt: skip
    assert record["image_tags"] == [0, 8, 10]
    assert record["annotations"][1]["bbox"] == [20.0, 41.0, 33.0, 50.0]
    record = DatasetCatalog.get("voc_2012_val_panoptic_weak")[0]
    assert [a["category_id"] for a in record["annotations"]] == [15, 7, 7]
    assert record["image_tags"] == [0]


@pytest.mark.parametrize(
    "stem, things, stuff, outside, thresholds",
    [
        ("voc_2012_trainaug_panoptic", range(1, 21), [0], 0, "0.1:0.9:0.1"),
        ("coco_2014_vocclasses", range(1, 21), [0], 0, "0.1:0.9:0.1"),
        ("cityscapes_extra", range(11, 19), range(11), "ignore", "0.5:0.95:0.05"),
    ],
)
@pytest.mark.parametrize("kind", ["weak", "full"])
def test_metadata(root, stem, things, stuff, outside, thresholds, kind):
    meta = MetadataCatalog.get(f"{stem}_{kind}")
    count = len(things) + len(stuff)
    assert meta.thing_ids == list(things) and meta.stuff_ids == list(stuff)
    for key in ("thing_classes", "stuff_classes", "thing_colors", "stuff_colors"):
        assert len(meta.get(key)) == count
    assert sorted(meta.stuff_dataset_id_to_contiguous_id.values()) == list(range(count))
    assert sorted(meta.thing_dataset_id_to_contiguous_id.values()) == list(things)
    assert (meta.supervision, meta.evaluator_type) == (kind, "wsis_panoptic")
    assert (meta.outside_boxes, meta.apr_thresholds) == (outside, thresholds)
    assert (meta.ignore_label, meta.label_divisor, meta.label_store) == (255, 1000, None)


def test_extra_says_that_it_has_no_boxes(root):
    assert MetadataCatalog.get("cityscapes_extra_weak").has_boxes is False
    assert MetadataCatalog.get("cityscapes_fine_panoptic_train_weak").has_boxes is True


def test_test_sets_have_no_truth(root):
    assert len(DatasetCatalog.get("cityscapes_fine_panoptic_test")) == 1
    assert MetadataCatalog.get("cityscapes_fine_panoptic_test").panoptic_json is None


def test_unprepared_sets_name_the_command(tmp_path):
    with registered_under(tmp_path) as names:
        assert sorted(names) == sorted(registered_names())
        for name in names:
            script = f"python datasets/prepare_{name.split('_')[0]}.py"
            with pytest.raises(InputError, match=script):
                DatasetCatalog.get(name)


def test_weak_twin_loads_with_every_mask_deleted(root, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    for pattern in (
        "VOCdevkit/VOC2012/Segmentation*", "benchmark_RELEASE", "cityscapes/gt*",
        "coco/annotations", "wsis_*/panoptic*", "wsis_*/.journal*", "wsis_*/checksums*",
    ):  # fmt: skip
        found = list(copy.glob(pattern))
        assert found
        for path in found:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    expected = {f"{stem}_weak": DatasetCatalog.get(f"{stem}_weak") for stem in PAIRS}
    with registered_under(copy):
        for name, records in expected.items():
            found = DatasetCatalog.get(name)
            for record in found:
                record["file_name"] = record["file_name"].replace(str(copy), str(root))
            assert found == records
