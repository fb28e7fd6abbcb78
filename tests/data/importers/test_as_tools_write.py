# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""What annotation tools and people write otherwise than the formats say: read as it is meant and
counted, or refused in one line.

Class names, tags and names of images have files of their own.
"""

import json

import numpy as np
import pytest
from helpers.annotation_writers import (
    coco_pair,
    draw_pictures,
    write_coco,
    write_labelme,
    write_voc,
    write_yolo,
)

from wsis_d2.data.importers.coco import read_coco
from wsis_d2.data.importers.image_index import ImageIndex
from wsis_d2.data.importers.import_log import ImportLog
from wsis_d2.data.importers.own_data import to_own_data
from wsis_d2.data.importers.per_image import read_labelme, read_voc
from wsis_d2.data.importers.yolo import read_yolo, read_yolo_classes
from wsis_d2.utils.errors import InputError


def whys(entries):
    return sorted(entry["why"] for entry in entries)


# ---------------------------------------------------------------- boxes


@pytest.mark.parametrize("tool", ["coco", "voc", "labelme"])
def test_boxes_of_0_to_1_are_no_pixels(tool, photos, tmp_path):
    boxes = {"a.png": (100, 80, [("cow", 0.25, 0.5, 0.25, 0.25)])}
    with pytest.raises(InputError, match=r"\[0\.25, 0\.5, 0\.5, 0\.75\] are relative.*pixels"):
        if tool == "coco":
            read_coco(write_coco(tmp_path, boxes, ["cow"]), photos, ImportLog())
        elif tool == "voc":
            read_voc(write_voc(tmp_path, boxes, edges=True), photos, ImportLog())
        else:
            read_labelme(write_labelme(tmp_path, boxes), photos, ImportLog())


def test_a_voc_box_of_one_pixel_is_no_relative_box(photos, tmp_path):
    folder = write_voc(tmp_path, {"a.png": (100, 80, [("cow", 0, 0, 1, 1)])}, edges=False)
    (picture,) = read_voc(folder, photos, ImportLog())
    assert picture.boxes == [("cow", 0, 0, 1, 1, False)]


def test_corners_given_as_sides_are_told_not_clipped(photos, tmp_path):
    corners = [{"bbox": [60, 40, 90, 70]}, {"bbox": [10, 5, 40, 30]}]
    path = coco_pair(tmp_path, corners)
    with pytest.raises(InputError, match=r"1 of 2 boxes .* --bbox xyxy or --bbox xywh"):
        read_coco(path, photos, ImportLog())
    first, _ = read_coco(path, photos, ImportLog(), bbox="xyxy")[0]
    assert [b[1:5] for b in first.boxes] == [(60, 40, 30, 30), (10, 5, 30, 25)]
    log = ImportLog()
    first, _ = read_coco(path, photos, log, bbox="xywh")[0]
    assert [b[1:5] for b in first.boxes] == [(60, 40, 40, 40), (10, 5, 40, 30)]
    assert whys(log.changed) == ["more than a pixel outside the image, clipped"]
    # Nothing leaves the image, but the polygons say what the numbers are.
    polygon = [[10, 5, 40, 5, 40, 30]]
    with pytest.raises(InputError, match="--bbox"):
        read_coco(coco_pair(tmp_path, [{"bbox": [10, 5, 40, 30], "segmentation": polygon}]), photos,
                  ImportLog())  # fmt: skip
    # One sloppy box among boxes that are impossible as corners is clipped as before.
    sides = [{"bbox": [60, 40, 45, 30]}, {"bbox": [60, 40, 30, 30]}]
    first, _ = read_coco(coco_pair(tmp_path, sides), photos, ImportLog())[0]
    assert [b[1:5] for b in first.boxes] == [(60, 40, 40, 30), (60, 40, 30, 30)]


def test_yolo_corners_given_as_sides(photos, tmp_path):
    (tmp_path / "yolo").mkdir()
    (tmp_path / "yolo" / "a.txt").write_text("0 0.6 0.5 0.9 0.75\n")
    with pytest.raises(InputError, match="--bbox"):
        read_yolo(tmp_path / "yolo", photos, ImportLog(), classes={0: "cow"})
    (picture,) = read_yolo(tmp_path / "yolo", photos, ImportLog(), classes={0: "cow"}, bbox="xyxy")
    assert picture.boxes == [("cow", 60, 40, 30, 20, False)]


def test_a_box_without_area_is_taken_from_its_polygon(photos, tmp_path):
    polygon = [[10, 5, 40, 5, 40, 30]]
    log = ImportLog()
    path = coco_pair(tmp_path, [{"bbox": [0, 0, 0, 0], "segmentation": polygon}])
    first, _ = read_coco(path, photos, log)[0]
    assert first.boxes == [("cow", 10, 5, 30, 25, False)] and len(log.changed) == 1


def test_copies_of_boxes_are_counted(photos, tmp_path):
    box = {"bbox": [10, 5, 30, 20]}
    other = {"bbox": [10, 5, 30, 20], "category_id": 4}
    categories = [{"id": 3, "name": "cow"}, {"id": 4, "name": "ox"}]
    path = coco_pair(tmp_path, [box, box, {"bbox": [10, 5, 30, 21]}, other], categories=categories)
    log = ImportLog()
    pictures, known = read_coco(path, photos, log)
    own = to_own_data(pictures, log, known=known)
    assert [(a["category_id"], a["bbox"][3]) for a in own["annotations"]] == [
        (3, 20), (3, 21), (4, 20),
    ]  # fmt: skip
    assert whys(log.dropped) == ['a copy of another box of "cow"']
    assert whys(log.changed) == ['"cow" and "ox" have the same corners, both kept']


VOC_BOXES = [("cow", 10 * k, 10, 8, 9) for k in range(1, 9)]


def test_one_fraction_or_zero_moves_no_voc_folder(photos, tmp_path):
    """Seven boxes of VOC's own numbering, of which one has a fraction (as VOC 2012 has)."""
    boxes = [("cow", 0, 20, 8, 9), *VOC_BOXES]  # the first touches the left edge: xmin is 1
    folder = write_voc(tmp_path, {"a.png": (100, 80, boxes)}, edges=False)
    text = (folder / "a.xml").read_text()
    for changed in (text, text.replace("<ymax>29</ymax>", "<ymax>29.2</ymax>"),
                    text.replace("<xmin>21</xmin>", "<xmin>0</xmin>")):  # fmt: skip
        (folder / "a.xml").write_text(changed)
        log = ImportLog()
        (picture,) = read_voc(folder, photos, log)
        assert picture.boxes[1] == ("cow", 10, 10, 8, 9, False)
        assert picture.boxes[8] == ("cow", 80, 10, 8, 9, False)
        assert "inclusive" in log.notes[0] and "of 9 boxes" in log.notes[0]
    assert whys(log.changed) == ["starts at 0 in a folder that numbers pixels from 1"]
    # Fractions everywhere, as CVAT writes them, are edges.
    halves = [("cow", x + 0.5, y + 0.25, w, h) for _, x, y, w, h in VOC_BOXES]
    folder = write_voc(tmp_path, {"a.png": (100, 80, halves)}, edges=True)
    (picture,) = read_voc(folder, photos, ImportLog())
    assert [b[1:5] for b in picture.boxes] == [b[1:] for b in halves]


