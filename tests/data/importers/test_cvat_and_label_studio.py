# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""CVAT's and Label Studio's own exports beyond plain boxes, and files of other tools, which are
named."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from wsis_d2.data.importers.coco import read_coco
from wsis_d2.data.importers.cvat import read_cvat
from wsis_d2.data.importers.image_index import ImageIndex
from wsis_d2.data.importers.import_log import ImportLog
from wsis_d2.data.importers.label_studio import read_label_studio
from wsis_d2.data.importers.own_data import to_own_data
from wsis_d2.data.importers.per_image import read_labelme, read_voc
from wsis_d2.data.importers.tags import read_tags_csv
from wsis_d2.utils.errors import InputError


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (100, 80)).save(tmp_path / "photos" / name)
    return ImageIndex(tmp_path / "photos")


def whys(entries):
    return sorted(entry["why"] for entry in entries)


# ---------------------------------------------------------------- CVAT for images

META = (
    "<version>1.1</version><meta><task><labels><label><name>cow</name><color>#ff0000</color>"
    "</label><label><name>yak</name></label><label><name>sky</name><type>tag</type></label><label>"
    "<name>horn</name><parent>cow</parent></label></labels></task></meta>"
)


def cvat(folder, body, name="a.png", size='width="100" height="80"', meta=META):
    text = f'<annotations>{meta}<image id="0" name="{name}" {size}>{body}</image></annotations>'
    (folder / "cvat.xml").write_text(text)
    return folder / "cvat.xml"


SHAPES = {  # shape -> its box, worked out by hand
    '<box label="cow" xtl="10" ytl="20" xbr="50" ybr="40" rotation="90.0"/>': (20, 10, 20, 40),
    '<polygon label="cow" points="10.5,20;30,25;12,60"/>': (10.5, 20, 19.5, 40),
    '<mask label="cow" rle="0, 1" left="3" top="4" width="5" height="6"/>': (3, 4, 5, 6),
    '<ellipse label="cow" cx="50" cy="40" rx="20" ry="10"/>': (30, 30, 40, 20),
    '<ellipse label="cow" cx="50" cy="40" rx="20" ry="10" rotation="90"/>': (40, 20, 20, 40),
    '<cuboid label="cow" xtl1="10" ytl1="20" xbl1="10" ybl1="40" xtr1="30" ytr1="21" xbr1="30" '
    'ybr1="42" xtl2="40" ytl2="15" xbl2="40" ybl2="35" xtr2="25" ytr2="14" xbr2="25" ybr2="33"/>':
        (10, 14, 30, 28),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_cvat_shapes(shape, photos, tmp_path):
    log = ImportLog()
    (picture,), _ = read_cvat(cvat(tmp_path, shape), photos, log)
    np.testing.assert_allclose(picture.boxes[0][1:5], SHAPES[shape], atol=1e-3)
    assert picture.boxes[0][0] == "cow" and len(log.changed) == 1 and not log.dropped


def test_cvat_classes_tags_and_what_has_no_area(photos, tmp_path):
    body = (
        '<box label="cow" xtl="10" ytl="20" xbr="50" ybr="40"/><tag label="sky"/>'
        '<points label="cow" points="1,2"/><polyline label="cow" points="1,2;3,4"/>'
        '<skeleton label="cow"><points label="horn" points="1,2"/></skeleton>'
    )
    log = ImportLog()
    pictures, known = read_cvat(cvat(tmp_path, body), photos, log)
    own = to_own_data(pictures, log, known=known)
    found = [(c["id"], c["name"], c["isthing"]) for c in own["categories"]]
    assert found == [(1, "cow", 1), (2, "yak", 1), (3, "sky", 0)]
    assert own["categories"][0]["color"] == [255, 0, 0]
    assert own["images"][0]["image_tags"] == [3] and len(own["annotations"]) == 1
    assert whys(log.dropped) == [f"{s} has no area" for s in ("points", "polyline", "skeleton")]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('<box label="cow" xtl="nan" ytl="2" xbr="5" ybr="6"/>', "box 0: its coordinates"),
        ('<box label="cow" xtl="1" ytl="2" xbr="5"/>', "box 0: its coordinates"),
        ('<polygon label="cow" points="1,2;3"/>', "polygon 0: its coordinates"),
        ('<box xtl="1" ytl="2" xbr="5" ybr="6"/>', "its class is null"),
        ('<tag/>', "its label is null"),
    ],
)  # fmt: skip
def test_cvat_broken_records(body, expected, photos, tmp_path):
    with pytest.raises(InputError, match=rf"cvat\.xml: image 0.*{expected}"):
        read_cvat(cvat(tmp_path, body), photos, ImportLog())
    log = ImportLog(keep_going=True)
    assert not read_cvat(cvat(tmp_path, body), photos, log)[0][0].boxes and len(log.dropped) == 1


