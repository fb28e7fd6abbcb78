# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Annotation written in another way means the same; with another meaning it is read otherwise, or
refused, or the log has a word of it."""

import json
import struct
import zlib

import numpy as np
import pytest
from helpers.annotation_writers import coco_pair, write_cvat, write_labelme, write_voc, write_yolo
from PIL import Image

from wsis_d2.data.datasets.own.full_images import mark_full
from wsis_d2.data.datasets.own.weak import load_weak_json
from wsis_d2.data.importers.coco import read_coco
from wsis_d2.data.importers.cvat import read_cvat
from wsis_d2.data.importers.image_index import ImageIndex
from wsis_d2.data.importers.import_log import ImportLog
from wsis_d2.data.importers.own_data import to_own_data
from wsis_d2.data.importers.per_image import read_labelme, read_voc
from wsis_d2.data.importers.picture import Picture
from wsis_d2.data.importers.scribbles import read_scribbles
from wsis_d2.data.importers.tags import read_tags_csv
from wsis_d2.data.importers.yolo import read_yolo
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.image_io import read_label_png

BOX = ("cow", 10, 8, 20, 16)
TRUTH = {"a.png": (100, 80, [BOX]), "b.png": (100, 80, [BOX])}


def whys(entries):
    return sorted(entry["why"] for entry in entries)


# ---------------------------------------------------------------- files


def read_folder(tool, folder, photos, log):
    if tool == "voc":
        return read_voc(folder, photos, log)
    if tool == "yolo":
        return read_yolo(folder, photos, log, classes={0: "cow"})
    return read_labelme(folder, photos, log)


def write_folder(tool, folder):
    if tool == "voc":
        return write_voc(folder, TRUTH, edges=False)
    return write_yolo(folder, TRUTH, ["cow"]) if tool == "yolo" else write_labelme(folder, TRUTH)


@pytest.mark.parametrize("tool", ["voc", "yolo", "labelme"])
@pytest.mark.parametrize("how", ["upper case", "linked folder"])
def test_no_file_of_a_folder_is_passed_over(tool, how, photos, tmp_path):
    folder = write_folder(tool, tmp_path)
    (file,) = folder.glob("b.*")
    if how == "upper case":
        file.rename(file.with_suffix(file.suffix.upper()))
    else:
        (tmp_path / "elsewhere").mkdir()
        file.rename(tmp_path / "elsewhere" / file.name)
        (folder / "more").symlink_to(tmp_path / "elsewhere")
    pictures = read_folder(tool, folder, photos, ImportLog())
    assert {p.file_name: p.boxes for p in pictures} == {
        name: [(*BOX, False)] for name in ("a.png", "b.png")
    }


@pytest.mark.parametrize("tool", ["voc", "yolo", "labelme"])
def test_what_macos_adds_to_an_archive_is_no_annotation(tool, photos, tmp_path):
    folder = write_folder(tool, tmp_path)
    (folder / "__MACOSX").mkdir()
    for place, file in ((folder / "__MACOSX", "a"), (tmp_path / "photos", "a.png")):
        suffix = next(folder.glob("a.*")).suffix if file == "a" else ""
        (place / f"._{file}{suffix}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    log = ImportLog()
    assert len(read_folder(tool, folder, photos, log)) == 2 and not log.dropped
    assert list(ImageIndex(tmp_path / "photos").paths) == ["a.png", "b.png"]


@pytest.mark.parametrize("tool", ["voc", "yolo", "labelme"])
def test_two_files_of_one_image_are_named(tool, photos, tmp_path):
    folder = write_folder(tool, tmp_path)
    (file,) = folder.glob("a.*")
    (folder / "old").mkdir()
    (folder / "old" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(InputError) as error:
        read_folder(tool, folder, photos, ImportLog())
    assert all(name in str(error.value) for name in ("a.png", str(file), f"old/{file.name}"))


def test_two_entries_of_cvat_for_one_image_are_named(photos, tmp_path):
    path = write_cvat(tmp_path, TRUTH)
    path.write_text(path.read_text().replace('name="b.png"', 'name="a.png"'))
    with pytest.raises(InputError, match=r"cvat\.xml: image 1: .*a\.png.*cvat\.xml: image 0"):
        read_cvat(path, photos, ImportLog())


def test_two_scribbles_of_one_image_are_named(photos, tmp_path):
    values = np.full((80, 100), 255, np.uint8)
    values[5, 2:9] = 0
    for name in ("a.png", "old/a.png"):
        (tmp_path / "png" / name).parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(values).save(tmp_path / "png" / name)
    with pytest.raises(InputError, match=r"old/a\.png: is of the image a\.png, and so is .*a\.png"):
        read_scribbles(tmp_path / "png", [], photos, ImportLog(), {0: "sky"})


def test_grey_values_of_4_bits_are_not_stretched_to_other_classes(photos, tmp_path):
    """Value 1 everywhere, which Pillow reads as 17."""

    def chunk(kind, data):
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    (tmp_path / "png").mkdir()
    header = struct.pack(">IIBBBBB", 100, 80, 4, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress((b"\0" + b"\x11" * 50) * 80))
    file = tmp_path / "png" / "a.png"
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b""))
    assert np.asarray(Image.open(file)).max() == 17
    with pytest.raises(InputError, match=r"a\.png: is grey of 4 bits"):
        read_scribbles(file.parent, [], photos, ImportLog(), {k: f"class {k}" for k in range(20)})
    with pytest.raises(InputError, match=r"a\.png: has 4 bits a channel"):
        read_label_png(file)


def test_marks_of_a_class_are_none_of_an_object_after_another_import(photos, tmp_path):
    """In own data the class of an image's mark is all that it tells, though it is a thing's."""
    images = [{**IMAGE, "points": [{"category_id": 3, "xy": [70, 50]}]}]
    path = coco_pair(tmp_path, [{"id": 1, "bbox": [10, 5, 9, 20]}], images=images)
    log = ImportLog()
    pictures, known = read_coco(path, photos, log)
    content = to_own_data(pictures, log, known=known)
    assert (
        content["images"][0]["points"] == images[0]["points"] and len(content["annotations"]) == 1
    )


def test_new_ids_are_no_other_spelling_of_one_that_is_there():
    pictures = [Picture(n, 9, 9, tags={"sky"}, image_id=i)
                for n, i in (("a.png", "000000000001"), ("b.png", None))]  # fmt: skip
    ids = [e["id"] for e in to_own_data(pictures, ImportLog())["images"]]
    assert ids == ["000000000001", 2]


def test_a_list_of_full_images_may_begin_with_a_mark(tmp_path):
    (tmp_path / "full.txt").write_text("a.png\r\n", "utf-8-sig")
    record = {"file_name": str(tmp_path / "a.png"), "image_id": 1}
    (full,) = mark_full([record], str(tmp_path / "full.txt"), str(tmp_path), "set")
    assert full["supervision"] == "full"


# ---------------------------------------------------------------- turned boxes and pictures


@pytest.mark.parametrize("edges", [True, False])
def test_turned_boxes_in_cvats_voc(edges, photos, tmp_path):
    """40 x 20 about (50, 40), which CVAT writes unturned with its angle as an attribute."""
    box = {"a.png": (100, 80, [("cow", 30, 30, 40, 20)])}
    file = write_voc(tmp_path, box, edges) / "a.xml"
    text, log = file.read_text(), ImportLog()
    angle = "<attributes><attribute><name>rotation</name><value>{}</value></attribute></attributes>"
    for degrees, found in ((90, (40, 20, 20, 40)), (0, (30, 30, 40, 20))):
        file.write_text(text.replace("</object>", angle.format(degrees) + "</object>"))
        (picture,) = read_voc(file.parent, photos, log, corners="edges" if edges else "inclusive")
        np.testing.assert_allclose(picture.boxes[0][1:5], found, atol=1e-3)
    assert whys(log.changed) == ["turned, taken by its upright box"]


def test_no_angle_makes_a_box_of_one_whose_corners_are_exchanged(photos, tmp_path):
    path = write_cvat(tmp_path, {"a.png": (100, 80, [BOX])})
    text = path.read_text().replace('xtl="10"', 'xtl="45" rotation="45"')
    path.write_text(text)
    log = ImportLog()
    (picture,), _ = read_cvat(path, photos, log)
    assert not picture.boxes and whys(log.dropped) == ["no area"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_that_exif_turns_are_told_where_no_size_settles_it(orientation, tmp_path):
    (tmp_path / "photos").mkdir()
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = (80, 100) if orientation > 4 else (100, 80)
    Image.new("RGB", stored).save(tmp_path / "photos" / "a.jpg", exif=exif)
    photos = ImageIndex(tmp_path / "photos")
    for size, told in (((100, 80), orientation > 4), (None, False)):
        log = ImportLog()
        picture = photos.picture("a.jpg", "test", log, size)
        picture.boxes.append((*BOX, False))
        to_own_data([picture], log)
        assert any("turned by EXIF" in note for note in log.notes) == (orientation > 1 and not told)
    values = np.full((80, 100), 255, np.uint8)
    values[5, 2:9] = 0
    Image.fromarray(values).save(tmp_path / "a.png")
    log = ImportLog()
    to_own_data(read_scribbles(tmp_path / "a.png", [], photos, log, {0: "sky"}), log)
    assert any("turned by EXIF" in note for note in log.notes) == (orientation in (2, 3, 4))


# ---------------------------------------------------------------- COCO


def test_what_coco_marks_to_be_ignored_is_no_object(photos, tmp_path):
    boxes = [{"bbox": [10 * k, 5, 9, 20], "ignore": k % 2} for k in (1, 2)]
    for options in ({}, {"crowds_as_objects": True}):
        log = ImportLog()
        first, _ = read_coco(coco_pair(tmp_path, boxes), photos, log, **options)[0]
        assert [b[5] for b in first.boxes] == [True, False]
        assert whys(log.changed) == ["marked ignore, taken as a group (iscrowd)"]
    with pytest.raises(InputError, match='ignore is "perhaps", expected 0 or 1'):
        read_coco(coco_pair(tmp_path, [{**boxes[0], "ignore": "perhaps"}]), photos, ImportLog())


IMAGE = {"id": 1, "file_name": "a.png"}
OTHERWISE = {  # what an image entry or an annotation has, and what is said of it
    "supervision": ({"supervision": "Full"}, {}, 'supervision is "Full"'),
    "id in quotes": ({"image_tags": ["3"]}, {}, 'tag "3" is a number in quotes'),
    "ids in a text": ({"image_tags": "sky;3"}, {}, "is a number in quotes"),
    "bare id": ({"image_tags": 0}, {}, "tag 0 is no class"),
    "object": ({"image_tags": {}}, {}, "tag null is no class"),
    "crop": ({"crop_tags": [{"box": [0, 0, 50, 80]}]}, {}, "expected box and tags"),
    "crop id": ({"crop_tags": [{"box": [0, 0, 50, 80], "tags": ["3"]}]}, {}, "number in quotes"),
    "image id": ({}, {"image_id": True}, "image_id true is no image"),
    "points": ({}, {"points": {"x": 3, "y": 4}}, "expected .x, y. of finite numbers"),
    "scribbles": ({}, {"scribbles": "line"}, "expected .x, y. of finite numbers"),
    "group": ({}, {"bbox": [], "iscrowd": 1, "points": [[3, 4]]}, "group .* without a bbox"),
}


@pytest.mark.parametrize("case", OTHERWISE)
def test_nothing_of_coco_goes_without_a_word(case, photos, tmp_path):
    entry, annotation, expected = OTHERWISE[case]
    box = {"bbox": [10, 5, 9, 20], **annotation}
    path = coco_pair(tmp_path, [box], images=[{**IMAGE, **entry}])
    with pytest.raises(InputError, match=rf"coco\.json: (images|annotations)\[0\].*{expected}"):
        read_coco(path, photos, ImportLog())


@pytest.mark.parametrize("tags", [{}, {"weather": "rain"}, False, [True], 7, [7], [None]])
def test_tags_of_another_tool_may_be_anything(tags, photos, tmp_path):
    """Not so image_tags, which are this project's; and no is not the class 0."""
    path = coco_pair(
        tmp_path, [{"bbox": [10, 5, 9, 20], "category_id": 0}], images=[{**IMAGE, "tags": tags}],
        categories=[{"id": 0, "name": "cow"}, {"id": 1, "name": "dog"}],
    )  # fmt: skip
    log = ImportLog()
    (picture,), _ = read_coco(path, photos, log)
    assert len(picture.boxes) == 1 and not picture.tags
    assert [entry["why"].endswith("is no class of the file") for entry in log.dropped] == [True]
    with pytest.raises(InputError, match="is no class of the file"):
        read_coco(
            coco_pair(tmp_path, [], images=[{**IMAGE, "image_tags": tags}]), photos, ImportLog()
        )