def test_turned_boxes_of_voc_and_labelme(photos, tmp_path):
    """A 40 x 20 box about (50, 40), turned by 90 degrees: 20 x 40."""
    (tmp_path / "voc").mkdir()
    (tmp_path / "voc" / "a.xml").write_text(
        "<annotation><object><name>cow</name><robndbox><cx>50</cx><cy>40</cy><w>40</w><h>20</h>"
        f"<angle>{np.pi / 2}</angle></robndbox></object></annotation>"
    )
    (picture,) = read_voc(tmp_path / "voc", photos, ImportLog())
    np.testing.assert_allclose(picture.boxes[0][1:5], [40, 20, 20, 40], atol=1e-3)
    folder = write_labelme(tmp_path, {"a.png": (100, 80, [])})
    content = json.loads((folder / "a.json").read_text())
    diamond = [[50, 20], [70, 40], [50, 60], [30, 40]]
    for kind in ("oriented_rectangle", "rotation", "quadrilateral"):
        content["shapes"] = [{"label": "cow", "points": diamond, "shape_type": kind}]
        (folder / "a.json").write_text(json.dumps(content))
        (picture,) = read_labelme(folder, photos, ImportLog())
        assert picture.boxes == [("cow", 30, 20, 40, 40, False)]


# ---------------------------------------------------------------- groups