def test_cvat_sizes_and_names(photos, tmp_path):
    body = '<box label="cow" xtl="10" ytl="20" xbr="50" ybr="40"/>'
    with pytest.raises(InputError, match="has 100 x 80 pixels, its annotation says 80 x 100"):
        read_cvat(cvat(tmp_path, body, size='width="80" height="100"'), photos, ImportLog())
    log = ImportLog()
    pictures, known = read_cvat(cvat(tmp_path, body, name="gone.png"), photos, log)
    with pytest.raises(InputError, match="no image is left to import: dropped 1 x image: no image"):
        to_own_data(pictures, log, known=known)
    bomb = '<!DOCTYPE a [<!ENTITY a "ha">]>'
    (tmp_path / "cvat.xml").write_text(bomb + cvat(tmp_path, body).read_text())
    with pytest.raises(InputError, match="document type or entities"):
        read_cvat(tmp_path / "cvat.xml", photos, ImportLog())


# ---------------------------------------------------------------- Label Studio


def task(*result, image="/data/upload/1/0123abcd-a.png", **more):
    return {"id": 5, "data": {"image": image}, "annotations": [{"result": list(result)}], **more}


def region(kind, labels="cow", **value):
    return {"id": "r", "type": f"{kind}labels", "original_width": 100, "original_height": 80,
            "value": {**value, f"{kind}labels": [labels]}}  # fmt: skip


def tasks(folder, *content):
    (folder / "tasks.json").write_text(json.dumps(content))
    return folder / "tasks.json"


def pack(values, word=8, lengths=(4, 8, 12, 16)):
    """Bits of Label Studio's run lengths, written from the format's description."""
    bits = f"{len(values):032b}{word - 1:05b}" + "".join(f"{n - 1:04b}" for n in lengths)
    start = 0
    while start < len(values):
        stop = start
        while stop < len(values) and values[stop] == values[start] and stop - start < 4096:
            stop += 1
        if stop - start > 1:
            bits += f"1{2:02b}{stop - start - 1:012b}{values[start]:08b}"
        else:  # single values
            bits += f"0{0:02b}{0:04b}{values[start]:08b}"
        start = stop
    bits += "0" * (-len(bits) % 8)
    return [int(bits[k : k + 8], 2) for k in range(0, len(bits), 8)]


def brush():
    mask = np.zeros((80, 100), np.uint8)
    mask[12:30, 40:55] = 255
    mask[12, 41] = 0  # runs of one pixel
    return pack(np.repeat(mask.reshape(-1), 4).tolist())


# A 40 x 20 pixel rectangle turned by 90 degrees about its first corner (50, 20): columns 30 to 50.
REGIONS = {
    "turned": (region("rectangle", x=50, y=25, width=40, height=25, rotation=90), (30, 20, 20, 40)),
    "polygon": (region("polygon", points=[[10, 25], [30, 50], [20, 75]]), (10, 20, 20, 40)),
    "ellipse": (region("ellipse", x=50, y=50, radiusX=20, radiusY=12.5, rotation=90),
                (40, 20, 20, 40)),
    "brush": (region("brush", format="rle", rle=brush()), (40, 12, 15, 18)),
    "labels": ({"id": "r", "type": "labels", "value": {
        "x": 10, "y": 25, "width": 20, "height": 50, "labels": ["cow"]}}, (10, 20, 20, 40)),
}  # fmt: skip


