# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Hostile files of annotation tools, and images that cannot be: one line names what is wrong."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from wsis_d2.data.importers.coco import read_coco
from wsis_d2.data.importers.image_index import ImageIndex
from wsis_d2.data.importers.import_log import ImportLog
from wsis_d2.data.importers.label_studio import read_label_studio
from wsis_d2.data.importers.own_data import to_own_data
from wsis_d2.data.importers.per_image import read_labelme, read_voc
from wsis_d2.data.importers.yolo import read_yolo
from wsis_d2.utils.errors import InputError

CLASSES = ["dog", "cow"]


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, size in (("a.png", (60, 40)), ("b.png", (50, 70))):
        Image.fromarray(np.full((*size[::-1], 3), 90, np.uint8)).save(folder / name)
    return folder


BOMB = (
    '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">'
    '<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">]>'
    "<annotation><filename>&c;</filename></annotation>"
)
LEAK = (
    '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    "<annotation><filename>&x;</filename></annotation>"
)
VOC = "<annotation><filename>%s</filename><object><name>cow</name><bndbox><xmin>%s</xmin>" \
      "<ymin>2</ymin><xmax>30</xmax><ymax>20</ymax></bndbox></object></annotation>"  # fmt: skip
LABELME = '{"imagePath": "a.png", "shapes": [{"label": "cow", "points": %s}]}'
HOSTILE_FILES = {
    "bomb": ("xml", BOMB, "document type or entities"),
    "entity that reads a file": ("xml", LEAK, "document type or entities"),
    "bomb in UTF-16": ("xml", BOMB.encode("utf-16"), "document type or entities"),
    "XML cut off": ("xml", VOC[:60], "cut off"),
    "XML empty": ("xml", "", "cut off"),
    "XML of something else": ("xml", "<kml/>", "expected VOC's"),
    "XML binary": ("xml", b"\x00\xff\xfe", "no valid XML"),
    "VOC NaN": ("xml", VOC % ("a.png", "nan"), "finite"),
    "VOC word": ("xml", VOC % ("a.png", "left"), "finite"),
    "VOC missing corner": ("xml", "<annotation><object><name>c</name></object></annotation>",
                           "finite"),
    "YOLO NaN": ("txt", "0 nan 0.5 0.1 0.1", "expected class cx cy w h"),
    "YOLO short": ("txt", "0 0.5 0.5", "expected class cx cy w h"),
    "YOLO class": ("txt", "7 0.5 0.5 0.1 0.1", "class 7 is none of 2"),
    "YOLO class NaN": ("txt", "nan 0.5 0.5 0.1 0.1", "class nan is none"),
    "YOLO pixels": ("txt", "0 30 20 10 10", "not relative"),
    "YOLO huge": ("txt", "0 1e308 0.5 1e308 0.1", "not relative"),
    "YOLO binary": ("txt", b"\xff\xfe\x00", "a.txt"),
    "labelme cut off": ("json", LABELME[:30], "cut off"),
    "labelme list": ("json", "[]", "no labelme file"),
    "labelme NaN": ("json", LABELME % "[[NaN, 1], [2, 3]]", "finite"),
    "labelme huge": ("json", LABELME % ("[[1, 1], [2, 1" + "0" * 400 + "]]"), "finite"),
    "labelme points": ("json", LABELME % '"all"', "finite"),
    "labelme point": ("json", LABELME.replace('"label"', '"shape_type": "point", "label"') % 5,
                      "finite"),
    "labelme nested": ("json", "[" * 100000, "nested|cut off"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE_FILES)
def test_hostile_files_are_named(case, photos, tmp_path):
    suffix, text, expected = HOSTILE_FILES[case]
    folder = tmp_path / "notes"
    folder.mkdir()
    data = text if isinstance(text, bytes) else text.encode()
    (folder / f"a.{suffix}").write_bytes(data)

    def read(log):
        images = ImageIndex(photos)
        if suffix == "xml":
            return read_voc(folder, images, log)
        if suffix == "txt":
            return read_yolo(folder, images, log, classes=dict(enumerate(CLASSES)))
        return read_labelme(folder, images, log)

    with pytest.raises(InputError, match=expected) as error:
        read(ImportLog())
    message = str(error.value)
    assert f"a.{suffix}" in message and "\n" not in message and len(message) < 600
    log = ImportLog(keep_going=True)
    assert all(not p.boxes for p in read(log)) and len(log.dropped) == 1


COCO = {"images": [{"id": 1, "file_name": "a.png", "width": 60, "height": 40}],
        "categories": [{"id": 1, "name": "cow"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}]}  # fmt: skip
HOSTILE_COCO = {
    "traversal": (("images", "file_name", "../../etc/passwd"), "leaves the image root"),
    "absolute": (("images", "file_name", "/etc/passwd"), "leaves the image root"),
    "name": (("images", "file_name", 3), "expected text"),
    "size": (
        ("images", "width", 61),
        "a.png has 60 x 40 pixels, its annotation says 61 x 40",
    ),
    "image id": (("images", "id", []), "with an id"),
    "image id without end": (("images", "id", "a" * 300), "with an id"),
    "image id of half a character": (("images", "id", "\ud800"), "with an id"),
    "image id that is no number": (("images", "id", True), "with an id"),
    "crop tags": (("images", "crop_tags", 16), "crop 16: expected box and tags"),
    "box NaN": (("annotations", "bbox", [math.nan, 1, 2, 3]), "finite"),
    "box huge": (("annotations", "bbox", [10**400, 1, 2, 3]), "finite"),
    "box text": (("annotations", "bbox", "1 2 3 4"), "finite"),
    "image": (("annotations", "image_id", 2), "image_id 2"),
    "image list": (("annotations", "image_id", [1]), "image_id"),
    "class": (("annotations", "category_id", 2), "category_id 2"),
    "class name": (("categories", "name", ""), "name"),
    "class id": (("categories", "id", "1"), "id"),
}


@pytest.mark.parametrize("case", HOSTILE_COCO)
def test_hostile_coco_is_named(case, photos, tmp_path):
    (section, key, value), expected = HOSTILE_COCO[case]
    content = json.loads(json.dumps(COCO))
    content[section][0][key] = value
    (tmp_path / "coco.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=expected):
        read_coco(tmp_path / "coco.json", ImageIndex(photos), ImportLog())


@pytest.mark.parametrize("turns", [0, 1, 10**6])
def test_turned_boxes_of_voc_may_turn_around_many_times(photos, tmp_path, turns):
    angle = math.radians(90) + 2 * math.pi * turns
    values = {"cx": 20, "cy": 15, "w": 10, "h": 4, "angle": angle}
    inner = "".join(f"<{k}>{v!r}</{k}>" for k, v in values.items())
    text = f"<annotation><object><name>cow</name><robndbox>{inner}</robndbox></object></annotation>"
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.xml").write_text(text)
    (picture,) = read_voc(tmp_path / "notes", ImageIndex(photos), ImportLog())
    assert picture.boxes[0][1:5] == pytest.approx((18, 10, 4, 10), abs=1e-3)
    (tmp_path / "notes" / "a.xml").write_text(text.replace(repr(angle), "1e308"))
    (picture,) = read_voc(tmp_path / "notes", ImageIndex(photos), ImportLog())
    assert len(picture.boxes) == 1


def test_boxes_and_names_that_mean_nothing_are_passed_over(photos, tmp_path):
    """A box whose width has no digits left, a parent that is no name, an image called NUL."""
    content = json.loads(json.dumps(COCO))
    content["annotations"].append({"image_id": 1, "category_id": 1, "bbox": [1, 2, 1e-6, 4]})
    content["categories"][0]["supercategory"] = math.inf
    (tmp_path / "coco.json").write_text(json.dumps(content))
    log = ImportLog()
    pictures, categories = read_coco(tmp_path / "coco.json", ImageIndex(photos), log)
    assert [p.boxes for p in pictures] == [[("cow", 1, 2, 3, 4, False)]]
    assert [entry["why"] for entry in log.dropped] == ["no area"]
    json.dumps(to_own_data(pictures, log, known=categories), allow_nan=False)
    (tmp_path / "notes").mkdir()
    text = LABELME.replace("a.png", "\\u0000") % "[[1, 1], [2, 3]]"
    (tmp_path / "notes" / "a.json").write_text(
        text.replace('"label"', '"shape_type": "rectangle", "label"')
    )
    found = read_labelme(tmp_path / "notes", ImageIndex(photos), ImportLog())
    assert [p.file_name for p in found] == ["a.png"] and len(found[0].boxes) == 1


@pytest.mark.parametrize("region", [{"id": {"id": 8}}, {"id": ["a"]}, {"id": "a" * 3000}])
def test_label_studio_ids_may_be_anything(photos, tmp_path, region):
    value = {"x": 10, "y": 10, "width": 20, "height": 20, "rectanglelabels": ["cow"]}
    result = [{"type": "rectanglelabels", "value": value, **region}]
    task = {**region, "data": {"image": "a.png"}, "annotations": [{"result": result}]}
    (tmp_path / "tasks.json").write_text(json.dumps([task]))
    found = read_label_studio(tmp_path / "tasks.json", ImageIndex(photos), ImportLog())
    assert [len(p.boxes) for p in found] == [1]
    task["annotations"] = []
    (tmp_path / "tasks.json").write_text(json.dumps([task]))
    log = ImportLog()
    assert read_label_studio(tmp_path / "tasks.json", ImageIndex(photos), log) == []
    assert all(len(line) < 500 for line in log.lines())


@pytest.mark.parametrize("twin", [1, "1", "000000000001"])
def test_ids_that_name_one_file_of_labels_are_refused(photos, tmp_path, twin):
    content = json.loads(json.dumps(COCO))
    content["images"].append({"id": twin, "file_name": "b.png"})
    (tmp_path / "coco.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"images\[1\]: id .* is used twice"):
        read_coco(tmp_path / "coco.json", ImageIndex(photos), ImportLog())


def test_bad_images_are_named(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\x00" * 20)
    (photos / "b.png").write_bytes(_png_header(60000, 60000))
    (photos / "c.png").write_bytes(_png_header(70000, 2))
    images = ImageIndex(photos)
    for name in ("a.png", "b.png", "c.png"):
        with pytest.raises(InputError, match=name):
            images.picture(name, "test", ImportLog())
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no image"):
        ImageIndex(tmp_path / "empty")
    with pytest.raises(InputError, match="no such folder"):
        ImageIndex(tmp_path / "none")


def _png_header(width, height):
    """The start of a PNG that claims a size; its pixels are not there."""
    import struct
    import zlib

    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + b"\x35\xaf\x06\x1e"
