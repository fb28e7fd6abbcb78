# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Image ids that stand for another picture in another file."""

import json

import numpy as np
import pytest
from PIL import Image

from wsis_d2.data.datasets.own.custom import register_weak_panoptic, unregister
from wsis_d2.data.panoptic_format import write_panoptic_png
from wsis_d2.evaluation.from_files import FileOptions, evaluate_files
from wsis_d2.evaluation.label_quality import evaluate_store
from wsis_d2.evaluation.panoptic_truth import PanopticTruth
from wsis_d2.structures.pictures import PictureNames
from wsis_d2.utils.errors import InputError
from wsis_d2.weak_labels.store import LabelStore

CATEGORIES = [{"id": 1, "name": "cow", "isthing": 1}, {"id": 2, "name": "grass", "isthing": 0}]


def test_a_name_under_another_id_is_told():
    names = PictureNames(
        [{"id": 1, "file_name": "x/a.jpg"}, {"id": 2, "file_name": "b.v2"}, {"id": 3},
         {"id": 4, "file_name": "south/c.png"}, {"id": 5, "file_name": "north/c.png"}], "t.json"
    )  # fmt: skip
    for image_id, name in ((1, "a.png"), ("1", "y/a"), (2, "b.v2.jpg"), (1, "new.jpg"), (3, None),
                           (4, "c.jpg"), (5, "c.jpg")):  # fmt: skip
        names.check(image_id, name, "p.json")
    with pytest.raises(InputError, match=r"^p.json: image id 2 is a.jpg, whose id in t.json is 1;"):
        names.check(2, "z/a.jpg", "p.json")


def test_folders_tell_pictures_of_one_name_apart():
    """Cameras begin at 001 each day; a folder that is added shifts the numbers."""
    names = PictureNames(
        [{"id": 1, "file_name": "day1/001.jpg"}, {"id": 2, "file_name": "day2/001.jpg"}], "t.json"
    )
    names.check(2, "photos/day2/001.jpg", "p.json")
    names.check(2, "001.jpg", "p.json")  # no folder: either
    with pytest.raises(InputError, match="image id 1 is 001.png, whose id in t.json is 2"):
        names.check(1, "photos/day2/001.png", "p.json")
    assert names.ids("day1\\001.jpg") == {"1"} and names.ids("002.jpg") == set()


def test_suffixes_tell_pictures_of_one_name_apart():
    """A dataset of the JPEGs alone, predictions of a folder that holds PNGs beside them."""
    names = PictureNames([{"id": 1, "file_name": "p.jpg"}, {"id": 2, "file_name": "p.png"}], "t")
    assert names.ids("photos/p.jpg") == {"1"} and names.ids("photos/p.png") == {"2"}
    assert names.ids("p.tif") == names.ids("p") == {"1", "2"}  # either
    with pytest.raises(InputError, match="image id 2 is p.jpg, whose id in t is 1"):
        names.check(2, "p.jpg", "d.json")


def panoptic(folder, name, order):
    """Panoptic files of two pictures of one size, of which a.jpg shows a cow left, b.jpg right."""
    images, annotations = [], []
    (folder / name).mkdir()
    for image_id, picture in enumerate(order, start=1):
        ids = np.full((8, 10), 2, np.int32)
        ids[2:6, slice(0, 4) if picture == "a" else slice(6, 10)] = 1
        write_panoptic_png(folder / name / f"{picture}.png", ids)
        size = {"width": 10, "height": 8}
        images.append({"id": image_id, "file_name": f"{picture}.jpg", **size})
        segments = [{"id": 1, "category_id": 1}, {"id": 2, "category_id": 2}]
        annotations.append(
            {"image_id": image_id, "file_name": f"{picture}.png", "segments_info": segments}
        )
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (folder / f"{name}.json").write_text(json.dumps(content))
    return folder / f"{name}.json", folder / name


@pytest.fixture
def files(tmp_path):
    """The same two pictures numbered one way in the annotation and the other way in the truth."""
    (tmp_path / "photos").mkdir()
    for name in "ab":
        Image.new("RGB", (10, 8)).save(tmp_path / "photos" / f"{name}.jpg")
    images = [{"id": k, "file_name": f"{n}.jpg", "width": 10, "height": 8, "image_tags": [2]}
              for k, n in ((1, "a"), (2, "b"))]  # fmt: skip
    content = {"images": images, "annotations": [], "categories": CATEGORIES}
    (tmp_path / "own.json").write_text(json.dumps(content))
    return tmp_path, panoptic(tmp_path, "same", "ab"), panoptic(tmp_path, "other", "ba")


MESSAGE = r"image id 1 is a.jpg, whose id in \S*other.json is 2; files used together"


def test_predictions_and_truth(files):
    _, same, other = files
    alone = FileOptions(workers=1)
    assert evaluate_files(*same, *same, alone)["panoptic_seg"]["PQ"] == 100
    with pytest.raises(InputError, match=MESSAGE):
        evaluate_files(*same, *other, alone)


@pytest.mark.parametrize("supervision", ["full", "weak"])
def test_truth_of_a_registered_set(files, supervision):
    """Full sets train from it, both kinds are evaluated against it."""
    folder, same, other = files
    for truth, fits in ((same, True), (other, False)):
        register_weak_panoptic(
            "numbered", folder / "own.json", folder / "photos", panoptic_json=truth[0],
            panoptic_dir=truth[1], supervision=supervision,
        )  # fmt: skip
        try:
            from detectron2.data import DatasetCatalog

            record = {"image_id": 1, "file_name": "photos/a.jpg"}
            if supervision == "full" and fits:
                (record, _) = DatasetCatalog.get("numbered")
                assert record["pan_seg_file_name"].endswith("a.png")
            elif supervision == "full":
                with pytest.raises(InputError, match=MESSAGE):
                    DatasetCatalog.get("numbered")
            if fits:
                assert PanopticTruth("numbered").key(record) == "1"
            else:
                with pytest.raises(InputError, match=MESSAGE):
                    PanopticTruth("numbered").key(record)
        finally:
            unregister("numbered")


def test_labels_and_truth(files):
    folder, same, other = files
    store = LabelStore.create(folder / "store", {"kind": "test"}, CATEGORIES)
    semantic = np.ones((8, 10), np.uint8)
    record = {"image_id": 1, "file_name": "photos/a.jpg", "height": 8, "width": 10}
    store.write(record, semantic, np.full((8, 10), -1, np.int32), [])
    store.finish()
    assert evaluate_store(folder / "store", *same)["images"] == 1
    with pytest.raises(InputError, match=MESSAGE):
        evaluate_store(folder / "store", *other)