def test_groups_are_counted_and_may_be_objects(photos, tmp_path):
    """CVAT's brush masks: iscrowd 1 with run lengths."""
    brush = {"bbox": [10, 5, 30, 20], "iscrowd": 1,
             "segmentation": {"counts": [8000], "size": [80, 100]}}  # fmt: skip
    path = coco_pair(tmp_path, [brush])
    for options, crowd in (({}, True), ({"crowds_as_objects": True}, False)):
        log = ImportLog()
        first, _ = read_coco(path, photos, log, **options)[0]
        assert first.boxes == [("cow", 10, 5, 30, 20, crowd)]
        assert whys(log.changed) == ([] if crowd else ["a group (iscrowd), taken as an object"])


@pytest.mark.parametrize(
    ("written", "crowd"),
    [("1", True), ("0", False), (1.0, True), (True, True), ("false", False), (None, False)],
)
def test_iscrowd_as_text(written, crowd, photos, tmp_path):
    path = coco_pair(tmp_path, [{"bbox": [10, 5, 30, 20], "iscrowd": written}])
    first, _ = read_coco(path, photos, ImportLog())[0]
    assert first.boxes[0][5] is crowd


def test_iscrowd_of_another_kind_is_refused(photos, tmp_path):
    path = coco_pair(tmp_path, [{"bbox": [10, 5, 30, 20], "iscrowd": "many"}])
    with pytest.raises(InputError, match='iscrowd is "many", expected 0 or 1'):
        read_coco(path, photos, ImportLog())


def test_voc_difficult_as_text(photos, tmp_path):
    folder = write_voc(tmp_path, {"b.png": (100, 80, [("cow", 10, 10, 20, 20)])}, edges=False)
    text = (folder / "b.xml").read_text()
    (folder / "b.xml").write_text(text.replace("<bndbox>", "<difficult>True</difficult><bndbox>"))
    (picture,) = read_voc(folder, photos, ImportLog(), difficult="crowd")
    assert picture.boxes[0][5] is True


# ---------------------------------------------------------------- YOLO lines


def yolo_folder(folder, *lines):
    (folder / "yolo").mkdir(exist_ok=True)
    (folder / "yolo" / "a.txt").write_text("\n".join(lines))
    return folder / "yolo"


# Box [40, 18, 20, 24] of a 100 x 80 image, key points at (45, 25), (55, 36).
POSE = "0 0.5 0.375 0.2 0.3 0.45 0.3125 0.55 0.45"
POSE_SEEN = "0 0.5 0.375 0.2 0.3 0.45 0.3125 2 0.55 0.45 1"


@pytest.mark.parametrize(
    ("line", "options"),
    [
        (POSE, {"key_points": (2, 2)}),
        (POSE, {"lines": "pose"}),
        (POSE_SEEN, {"key_points": (2, 3)}),
        (POSE_SEEN, {}),  # 0, 1, 2 at every third place tell
    ],
)
def test_yolo_poses_give_their_box(line, options, photos, tmp_path):
    log = ImportLog()
    folder = yolo_folder(tmp_path, line)
    (picture,) = read_yolo(folder, photos, log, classes={0: "cow"}, **options)
    assert picture.boxes == [("cow", 40, 18, 20, 24, False)]
    assert whys(log.changed) == ["a pose, taken by its box"]


def test_yolo_lines_that_may_be_both_are_asked_for(photos, tmp_path):
    folder = yolo_folder(tmp_path, POSE)
    with pytest.raises(InputError, match="kpt_shape with --classes, or say --lines"):
        read_yolo(folder, photos, ImportLog(), classes={0: "cow"})
    (picture,) = read_yolo(folder, photos, ImportLog(), classes={0: "cow"}, lines="polygon")
    np.testing.assert_allclose(picture.boxes[0][1:5], [20, 24, 35, 12])
    with pytest.raises(InputError, match="9 values; expected 56 of a pose"):
        read_yolo(folder, photos, ImportLog(), classes={0: "cow"}, key_points=(17, 3))