def test_coco_as_via_writes_it(photos, tmp_path):
    """Image ids are texts in annotations, a polygon is no list of polygons, points are empty."""
    polygon = {"bbox": [0, 0, 0, 0], "segmentation": [10, 5, 40, 5, 40, 30]}
    point = {"bbox": [], "segmentation": [[]], "keypoints": [7, 9, 2], "num_keypoints": 1}
    boxes = [{"image_id": image, **a} for image in ("1", 2) for a in (polygon, point)]
    log = ImportLog()
    pictures, _ = read_coco(coco_pair(tmp_path, boxes), photos, log)
    for picture in pictures:
        assert picture.boxes == [("cow", 10, 5, 30, 25, False)]
        assert [mark.xy for mark in picture.marks] == [[7, 9]]
    assert not log.dropped


def test_a_number_may_be_a_class_of_coco(photos, tmp_path):
    path = coco_pair(tmp_path, [], images=[{**IMAGE, "image_tags": ["7"]}],
                     categories=[{"id": 3, "name": "7"}])  # fmt: skip
    assert read_coco(path, photos, ImportLog())[0][0].tags == {"7"}


@pytest.mark.parametrize("points", [[[3, 4, 2]], [3, 4, 0.9], [3, 4, 2, 5]])
def test_key_points_that_are_none_are_counted(points, photos, tmp_path):
    log = ImportLog()
    path = coco_pair(tmp_path, [{"bbox": [1, 1, 30, 30], "keypoints": points}])
    (first, _), _ = read_coco(path, photos, log)
    assert len(first.boxes) == 1 and not first.marks
    assert whys(log.dropped) == ["keypoints are no x, y and visibility of 0, 1 or 2"]