@pytest.mark.parametrize("kind", REGIONS)
def test_label_studio_regions(kind, photos, tmp_path):
    entry, box = REGIONS[kind]
    log = ImportLog()
    (picture,) = read_label_studio(tasks(tmp_path, task(entry)), photos, log)
    np.testing.assert_allclose(picture.boxes[0][1:5], box, atol=1e-3)
    assert picture.boxes[0][0] == "cow" and not log.dropped


def test_label_studio_turn_against_a_rotation_matrix(photos, tmp_path):
    entry = region("rectangle", x=30, y=30, width=30, height=20, rotation=25)
    (picture,) = read_label_studio(tasks(tmp_path, task(entry)), photos, ImportLog())
    angle = math.radians(25)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    corners = np.array([[0, 0], [30, 0], [30, 16], [0, 16]]) @ turn.T + [30, 24]
    low, high = corners.min(0), corners.max(0)
    np.testing.assert_allclose(picture.boxes[0][1:5], [*low, *(high - low)], atol=1e-3)


def test_label_studio_choices_annotators_and_what_is_left_out(photos, tmp_path):
    first = region("rectangle", x=10, y=25, width=20, height=50)
    second = region("rectangle", "dog", x=10, y=25, width=20, height=50)
    choices = {"type": "choices", "value": {"choices": ["sky", "grass"]}}
    of_region = {"type": "choices", "value": {"x": 1, "choices": ["brown"]}}
    bare = {"id": "q", "type": "rectangle", "value": {"x": 1, "y": 1, "width": 9, "height": 9}}
    keypoint = region("keypoint", x=1, y=1)
    relation = {"type": "relation", "from_id": "r", "to_id": "r"}
    several = task()
    several["annotations"] = [
        {"result": [second]},
        {"result": [first, choices, of_region, bare, keypoint, relation], "ground_truth": True},
        {"result": [second], "was_cancelled": True},
    ]
    empty = {"id": 6, "data": {"image": "b.png"}, "annotations": []}
    log = ImportLog()
    (picture,) = read_label_studio(tasks(tmp_path, several, empty), photos, log)
    assert [b[0] for b in picture.boxes] == ["cow"] and picture.tags == {"sky", "grass"}
    assert whys(log.dropped) == [
        'a "rectangle" has no label', "a keypoint has no box that is read",
        "is the choice of a region, no tag of the image",
        "the task has several, the ground truth is taken", "was skipped or is not annotated",
    ]  # fmt: skip