def test_yolo_turned_boxes_and_polygons_are_no_poses(photos, tmp_path):
    turned = ["0 0.5 0.25 0.7 0.5 0.5 0.75 0.3 0.5"]
    (picture,) = read_yolo(yolo_folder(tmp_path, *turned), photos, ImportLog(), classes={0: "cow"})
    np.testing.assert_allclose(picture.boxes[0][1:5], [30, 20, 40, 40])
    polygons = ["0 0.1 0.1 0.3 0.1 0.3 0.3 0.1 0.3 0.05 0.2", "0 0.1 0.1 0.3 0.1 0.3 0.3"]
    (picture,) = read_yolo(
        yolo_folder(tmp_path, *polygons), photos, ImportLog(), classes={0: "cow"}
    )
    np.testing.assert_allclose(
        [b[1:5] for b in picture.boxes], [[5, 8, 25, 16], [10, 8, 20, 16]], atol=1e-9
    )


def test_yolo_class_numbers_that_start_at_1(photos, tmp_path):
    folder = write_yolo(tmp_path, {"a.png": (100, 80, [("cow", 10, 8, 20, 16)])}, ["none", "cow"])
    (picture,) = read_yolo(folder, photos, ImportLog(), classes={1: "cow"})
    assert picture.boxes == [("cow", 10, 8, 20, 16, False)]
    with pytest.raises(InputError, match="class 1 is none"):
        read_yolo(folder, photos, ImportLog(), classes={0: "cow"})


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("classes.txt", "cow\n\ndog\n", r"classes\.txt: line 2 is empty"),
        ("obj.names", "\ncow\ndog\n", r"obj\.names: line 1 is empty"),
        ("data.yaml", "nc: 3\nnames: [cow, dog]\n", r"data\.yaml: nc is \"3\".* 2 names"),
    ],
)
def test_yolo_class_numbers_that_may_have_slipped(name, text, expected, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=expected):
        read_yolo_classes([tmp_path / name])
    (tmp_path / name).write_text(text.strip().replace("\n\n", "\n").replace("3", "2") + "\n\n")
    assert read_yolo_classes([tmp_path / name])[0] == {0: "cow", 1: "dog"}


def test_yolo_folders_that_a_notebook_has_added_are_no_second_meaning(tmp_path):
    """As public notebooks change the file for a training; names that are there twice are one."""
    path = tmp_path / "data.yaml"
    text = "train: ../train/images\nval: ../valid/images\n\nnc: 2\nnames: ['cow', 'dog']\n"
    path.write_text(f"{text}test: ../test/images\ntrain: ../train/images\nval: ../valid/images\n")
    assert read_yolo_classes([path])[0] == {0: "cow", 1: "dog"}
    path.write_text(f"{text}names: ['dog', 'cow']\n")
    with pytest.raises(InputError, match="line 6: names is there twice"):
        read_yolo_classes([path])


# ---------------------------------------------------------------- nothing left


@pytest.mark.parametrize("tool", ["coco", "voc", "yolo", "labelme"])
def test_with_a_wrong_folder_of_images_its_name_is_what_one_reads(tool, tmp_path):
    other = draw_pictures(tmp_path / "holiday", "x.png")
    truth = {f"{n}.png": (100, 80, [("cow", 10, 8, 20, 16)]) for n in "abc"}
    log, known = ImportLog(), None
    if tool == "coco":
        pictures, known = read_coco(write_coco(tmp_path, truth, ["cow"]), other, log)
    elif tool == "voc":
        pictures = read_voc(write_voc(tmp_path, truth, True), other, log)
    elif tool == "yolo":
        pictures = read_yolo(write_yolo(tmp_path, truth, ["cow"]), other, log, classes={0: "cow"})
        known = [{"id": 1, "name": "cow"}]
    else:
        pictures = read_labelme(write_labelme(tmp_path, truth), other, log)
    with pytest.raises(InputError) as error:
        to_own_data(pictures, log, known=known)
    message = str(error.value)
    assert message.startswith("no image is left to import: dropped 3 x image: no image of ")
    assert f"under --images {tmp_path / 'holiday'} (" in message and "a." in message
    assert "\n" not in message