# ---------------------------------------------------------------- labelme, YOLO


@pytest.mark.parametrize("group", [7, 7.0, "7", "", None])
def test_group_ids_of_labelme(group, photos, tmp_path):
    folder = write_labelme(tmp_path, {"a.png": (100, 80, [BOX, ("cow", 40, 8, 20, 16)])})
    content = json.loads((folder / "a.json").read_text())
    for shape in content["shapes"]:
        shape["group_id"] = group
    (folder / "a.json").write_text(json.dumps(content))
    (picture,) = read_labelme(folder, photos, ImportLog())
    assert [b[1:5] for b in picture.boxes] == (
        [(10, 8, 50, 16)] if group else [(10, 8, 20, 16), (40, 8, 20, 16)]
    )


@pytest.mark.parametrize("flags", [{"rain": "often"}, ["rain"]])
def test_flags_of_labelme_that_are_neither_yes_nor_no(flags, photos, tmp_path):
    folder = write_labelme(tmp_path, {"a.png": (100, 80, [BOX])})
    content = json.loads((folder / "a.json").read_text())
    (folder / "a.json").write_text(json.dumps({**content, "flags": flags}))
    with pytest.raises(InputError, match=r'a\.json: .*"rain".* true or false'):
        read_labelme(folder, photos, ImportLog())


