# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Readers of annotation tools' files: round trips through each format."""

import json
import math

import numpy as np
import pycocotools.mask as mask_util
import pytest
from helpers.annotation_writers import (
    write_coco,
    write_cvat,
    write_label_studio,
    write_labelme,
    write_voc,
    write_yolo,
)
from helpers.shared_data import shared_data
from PIL import Image

from wsis_d2.data.datasets.own.weak import load_weak_json
from wsis_d2.data.importers.coco import read_coco
from wsis_d2.data.importers.cvat import read_cvat
from wsis_d2.data.importers.image_index import ImageIndex
from wsis_d2.data.importers.import_log import ImportLog
from wsis_d2.data.importers.label_studio import read_label_studio
from wsis_d2.data.importers.own_data import to_own_data
from wsis_d2.data.importers.per_image import read_labelme, read_voc
from wsis_d2.data.importers.tags import read_tags_csv
from wsis_d2.data.importers.yolo import read_yolo, read_yolo_classes
from wsis_d2.utils.errors import InputError

# image -> (width, height, [(class, x, y, w, h)])
TRUTH = {
    "a.png": (60, 40, [("cow", 3, 4, 20, 30), ("dog", 0, 0, 60, 40), ("cow", 30, 10, 25, 12)]),
    "b.png": (50, 70, [("dog", 12, 33, 8, 20)]),
    "sub/c.png": (20, 10, []),
}
CLASSES = ["dog", "cow"]


def draw(root, truth):
    for name, (width, height, _) in truth.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(root / name)


@pytest.fixture
def photos(tmp_path):
    draw(tmp_path / "photos", TRUTH)
    return tmp_path / "photos"


def read_any(kind, folder, truth, classes, images, log):
    if kind.startswith("coco"):
        path = write_coco(folder, truth, classes, polygons=kind == "coco polygons")
        return read_coco(path, images, log)[0]
    if kind.startswith("voc"):
        return read_voc(write_voc(folder, truth, kind == "voc edges"), images, log)
    if kind.startswith("yolo"):
        path = write_yolo(folder, truth, classes, polygons=kind == "yolo polygons")
        return read_yolo(path, images, log, classes=dict(enumerate(classes)))
    if kind == "cvat":
        return read_cvat(write_cvat(folder, truth), images, log)[0]
    if kind == "labelstudio":
        return read_label_studio(write_label_studio(folder, truth), images, log)
    return read_labelme(write_labelme(folder, truth), images, log)


KINDS = ["coco", "coco polygons", "voc", "voc edges", "yolo", "yolo polygons", "labelme", "cvat",
         "labelstudio"]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind, photos, tmp_path):
    log = ImportLog()
    pictures = read_any(kind, tmp_path, TRUTH, CLASSES, ImageIndex(photos), log)
    assert not log.dropped
    content = to_own_data(pictures, log)
    (tmp_path / "weak.json").write_text(json.dumps(content))
    records = load_weak_json(tmp_path / "weak.json", photos)
    names = [c["name"] for c in sorted(content["categories"], key=lambda c: c["id"])]
    assert {r["file_name"] for r in records} == {str(photos / n) for n in TRUTH}
    for record in records:
        name = record["file_name"][len(str(photos)) + 1 :]
        width, height, boxes = TRUTH[name]
        assert (record["width"], record["height"]) == (width, height)
        found = [(names[a["category_id"]], *a["bbox"]) for a in record["annotations"]]
        expected = [(label, x, y, x + w, y + h) for label, x, y, w, h in boxes]
        assert [f[0] for f in found] == [e[0] for e in expected]
        np.testing.assert_allclose([f[1:] for f in found], [e[1:] for e in expected], atol=1e-3)
        if kind in ("labelme", "cvat", "labelstudio"):
            assert [names[t] for t in record["image_tags"]] == ["grass"]


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_of_photographs(kind, tmp_path):
    """Twenty COCO photographs through each format; corners within a pixel (VOC has whole ones)."""
    root = shared_data("coco128_instances")
    source = json.loads((root / "annotations" / "instances_train2017.json").read_text())
    names = {c["id"]: c["name"] for c in source["categories"]}
    truth = {}
    for entry in source["images"][:20]:
        boxes = []
        for a in source["annotations"]:
            x, y, w, h = a["bbox"]
            if kind == "voc":  # whole pixels that hold the box
                x, y, w, h = (math.floor(x), math.floor(y), math.ceil(x + w) - math.floor(x),
                              math.ceil(y + h) - math.floor(y))  # fmt: skip
                w, h = min(w, entry["width"] - x), min(h, entry["height"] - y)
            if a["image_id"] == entry["id"]:
                boxes.append((names[a["category_id"]], x, y, w, h))
        truth[entry["file_name"]] = (entry["width"], entry["height"], boxes)
    classes = sorted(names.values())
    log = ImportLog()
    images = ImageIndex(root / "train2017")
    pictures = read_any(kind, tmp_path, truth, classes, images, log)
    assert len(pictures) == 20 and not [d for d in log.dropped if d["what"] != "box"]
    total = 0
    for picture in pictures:
        expected = truth[picture.file_name][2]
        assert [b[0] for b in picture.boxes] == [e[0] for e in expected]
        np.testing.assert_allclose(
            [b[1:5] for b in picture.boxes], [e[1:5] for e in expected], atol=0.02
        )
        total += len(expected)
    assert total == sum(len(t[2]) for t in truth.values()) > 50