def test_when_every_box_was_dropped_the_reasons_are_what_one_reads(photos, tmp_path):
    log = ImportLog()
    pictures, known = read_coco(coco_pair(tmp_path, [{"bbox": [200, 5, 9, 20]}]), photos, log)
    expected = "neither a box nor a tag is left to import, of 2 images: .*wholly outside the image"
    with pytest.raises(InputError, match=expected):
        to_own_data(pictures, log, known=known)
    log = ImportLog()
    pictures, _ = read_coco(coco_pair(tmp_path, [{"bbox": [20, 5, 9, 20]}]), photos, log)
    with pytest.raises(InputError, match='1 x box: class "cow" is not known'):
        to_own_data(pictures, log, known=[{"id": 1, "name": "yak"}], fixed=True)
    folder = write_labelme(tmp_path, {"a.png": (100, 80, [])})
    (folder / "a.json").write_text((folder / "a.json").read_text().replace("true", "false"))
    with pytest.raises(InputError, match="neither a box nor a tag .*the annotation holds none"):
        to_own_data(read_labelme(folder, photos, ImportLog()), ImportLog())


def test_linked_folders_are_folders_of_the_root(tmp_path):
    draw_pictures(tmp_path / "elsewhere", "a.png")
    draw_pictures(tmp_path / "photos", "real/b.png")
    (tmp_path / "photos" / "train").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "all").symlink_to(tmp_path / "photos" / "real")  # listed once
    (tmp_path / "photos" / "real" / "up").symlink_to(tmp_path / "photos")  # no endless walk
    assert sorted(ImageIndex(tmp_path / "photos").paths) == ["real/b.png", "train/a.png"]
    # A link to what holds a folder that is linked already.
    draw_pictures(tmp_path / "disk", "c.png", "night/d.png")
    (tmp_path / "photos" / "a link").symlink_to(tmp_path / "disk" / "night")
    (tmp_path / "photos" / "day").symlink_to(tmp_path / "disk")
    (tmp_path / "photos" / "root").symlink_to(tmp_path)
    assert sorted(ImageIndex(tmp_path / "photos").paths) == [
        "a link/d.png", "day/c.png", "real/b.png", "train/a.png",
    ]  # fmt: skip


def test_a_crop_that_leaves_its_image_is_not_written(photos, tmp_path):
    from helpers.load_tool import load_tool

    crop = {"box": [90, 0, 30, 30], "tags": ["sky"]}
    images = [{"id": 1, "file_name": "a.png", "crop_tags": [crop]}]
    path = coco_pair(tmp_path, [{"bbox": [1, 1, 9, 9]}], images=images)
    with pytest.raises(InputError, match=r"^\S*coco\.json: images\[0\]: crop .*leaves its image"):
        load_tool("import_annotations").main(
            ["coco", "--annotations", str(path), "--images", str(tmp_path / "photos"),
             "--output", str(tmp_path / "weak.json")]
        )  # fmt: skip
    assert not (tmp_path / "weak.json").exists()


def test_what_is_wrong_in_what_would_be_written_names_the_output(photos, tmp_path, monkeypatch):
    """No file that an importer takes is known to lead here: its result is broken by hand."""
    from helpers.load_tool import load_tool

    tool = load_tool("import_annotations")
    make = tool.to_own_data

    def broken(*args, **options):
        content = make(*args, **options)
        content["images"][0]["crop_tags"] = [{"box": [90, 0, 30, 30], "tags": []}]
        return content

    monkeypatch.setattr(tool, "to_own_data", broken)
    path = coco_pair(tmp_path, [{"bbox": [1, 1, 9, 9]}])
    with pytest.raises(InputError, match=r"^\S*weak\.json: .*crop_tags\[0\].*outside"):
        tool.main(["coco", "--annotations", str(path), "--images", str(tmp_path / "photos"),
                   "--output", str(tmp_path / "weak.json")])  # fmt: skip
    assert not list(tmp_path.glob("*weak.json*"))