def test_yolo_boxes_with_confidence_and_track_are_no_triangles(photos, tmp_path):
    """As a tracker of one object writes it: class, box, confidence, number of the track."""
    folder = write_yolo(tmp_path, TRUTH, ["cow"])
    for file in folder.glob("*.txt"):
        file.write_text(file.read_text().replace("\n", " 0.91 1\n"))
    with pytest.raises(InputError, match="end in a whole number, .*confidence and track"):
        read_yolo(folder, photos, ImportLog(), classes={0: "cow"})
    triangle = "0 0.1 0.1 0.3 0.1 0.2 1\n0 0.1 0.1 0.3 0.1 0.2 0.5\n"
    (folder / "a.txt").write_text(triangle)
    (folder / "b.txt").unlink()
    (picture,) = read_yolo(folder, photos, ImportLog(), classes={0: "cow"})
    np.testing.assert_allclose([b[4] for b in picture.boxes], [72, 32])
    # A few polygons may all end on the lower edge; many hardly do.
    (folder / "a.txt").write_text("0 0.1 0.5 0.3 0.4 0.6 0.5 0.7 1 0.2 1\n")
    (picture,) = read_yolo(folder, photos, ImportLog(), classes={0: "cow"})
    np.testing.assert_allclose([b[1:5] for b in picture.boxes], [(10, 32, 60, 48)])
    polygon = "0 0.1 0.1 0.3 0.1 0.2 0.2 0.1 0.2 {0}\n0 0.4 0.1 0.6 0.1 0.5 0.2 {0}\n" * 2
    for behind in ("0.9 1", ""):
        (folder / "a.txt").write_text(polygon.format(behind))
        if behind:
            with pytest.raises(InputError, match="confidence and track"):
                read_yolo(folder, photos, ImportLog(), classes={0: "cow"})
    (picture,) = read_yolo(folder, photos, ImportLog(), classes={0: "cow"})
    both = [(10, 8, 20, 8), (40, 8, 20, 8)]
    np.testing.assert_allclose([b[1:5] for b in picture.boxes], both * 2)