def test_coco_particulars(photos, tmp_path):
    path = write_coco(tmp_path, TRUTH, CLASSES)
    content = json.loads(path.read_text())
    mask = np.zeros((40, 60), np.uint8, order="F")
    mask[5:15, 20:50] = 1
    rle = mask_util.encode(mask)
    rle["counts"] = rle["counts"].decode()
    content["images"][0]["file_name"] = "/data/upload/1/0123abcd-a.png"  # Label Studio
    content["images"][0]["image_tags"] = ["grass", 10]
    content["annotations"] = [
        {"id": 1, "image_id": 0, "category_id": 11, "bbox": [10, 10, 20, 8],
         "attributes": {"rotation": 90.0}},
        {"id": 2, "image_id": 0, "category_id": 11, "segmentation": rle, "iscrowd": 1},
        {"id": 3, "image_id": 0, "category_id": 11, "bbox": [50, 30, 40, 40]},
        {"id": 4, "image_id": 0, "category_id": 11, "bbox": [70, 30, 40, 40]},
        {"id": 5, "image_id": 0, "category_id": 11, "bbox": [5, 5, 0, 10]},
        {"id": 6, "image_id": 0, "category_id": 11},
    ]  # fmt: skip
    path.write_text(json.dumps(content))
    log = ImportLog()
    pictures, categories = read_coco(path, ImageIndex(photos), log)
    first = next(p for p in pictures if p.file_name == "a.png")
    assert first.tags == {"grass", "dog"} and [c["id"] for c in categories] == [10, 11]
    assert [b[5] for b in first.boxes] == [False, True, False]
    np.testing.assert_allclose(first.boxes[0][1:5], [16, 4, 8, 20])  # turned by 90 degrees
    np.testing.assert_allclose(first.boxes[1][1:5], [20, 5, 30, 10])
    np.testing.assert_allclose(first.boxes[2][1:5], [50, 30, 10, 10])  # clipped
    assert sorted(d["why"] for d in log.dropped) == [
        "neither bbox nor a usable segmentation", "no area", "wholly outside the image",
    ]  # fmt: skip
    assert any("no area" in line for line in log.lines())
    own = to_own_data(pictures, log, known=categories)
    assert {c["name"]: (c["id"], c["isthing"]) for c in own["categories"]} == {
        "dog": (10, 0), "cow": (11, 1), "grass": (12, 0),
    }  # fmt: skip


def test_boxes_keep_the_ids_that_files_of_masks_name_them_by(photos, tmp_path):
    path = write_coco(tmp_path, TRUTH, CLASSES)
    content = json.loads(path.read_text())
    # The images are not in the order of their names, nor the boxes in that of their ids.
    b, a = (next(i["id"] for i in content["images"] if i["file_name"] == n)
            for n in ("b.png", "a.png"))  # fmt: skip
    content["images"].reverse()
    content["images"][-1]["supervision"] = "full"
    marked = content["images"][-1]["file_name"]
    places = [(b, 1, 5), (a, 3, 15), (a, 2, 25), (a, 7, 35), (b, 7, 25), (b, None, 35)]
    content["annotations"] = [
        {"id": own, "image_id": image, "category_id": 11, "bbox": [x, 5, 9, 9]}
        for image, own, x in places
    ]
    path.write_text(json.dumps(content))
    log = ImportLog()
    pictures, categories = read_coco(path, ImageIndex(photos), log)
    own = to_own_data(pictures, log, known=categories)
    ids = {(e["image_id"], e["bbox"][0]): e["id"] for e in own["annotations"]}
    assert (ids[b, 5], ids[a, 15], ids[a, 25]) == (1, 3, 2)
    others = {ids[a, 35], ids[b, 25], ids[b, 35]}  # two of one id, one of none
    assert len(others) == 3 and not others & {1, 2, 3, 7}
    assert {e["file_name"]: e.get("supervision") for e in own["images"]} == {
        name: "full" if name == marked else None for name in TRUTH
    }


