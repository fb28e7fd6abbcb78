# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The importer of the authors' label files: what it takes, what it refuses, what it makes."""

import numpy as np
import pytest
from detectron2.config import get_cfg
from PIL import Image

from wsis_d2.config import add_wsis_config
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.image_io import read_label_png
from wsis_d2.weak_labels.driver import LabelRun
from wsis_d2.weak_labels.merge import make_merged_labels
from wsis_d2.weak_labels.released import import_released
from wsis_d2.weak_labels.store import LabelStore

ALONE = LabelRun(workers=1)

N = 255
# Three classes as on Cityscapes: stuff first. 0 road, 1 sky, 2 car.
CATEGORIES = [
    {"id": 7, "name": "road", "isthing": 0},
    {"id": 23, "name": "sky", "isthing": 0},
    {"id": 26, "name": "car", "isthing": 1},
]
CAM = np.array([[1, 1, 2, 1], [0, 0, N, 0]], np.uint8)
MANDG = np.array([[0, 0, N, 0], [0, N, 2, 0]], np.uint8)
MERGED = np.array([[1, 1, N, 1], [0, 0, 2, 0]], np.uint8)


def palette_png(path, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels).convert("P")
    image.putdata(labels.ravel().tolist())
    image.putpalette([v for k in range(256) for v in (k, 255 - k, (7 * k) % 256)])
    image.save(path)


@pytest.fixture
def record():
    return {
        "file_name": "somewhere/bonn/bonn_000001_leftImg8bit.png",
        "image_id": "bonn_000001",
        "height": 2,
        "width": 4,
        "annotations": [{"bbox": [1, 0, 3, 2], "bbox_mode": 0, "category_id": 2, "iscrowd": 0}],
        "image_tags": [0, 1],
        "supervision": "weak",
    }


@pytest.fixture
def released(tmp_path):
    for kind, labels in (("cam", CAM), ("mandg", MANDG), ("merged", MERGED)):
        palette_png(tmp_path / kind / "train" / "bonn_000001_leftImg8bit.png", labels)
    return tmp_path


def test_indices_are_read_not_colours(released):
    path = released / "cam" / "train" / "bonn_000001_leftImg8bit.png"
    assert Image.open(path).mode == "P"
    assert read_label_png(path).tolist() == CAM.tolist()


def test_merged_labels_become_a_store_with_instances(released, record):
    status = import_released(
        "merged", released / "merged", [record], CATEGORIES, released / "out", run=ALONE
    )
    assert status == 0
    store = LabelStore.open(released / "out")
    assert store.semantic("bonn_000001").tolist() == MERGED.tolist()
    instance, segments = store.instance("bonn_000001")
    assert instance.tolist() == [[2, 2, -1, 2], [1, 1, 3, 1]]
    assert [s["category_id"] for s in segments] == [0, 1, 2]


def test_a_changed_file_is_imported_again(released, record):
    path = released / "cam" / "train" / "bonn_000001_leftImg8bit.png"
    for labels in (CAM, 1 - CAM % 2):
        palette_png(path, labels)
        arguments = ("cam", released / "cam", [record], CATEGORIES, released / "out")
        assert import_released(*arguments, run=ALONE) == 0
        assert LabelStore.open(released / "out").semantic("bonn_000001").tolist() == labels.tolist()


def test_dry_run_writes_nothing(released, record):
    status = import_released(
        "cam", released / "cam", [record], CATEGORIES, released / "out", run=LabelRun(dry_run=True)
    )
    assert status == 0 and not (released / "out").exists()


def test_zero_in_box_masks_is_no_box_not_road(released, record):
    import_released("mandg", released / "mandg", [record], CATEGORIES, released / "out", run=ALONE)
    store = LabelStore.open(released / "out")
    assert store.semantic("bonn_000001").tolist() == [[N, N, N, N], [N, N, 2, N]]


def test_the_parts_merge_to_the_authors_own_merge(released, record):
    cfg = get_cfg()
    add_wsis_config(cfg)
    for kind in ("cam", "mandg"):
        import_released(
            kind, released / kind, [record], CATEGORIES, released / f"s_{kind}", run=ALONE
        )
    make_merged_labels(
        cfg,
        [record],
        CATEGORIES,
        released / "s_merged",
        boxes=released / "s_mandg",
        tags=released / "s_cam",
        run=ALONE,
    )
    merged = LabelStore.open(released / "s_merged").semantic("bonn_000001")
    assert merged.tolist() == MERGED.tolist()


@pytest.mark.parametrize(
    "kind, labels, message",
    [
        ("cam", CAM[:, :3], "is 3 x 2, the image is 4 x 2"),
        ("cam", np.full((2, 4), 3, np.uint8), "holds class 3, expected 0 to 2 or 255"),
        ("mandg", CAM, "holds stuff class 1; box masks hold things"),
    ],
)
def test_files_that_cannot_be_right_are_named(tmp_path, record, kind, labels, message):
    palette_png(tmp_path / "in" / "bonn_000001_leftImg8bit.png", labels)
    out = tmp_path / "out"
    assert import_released(kind, tmp_path / "in", [record], CATEGORIES, out, run=ALONE) == 1
    failed = LabelStore.open(out).failed["bonn_000001"]
    assert message in failed and "bonn_000001_leftImg8bit.png" in failed


def test_things_without_a_box_and_missing_files_are_named(released, record):
    record["annotations"] = []
    out = released / "out"
    import_released("merged", released / "merged", [record], CATEGORIES, out, run=ALONE)
    assert (
        "holds thing class 2, and the record has no box"
        in (LabelStore.open(out).failed["bonn_000001"])
    )
    # Without reliable boxes that says nothing, and there are no instances.
    import_released(
        "merged", released / "merged", [record], CATEGORIES, out, has_boxes=False, run=ALONE
    )
    instance, segments = LabelStore.open(out).instance("bonn_000001")
    assert (instance == -1).all() and segments == []
    other = {**record, "file_name": "x/ulm_1_leftImg8bit.png", "image_id": "ulm_1"}
    import_released("cam", released / "cam", [other], CATEGORIES, released / "o2", run=ALONE)
    assert "no label file ulm_1_leftImg8bit.png" in LabelStore.open(released / "o2").failed["ulm_1"]


def test_folders_that_cannot_be_right(released, record):
    with pytest.raises(InputError, match="two files bonn_000001_leftImg8bit.png"):
        import_released("cam", released, [record], CATEGORIES, released / "out")
    (released / "empty").mkdir()
    with pytest.raises(InputError, match="no PNG files"):
        import_released("cam", released / "empty", [record], CATEGORIES, released / "out")
    Image.new("RGB", (4, 2)).save(released / "empty" / "rgb.png")
    with pytest.raises(InputError, match="mode RGB, expected a palette"):
        read_label_png(released / "empty" / "rgb.png")