# ---------------------------------------------------------------- tables of tags

TABLES = {  # each says: a.png has sky and grass, b.png has sky
    "spaces before quotes": 'image, tags\na.png, "sky, grass"\nb.png, "sky"\n',
    "empty columns": "image,tags,,\na.png,sky;grass,,\nb.png,sky,,\n",
    "empty columns of classes": "image,sky,grass,\na.png,1,1,\nb.png,1,0,\n",
    "numbers of pandas": "image,sky,grass\na.png,1.0,1.0\nb.png,1.0,0.0\n",
    "arrays of numpy": "image,tags\na.png,['sky' 'grass']\nb.png,['sky']\n",
    "arrays of numpy on two lines": "image,tags\na.png,\"['sky'\n 'grass']\"\nb.png,['sky']\n",
}


@pytest.mark.parametrize("table", TABLES)
def test_tables_that_say_the_same(table, photos, tmp_path):
    (tmp_path / "tags.csv").write_text(TABLES[table])
    pictures = read_tags_csv(tmp_path / "tags.csv", [], photos, ImportLog())
    assert {p.file_name: p.tags for p in pictures} == {"a.png": {"sky", "grass"}, "b.png": {"sky"}}


def test_columns_of_a_table_are_read_or_named(photos, tmp_path):
    path, log = tmp_path / "tags.csv", ImportLog()
    path.write_text("image,tags,road\na.png,sky,1\n")
    (picture,) = read_tags_csv(path, [], photos, log)
    assert picture.tags == {"sky"} and log.notes == [f"{path}: not read: road"]
    path.write_text("image,tags,choice\na.png,sky,road\n")
    with pytest.raises(InputError, match="columns tags and choice hold tags"):
        read_tags_csv(path, [], photos, ImportLog())


# ---------------------------------------------------------------- own data

CROP = {"box": [0, 0, 0.5, 0.5], "tags": [2]}
RELATIVE = {
    "crop": ({"crop_tags": [CROP]}, {}, "all 1 boxes of crop_tags"),
    "point": ({"points": [{"category_id": 2, "xy": [0.25, 0.5]}]}, {}, "all 1 points"),
    "scribble": ({}, {"scribbles": [[[0.25, 0.5], [1, 0.75]]]}, "all 2 points"),
    "point of an object": ({}, {"points": [[0.25, 0.5, 1]]}, "all 1 points"),
}


def own(folder, entry=(), annotation=()):
    Image.new("RGB", (100, 80)).save(folder / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 80, **dict(entry)}],
        "categories": [{"id": k, "name": n, "isthing": k % 2} for k, n in ((1, "cow"), (2, "sky"))],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 9, 9],
                         **dict(annotation)}],
    }  # fmt: skip
    (folder / "own.json").write_text(json.dumps(content))
    return load_weak_json(folder / "own.json", folder)


@pytest.mark.parametrize("case", RELATIVE)
def test_own_crops_and_marks_of_0_to_1_are_no_pixels(case, tmp_path):
    entry, annotation, expected = RELATIVE[case]
    with pytest.raises(InputError, match=rf"own\.json: {expected} .*relative.*pixels"):
        own(tmp_path, entry, annotation)


@pytest.mark.parametrize("tags", [0, "", {}, False])
def test_own_tags_are_a_list_or_absent(tags, tmp_path):
    with pytest.raises(InputError, match=r"own\.json: images\[0\] \(id 1\): image_tags"):
        own(tmp_path, {"image_tags": tags})
    assert own(tmp_path, {"image_tags": None})[0]["image_tags"] == []