BROKEN = {
    "numbers": (region("rectangle", x=math.nan, y=1, width=2, height=3), "impossible numbers"),
    "polygon": (region("polygon", points=[[1]]), "impossible numbers"),
    "brush size": (region("brush", rle=pack([255] * 40)), "impossible numbers"),
    "brush cut": (region("brush", rle=brush()[:20]), "impossible numbers"),
    "turned image": ({**region("rectangle", x=1, y=1, width=9, height=9), "image_rotation": 90},
                     "was turned"),
    "value": ({"type": "rectanglelabels"}, "no value"),
    "label": (region("rectangle", 3, x=1, y=1, width=9, height=9), "its class is 3"),
    "choice": ({"type": "choices", "value": {"choices": [3]}}, "choice 3"),
    "size": ({**region("rectangle", x=1, y=1, width=9, height=9), "original_width": 80},
             "has 100 x 80 pixels"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_label_studio_broken_records(case, photos, tmp_path):
    entry, expected = BROKEN[case]
    with pytest.raises(InputError, match=rf"tasks\.json: task 5.*{expected}") as error:
        read_label_studio(tasks(tmp_path, task(entry)), photos, ImportLog())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("keys", [("left", "right"), ("name", "image"), ("image", "name")])
def test_label_studio_tasks_of_two_images(keys, photos, tmp_path):
    """Nothing tells on which of them a region was drawn."""
    both = task(region("rectangle", x=10, y=10, width=9, height=9))
    both["data"] = dict(zip(keys, ("a.png", "b.png"), strict=True))
    with pytest.raises(InputError, match="task 5: .*a.png and to b.png, expected one image"):
        read_label_studio(tasks(tmp_path, both), photos, ImportLog())
    both["data"] = dict.fromkeys(keys, "b.png")
    (picture,) = read_label_studio(tasks(tmp_path, both), photos, ImportLog())
    assert picture.file_name == "b.png"


# ---------------------------------------------------------------- files of other tools

COCO = {"images": [], "categories": [], "annotations": []}
VIA_REGION = {"filename": "a.png", "size": 1, "regions": [], "file_attributes": {}}
FOREIGN = {
    "Supervisely": ({"description": "", "tags": [], "size": {"height": 80, "width": 100},
                     "objects": []}, "Supervisely.*Export to COCO"),
    "Supervisely meta": ({"classes": [], "tags": []}, "Supervisely.*Export to COCO"),
    "Darwin": ({"version": "2.0", "item": {"name": "a.png"}, "annotations": []},
               "Darwin.*as COCO"),
    "VIA project": ({"_via_settings": {}, "_via_img_metadata": {"a": VIA_REGION}},
                    "VIA.*COCO format"),
    "VIA": ({"a.png1": VIA_REGION}, "VIA.*COCO format"),
    "CreateML": ([{"image": "a.png", "annotations": [{"label": "cow", "coordinates": {}}]}],
                 "CreateML.*Pascal VOC or YOLO"),
    "Label Studio": ([task()], "Label Studio JSON; read it with: .*labelstudio"),
    "JSON-MIN": ([{"image": "a.png", "id": 1, "annotation_id": 3, "label": []}],
                 'JSON-MIN; export "JSON"'),
    "Datumaro": ({"info": {}, "categories": {}, "items": []}, "Datumaro.*COCO 1.0"),
    "labelme": ({"shapes": [], "imagePath": "a.png"}, "labelme JSON; read it with"),
    "panoptic": ({**COCO, "annotations": [{"segments_info": []}]}, "panoptic.*export instances"),
    "COCO": (COCO, "COCO JSON; read it with"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("case", "reader"),
    [(case, reader) for case in FOREIGN for reader in ("COCO", "labelme", "Label Studio")
     if case != reader],
)  # fmt: skip
def test_other_tools_json_is_named(case, reader, photos, tmp_path):
    content, expected = FOREIGN[case]
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"a\.json: .*{expected}") as error:
        if reader == "COCO":
            read_coco(folder / "a.json", photos, ImportLog())
        elif reader == "labelme":
            read_labelme(folder, photos, ImportLog())
        else:
            read_label_studio(folder / "a.json", photos, ImportLog())
    assert "\n" not in str(error.value)


def test_other_tools_xml_and_csv_are_named(photos, tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    cvat(folder, "")
    with pytest.raises(InputError, match='"CVAT for images" XML; read it with: .* cvat'):
        read_voc(folder, photos, ImportLog())
    (folder / "cvat.xml").write_text("<annotation/>")
    with pytest.raises(InputError, match="Pascal VOC XML; read it with: .* voc"):
        read_cvat(folder, photos, ImportLog())
    (folder / "cvat.xml").write_text('<annotations><track id="0"/></annotations>')
    for read in (read_voc, read_cvat):
        with pytest.raises(InputError, match='export "CVAT for images 1.1" instead'):
            read(folder, photos, ImportLog())
    (folder / "via.csv").write_text("filename,file_size,region_shape_attributes\na.png,1,{}\n")
    with pytest.raises(InputError, match="VIA.*COCO format"):
        read_tags_csv(folder / "via.csv", [], photos, ImportLog())
    with pytest.raises(InputError, match=r"no \.json file in it, but 1 \.xml"):
        (folder / "via.csv").unlink()
        read_labelme(folder, photos, ImportLog())