def test_labelme_particulars(photos, tmp_path):
    folder = write_labelme(tmp_path, {"a.png": TRUTH["a.png"]})
    content = json.loads((folder / "a.json").read_text())
    content["shapes"] = [
        {"label": "cow", "points": [[5, 5], [15, 5], [10, 20]], "shape_type": "polygon",
         "group_id": 1},
        {"label": "cow", "points": [[20, 8], [25, 8], [25, 30]], "shape_type": "polygon",
         "group_id": 1},
        {"label": "dog", "points": [[30, 20], [33, 24]], "shape_type": "circle"},
        {"label": "dog", "points": [[30, 20]], "shape_type": "point"},
        {"label": "dog", "points": [[30, 20]], "shape_type": "polygon"},
    ]  # fmt: skip
    (folder / "a.json").write_text(json.dumps(content))
    log = ImportLog()
    (picture,) = read_labelme(folder, ImageIndex(photos), log)
    assert picture.boxes == [("cow", 5, 5, 20, 25, False), ("dog", 25, 15, 10, 10, False)]
    assert [d["why"] for d in log.dropped] == ["a polygon has no area"]
    assert [(m.name, m.xy) for m in picture.marks] == [("dog", [30, 20])]


def test_voc_difficult(photos, tmp_path):
    folder = write_voc(tmp_path, {"b.png": TRUTH["b.png"]}, edges=False)
    text = (folder / "b.xml").read_text().replace("<bndbox>", "<difficult>1</difficult><bndbox>")
    (folder / "b.xml").write_text(text)
    for option, expected in (("keep", [False]), ("crowd", [True]), ("drop", [])):
        (picture,) = read_voc(folder, ImageIndex(photos), ImportLog(), difficult=option)
        assert [b[5] for b in picture.boxes] == expected


def test_exif_rotation_is_followed(tmp_path):
    """A camera's sideways photograph is annotated, and read by Detectron2, upright."""
    (tmp_path / "photos").mkdir()
    image = Image.fromarray(np.zeros((40, 60, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "photos" / "a.jpg", exif=exif)
    from detectron2.data.detection_utils import read_image

    height, width = read_image(tmp_path / "photos" / "a.jpg", "BGR").shape[:2]
    picture = ImageIndex(tmp_path / "photos").picture("a.jpg", "test", ImportLog())
    assert (picture.width, picture.height) == (width, height) == (40, 60)


def test_tags_csv(photos, tmp_path):
    images, path = ImageIndex(photos), tmp_path / "tags.csv"

    def read(text):
        path.write_text(text)
        log = ImportLog()
        return {p.file_name: p for p in read_tags_csv(path, [], images, log)}, log

    found, log = read("image,tags\na.png,sky; grass\na.png,road\nb.png,\nnone.png,sky\n")
    assert found["a.png"].tags == {"sky", "grass", "road"} and found["b.png"].tags == set()
    assert len(log.dropped) == 1 and "none.png" in log.dropped[0]["where"]
    found, _ = read("file_name,sky,grass\nsub/c.png,1,0\nb.png,,true\n")
    assert found["sub/c.png"].tags == {"sky"} and found["b.png"].tags == {"grass"}
    found, log = read(
        "image,x,y,width,height,tags\na.png,0,0,30,40,sky\na.png,30,0,30,40,sky|road\n"
    )
    assert found["a.png"].crop_tags == [
        ((0, 0, 30, 40), {"sky"}), ((30, 0, 30, 40), {"sky", "road"}),
    ]  # fmt: skip
    own = to_own_data(list(found.values()), log)
    assert [e["id"] for e in own["images"]] == [1]
    assert own["images"][0]["image_tags"] == [1, 2] and len(own["images"][0]["crop_tags"]) == 2
    for text, expected in (
        ("", "column"),
        ("name,tags\n", 'a column "image"'),
        ("image,x,tags\n", "x, y, width, height"),
        ("image,tags\na.png\n", "cells"),
        ("image,sky\na.png,maybe\n", "expected 0 or 1"),
        ("image,x,y,width,height,tags\na.png,0,0,nan,40,sky\n", "crop"),
        ("image,x,y,width,height,tags\na.png,50,0,30,40,sky\n", "leaves its image"),
        ("image,tags\n../../etc/passwd,sky\n", "leaves the image root"),
        ('image,tags\n"a.png,sky', "CSV"),
    ):
        with pytest.raises(InputError, match=expected):
            read(text)


def test_stuff_ignore_and_known_classes(photos, tmp_path):
    pictures = read_coco(write_coco(tmp_path, TRUTH, CLASSES), ImageIndex(photos), ImportLog())[0]
    log = ImportLog()
    own = to_own_data(pictures, log, stuff=["dog"])
    assert {c["name"]: c["isthing"] for c in own["categories"]} == {"cow": 1, "dog": 0}
    assert [e["image_tags"] for e in own["images"]] == [[2], [2], []]
    assert len(own["annotations"]) == 2 and len(log.changed) == 2
    own = to_own_data(pictures, ImportLog(), ignore=["dog"])
    assert [c["name"] for c in own["categories"]] == ["cow"]
    # ids of images stay, so that panoptic truth of the same images still fits
    assert {e["file_name"]: e["id"] for e in own["images"]} == {
        "a.png": 0, "b.png": 1, "sub/c.png": 2,
    }  # fmt: skip
    known = [{"id": 4, "name": "cow", "isthing": 1}, {"id": 9, "name": "sky", "isthing": 0}]
    log = ImportLog()
    own = to_own_data(pictures, log, known=known, fixed=True)
    assert [(c["id"], c["name"]) for c in own["categories"]] == [(4, "cow"), (9, "sky")]
    assert {d["why"] for d in log.dropped} == {'class "dog" is not known'}
    with pytest.raises(InputError, match="no such class; there are cow, dog"):
        to_own_data(pictures, ImportLog(), stuff=["dgo"])


def test_a_yolo_file_may_have_the_name_of_a_list(photos, tmp_path):
    """train.txt is a list of images, or the boxes of train.jpg."""
    draw(photos, {"train.jpg": (40, 20, []), "test.jpg": (40, 20, [])})
    (tmp_path / "train.txt").write_text("\n1 0.5 0.5 0.5 0.2\n")
    (tmp_path / "val.txt").write_text("photos/a.png\n")
    (tmp_path / "test.txt").write_text("photos/b c d e.png\n")
    (tmp_path / "classes.txt").write_text("dog\ncow\n")
    found = read_yolo(tmp_path, ImageIndex(photos), ImportLog(), classes=dict(enumerate(CLASSES)))
    assert [(p.file_name, p.boxes) for p in found] == [
        ("train.jpg", [("cow", 10.0, 8.0, 20.0, 4.0, False)])
    ]


def test_yolo_classes(tmp_path):
    def read(name, text):
        (tmp_path / name).write_text(text)
        return read_yolo_classes([tmp_path / name])

    assert read("classes.txt", "dog\ncow\n\n") == ({0: "dog", 1: "cow"}, None)
    assert read("data.yaml", "names: [dog, cow]") == ({0: "dog", 1: "cow"}, None)
    assert read("data.yaml", "names:\n  1: cow\n  0: dog\n") == ({0: "dog", 1: "cow"}, None)
    assert read("data.yaml", "names: {1: cow}")[0] == {1: "cow"}  # numbers may start anywhere
    assert read("data.yaml", "names: [yes, no, 1.0, null]")[0] == {
        0: "yes", 1: "no", 2: "1.0", 3: "null",
    }  # fmt: skip
    assert read("data.yaml", "names: [cow]\nkpt_shape: [17, 3]")[1] == (17, 3)
    for text in ("", "names: 3", "a: [", "!!python/object/apply:os.system ['true']",
                 "names: {dog: 0}", "names: [[dog]]", "names: [cow]\nkpt_shape: [3]"):  # fmt: skip
        with pytest.raises(InputError, match=r"data\.yaml"):
            read("data.yaml", text)
    (tmp_path / "data.yaml").write_text("names: [dog, cow]")
    (tmp_path / "classes.txt").write_text("cow\ndog\n")
    with pytest.raises(InputError, match=r"classes\.txt: has other classes than .*data\.yaml"):
        read_yolo_classes([tmp_path / "data.yaml", tmp_path / "classes.txt"])
