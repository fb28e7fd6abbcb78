# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""What annotation tools and people write otherwise than the formats say: read as it is meant and
counted, or refused in one line."""

import json
import unicodedata

import numpy as np
import pytest
from helpers.annotation_writers import write_coco, write_labelme, write_voc, write_yolo
from PIL import Image

from wsis_d2.data.importers.base import ImageIndex, ImportLog
from wsis_d2.data.importers.coco import read_coco
from wsis_d2.data.importers.own_data import to_own_data
from wsis_d2.data.importers.per_image import read_labelme, read_voc
from wsis_d2.data.importers.tags import read_tags_csv
from wsis_d2.data.importers.yolo import read_yolo, read_yolo_classes
from wsis_d2.utils.errors import InputError


def draw(root, *names, size=(100, 80)):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (90, 120, 60)).save(root / name)
    return ImageIndex(root)


@pytest.fixture
def photos(tmp_path):
    return draw(tmp_path / "photos", "a.png", "b.png")


def coco(folder, annotations, **changes):
    """A COCO file of a.png (id 1) and b.png (id 2), 100 x 80, with the class 3 cow."""
    content = {
        "images": [{"id": k, "file_name": f"{n}.png", "width": 100, "height": 80}
                   for k, n in ((1, "a"), (2, "b"))],
        "categories": [{"id": 3, "name": "cow"}],
        "annotations": [{"image_id": 1, "category_id": 3, **a} for a in annotations],
        **changes,
    }  # fmt: skip
    (folder / "coco.json").write_text(json.dumps(content))
    return folder / "coco.json"


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
    path = coco(tmp_path, corners)
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
        read_coco(coco(tmp_path, [{"bbox": [10, 5, 40, 30], "segmentation": polygon}]), photos,
                  ImportLog())  # fmt: skip
    # One sloppy box among boxes that are impossible as corners is clipped as before.
    sides = [{"bbox": [60, 40, 45, 30]}, {"bbox": [60, 40, 30, 30]}]
    first, _ = read_coco(coco(tmp_path, sides), photos, ImportLog())[0]
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
    path = coco(tmp_path, [{"bbox": [0, 0, 0, 0], "segmentation": polygon}])
    first, _ = read_coco(path, photos, log)[0]
    assert first.boxes == [("cow", 10, 5, 30, 25, False)] and len(log.changed) == 1


def test_copies_of_boxes_are_counted(photos, tmp_path):
    box = {"bbox": [10, 5, 30, 20]}
    other = {"bbox": [10, 5, 30, 20], "category_id": 4}
    categories = [{"id": 3, "name": "cow"}, {"id": 4, "name": "ox"}]
    path = coco(tmp_path, [box, box, {"bbox": [10, 5, 30, 21]}, other], categories=categories)
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
    path = coco(tmp_path, [brush])
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
    path = coco(tmp_path, [{"bbox": [10, 5, 30, 20], "iscrowd": written}])
    first, _ = read_coco(path, photos, ImportLog())[0]
    assert first.boxes[0][5] is crowd


def test_iscrowd_of_another_kind_is_refused(photos, tmp_path):
    path = coco(tmp_path, [{"bbox": [10, 5, 30, 20], "iscrowd": "many"}])
    with pytest.raises(InputError, match='iscrowd is "many", expected 0 or 1'):
        read_coco(path, photos, ImportLog())


def test_voc_difficult_as_text(photos, tmp_path):
    folder = write_voc(tmp_path, {"b.png": (100, 80, [("cow", 10, 10, 20, 20)])}, edges=False)
    text = (folder / "b.xml").read_text()
    (folder / "b.xml").write_text(text.replace("<bndbox>", "<difficult>True</difficult><bndbox>"))
    (picture,) = read_voc(folder, photos, ImportLog(), difficult="crowd")
    assert picture.boxes[0][5] is True


# ---------------------------------------------------------------- class names and tags


def test_spellings_of_one_class_are_one_class(photos, tmp_path):
    categories = [{"id": 3, "name": " cow"}, {"id": 4, "name": "Cow"}, {"id": 5, "name": "dog "}]
    boxes = [{"bbox": [10 * k, 5, 9, 20], "category_id": k} for k in (3, 4, 5)]
    log = ImportLog()
    pictures, known = read_coco(coco(tmp_path, boxes, categories=categories), photos, log)
    (tmp_path / "tags.csv").write_text("image,tags\na.png,Sky\nb.png,sky;SKY;dog\n")
    pictures = read_tags_csv(tmp_path / "tags.csv", pictures, photos, log)
    own = to_own_data(pictures, log, known=known, ignore=["DOG"])
    assert [(c["id"], c["name"], c["isthing"]) for c in own["categories"]] == [
        (3, "cow", 1), (6, "Sky", 0),
    ]  # fmt: skip
    assert [a["category_id"] for a in own["annotations"]] == [3, 3]
    assert [e["image_tags"] for e in own["images"]] == [[6], [6]]
    assert '"Cow" is taken as the class "cow" (id 3)' in whys(log.changed)
    assert '"SKY" is taken as "Sky"' in whys(log.changed)
    assert whys(log.dropped) == ['class "dog" is left out'] * 2


def test_unicode_forms_of_one_class(photos, tmp_path):
    names = [unicodedata.normalize(form, "Kühe") for form in ("NFC", "NFD")]
    assert names[0] != names[1]
    truth = {f"{f}.png": (100, 80, [(n, 10, 5, 9, 9)]) for f, n in zip("ab", names, strict=True)}
    folder = write_voc(tmp_path, truth, edges=False)
    log = ImportLog()
    own = to_own_data(read_voc(folder, photos, log), log)
    assert len(own["categories"]) == 1 and len(own["annotations"]) == 2


def test_names_of_a_fixed_list_stay_as_they_are(photos, tmp_path):
    log = ImportLog()
    pictures, _ = read_coco(coco(tmp_path, [{"bbox": [10, 5, 9, 20]}]), photos, log)
    own = to_own_data(pictures, log, known=[{"id": 8, "name": "Cow"}], fixed=True)
    assert [a["category_id"] for a in own["annotations"]] == [8]
    assert [c["name"] for c in own["categories"]] == ["Cow"]
    assert whys(log.changed) == ['"cow" is taken as "Cow"']


def test_tags_of_an_image_entry_are_classes_or_nothing(photos, tmp_path):
    images = [
        {"id": 1, "file_name": "a.png", "tags": ["train", "Cow", "reviewed"]},
        {"id": 2, "file_name": "b.png", "tags": ["train"], "image_tags": ["grass"]},
    ]
    path = coco(tmp_path, [{"bbox": [10, 5, 9, 20]}], images=images)
    log = ImportLog()
    pictures, known = read_coco(path, photos, log)
    own = to_own_data(pictures, log, known=known)
    assert [c["name"] for c in own["categories"]] == ["cow", "grass"]
    assert [e["image_tags"] for e in own["images"]] == [[3], [4]]
    assert len(log.dropped) == 3 and "--stuff makes it one" in log.dropped[0]["why"]
    pictures, _ = read_coco(path, photos, ImportLog(), known=["reviewed"])
    assert pictures[0].tags == {"Cow", "reviewed"}


def test_roboflows_parent_class_is_left_out(photos, tmp_path):
    categories = [{"id": 0, "name": "cow", "supercategory": "none"},
                  {"id": 3, "name": "cow", "supercategory": "cow"}]  # fmt: skip
    log = ImportLog()
    pictures, known = read_coco(
        coco(tmp_path, [{"bbox": [10, 5, 9, 20]}], categories=categories), photos, log
    )
    assert [c["id"] for c in known] == [3] and len(log.dropped) == 1
    assert [a["category_id"] for a in to_own_data(pictures, log, known=known)["annotations"]] == [3]
    # One that has boxes is a class as any other.
    categories[0]["name"] = categories[1]["supercategory"] = "animal"
    boxes = [{"bbox": [10, 5, 9, 20]}, {"bbox": [30, 5, 9, 20], "category_id": 0}]
    known = read_coco(coco(tmp_path, boxes, categories=categories), photos, ImportLog())[1]
    assert [c["id"] for c in known] == [0, 3]


def test_classes_without_annotation_are_named(photos, tmp_path):
    categories = [{"id": 3, "name": "cow"}, {"id": 4, "name": "yak"}]
    log = ImportLog()
    pictures, known = read_coco(
        coco(tmp_path, [{"bbox": [10, 5, 9, 20]}], categories=categories), photos, log
    )
    to_own_data(pictures, log, known=known)
    assert log.notes == ["1 classes have neither box nor tag: yak"]


@pytest.mark.parametrize(
    ("written", "color"),
    [("#ff8000", [255, 128, 0]), ("#F80", [255, 136, 0]), ([1, 2, 3], [1, 2, 3]),
     ("rgb(1, 2, 3)", [1, 2, 3])],
)  # fmt: skip
def test_colours_of_categories(written, color, photos, tmp_path):
    path = coco(
        tmp_path, [{"bbox": [1, 5, 9, 20]}], categories=[{"id": 3, "name": "c", "color": written}]
    )
    log = ImportLog()
    pictures, known = read_coco(path, photos, log)
    assert to_own_data(pictures, log, known=known)["categories"][0]["color"] == color
    assert not log.dropped


def test_a_colour_that_is_none_costs_no_class(photos, tmp_path):
    path = coco(
        tmp_path, [{"bbox": [1, 5, 9, 20]}], categories=[{"id": 3, "name": "c", "color": "mauvish"}]
    )
    log = ImportLog()
    pictures, known = read_coco(path, photos, log)
    assert len(to_own_data(pictures, log, known=known)["categories"]) == 1
    assert whys(log.dropped) == ['"mauvish" is no colour']


CELLS = {
    "sky, grass": {"sky", "grass"},
    "sky;grass|road": {"sky", "grass", "road"},
    '["sky", "grass"]': {"sky", "grass"},
    "['sky', 'grass']": {"sky", "grass"},
    '{"choices": ["sky", "grass"]}': {"sky", "grass"},
    '{"choices": "sky"}': {"sky"},
    "('sky', 'grass')": {"sky", "grass"},
    "{'sky', 'grass'}": {"sky", "grass"},
    "sky\ngrass": {"sky", "grass"},
    "[]": set(),
    "cow, black": {"cow, black"},  # a known name that holds a comma
    "sky;cow, black": {"sky", "cow, black"},
}


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("column", ["tags", "choice"])
def test_lists_in_cells_of_tags(cell, column, photos, tmp_path):
    import csv

    with open(tmp_path / "tags.csv", "w", newline="") as file:
        csv.writer(file).writerows([["image", column], ["a.png", cell]])
    (picture,) = read_tags_csv(tmp_path / "tags.csv", [], photos, ImportLog(), ["Cow, black"])
    assert picture.tags == CELLS[cell]


@pytest.mark.parametrize("cell", ['["sky"', '{"sky": 1}', "[1, 2]", "[" * 5000])
def test_broken_lists_in_cells_are_refused(cell, photos, tmp_path):
    (tmp_path / "tags.csv").write_text("image,tags\na.png,'X'\n".replace("'X'", json.dumps(cell)
                                       .replace('\\"', '""')))  # fmt: skip
    with pytest.raises(InputError, match=r"tags\.csv:2: .*no list of names"):
        read_tags_csv(tmp_path / "tags.csv", [], photos, ImportLog())


@pytest.mark.parametrize("mark", [";", "\t"])
def test_spreadsheets_of_other_countries(mark, photos, tmp_path):
    (tmp_path / "tags.csv").write_text(f"Image{mark}tags\na.png{mark}sky, grass\n", "utf-8-sig")
    (picture,) = read_tags_csv(tmp_path / "tags.csv", [], photos, ImportLog())
    assert picture.tags == {"sky", "grass"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("image,tags,tags\na.png,sky,grass\n", 'two columns are named "tags"'),
        ("image,sky,Sky\na.png,1,0\n", 'two columns are named "sky"'),
        ("image,tags\na.png,sky;2\n", "tags.csv:2: tag 2 is a number.*--stuff 2"),
        ("image,tags,x,y,width,height\na.png,sky,0.1,0.1,0.5,0.5\n", "2: crop .* expected pixels"),
        ("image,tags,xmin,ymin,xmax,ymax\na.png,sky,1,1,9,9\n", "x, y, width, height.*no xmin"),
        ("image,tags\na.png,Stra\u00dfe\n", "UTF-8"),
    ],
)
def test_tables_that_would_be_read_otherwise_than_meant(text, expected, photos, tmp_path):
    (tmp_path / "tags.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=expected):
        read_tags_csv(tmp_path / "tags.csv", [], photos, ImportLog())


def test_a_number_that_is_a_class_is_a_tag(photos, tmp_path):
    (tmp_path / "tags.csv").write_text("image,tags\na.png,2\n")
    (picture,) = read_tags_csv(tmp_path / "tags.csv", [], photos, ImportLog(), ["2"])
    assert picture.tags == {"2"}


def test_lists_in_tags_of_coco(photos, tmp_path):
    images = [{"id": 1, "file_name": "a.png", "image_tags": "sky, grass"},
              {"id": 2, "file_name": "b.png", "image_tags": ["sky;road", 3]}]  # fmt: skip
    pictures, _ = read_coco(coco(tmp_path, [], images=images), photos, ImportLog())
    assert [p.tags for p in pictures] == [{"sky", "grass"}, {"sky", "road", "cow"}]


@pytest.mark.parametrize("option", ["stuff", "ignore"])
def test_options_that_name_no_class(option, photos, tmp_path):
    pictures, known = read_coco(coco(tmp_path, [{"bbox": [1, 1, 9, 9]}]), photos, ImportLog())
    with pytest.raises(InputError, match=f"--{option} cwo: no such class; there are cow"):
        to_own_data(pictures, ImportLog(), known=known, **{option: ["cwo"]})


def test_nothing_is_no_class(photos, tmp_path):
    (tmp_path / "tags.csv").write_text("image,tags\na.png,nan\nb.png,sky\n")
    log = ImportLog()
    own = to_own_data(read_tags_csv(tmp_path / "tags.csv", [], photos, log), log)
    assert [c["name"] for c in own["categories"]] == ["sky"]
    assert whys(log.dropped) == ['"nan" names no class']


def test_a_column_without_name_is_no_class(photos, tmp_path):
    (tmp_path / "tags.csv").write_text("image,sky,\na.png,1,1\n")
    with pytest.raises(InputError, match="column 3 has no name"):
        read_tags_csv(tmp_path / "tags.csv", [], photos, ImportLog())


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


# ---------------------------------------------------------------- names of images


@pytest.mark.parametrize("tool", ["voc", "labelme"])
def test_a_stale_name_inside_sends_boxes_nowhere(tool, photos, tmp_path):
    """b's file still says a.png: both images are there, so nothing tells whose boxes they are."""
    truth = {"b.png": (100, 80, [("cow", 10, 8, 20, 16)])}
    folder = write_voc(tmp_path, truth, True) if tool == "voc" else write_labelme(tmp_path, truth)
    (file,) = folder.iterdir()
    text = file.read_text()
    read = read_voc if tool == "voc" else read_labelme
    for stale in ("a.png", "a.JPEG"):
        file.write_text(text.replace("b.png", stale))
        with pytest.raises(InputError, match=r"a\.png, and has the name of b\.png"):
            read(folder, photos, ImportLog())
    # A name that leads nowhere is passed over, and counted.
    file.write_text(text.replace("b.png", "gone.png"))
    log = ImportLog()
    (picture,) = read(folder, photos, log)
    assert picture.file_name == "b.png"
    assert "what it names is no image here; taken by the file's own name" in whys(log.changed)


def test_names_are_relative_to_the_files_folder_first(tmp_path):
    photos = draw(tmp_path / "photos", "a.png", "sub/a.png")
    folder = write_voc(tmp_path, {"sub/a.png": (100, 80, [("cow", 10, 8, 20, 16)])}, True)
    (picture,) = read_voc(folder, photos, ImportLog())
    assert picture.file_name == "sub/a.png"


def test_two_images_of_one_stem_are_asked_for(tmp_path):
    photos = draw(tmp_path / "photos", "a.png", "a.bmp")
    truth = {"a.png": (100, 80, [("cow", 10, 8, 20, 16)])}
    with pytest.raises(InputError, match=r"may belong to a\.bmp or a\.png"):
        read_yolo(write_yolo(tmp_path, truth, ["cow"]), photos, ImportLog(), classes={0: "cow"})
    (picture,) = read_voc(write_voc(tmp_path, truth, True), photos, ImportLog())
    assert picture.file_name == "a.png"  # which it names


NAMES = {  # written -> the file that is there
    "my%20cow.png": "my cow.png",
    "/data/local-files/?d=herd/my%20cow.png": "herd/my cow.png",
    "/data/local-files/?d=herd/a+b.png": "herd/a+b.png",
    "https://host/herd/my%20cow.png?token=1": "my cow.png",
    "s3://bucket/herd/cow.png": "herd/cow.png",
    "herd\\cow.png": "herd/cow.png",
    "COW.PNG": "cow.png",
    "Herd/Cow.png": "herd/cow.png",
    unicodedata.normalize("NFD", "Kühe.png"): unicodedata.normalize("NFC", "Kühe.png"),
    unicodedata.normalize("NFC", "herd/Kühe.png"): unicodedata.normalize("NFD", "herd/Kühe.png"),
    "100%.png": "100%.png",
    "what?.png": "what?.png",
}


@pytest.mark.parametrize("written", NAMES)
def test_spellings_of_file_names(written, tmp_path):
    index = draw(tmp_path / "photos", NAMES[written], "other.png")
    log = ImportLog()
    assert index.find(written, "test", log) == NAMES[written]
    literal = written.replace("\\", "/") == NAMES[written]
    assert len(log.changed) == (0 if literal else 1) and not log.dropped


def test_spellings_that_fit_two_files(tmp_path):
    index = draw(tmp_path / "photos", "a.png", "A.png", "my cow.png", "my%20cow.png")
    assert index.find("a.png", "test", ImportLog()) == "a.png"
    assert index.find("my%20cow.png", "test", ImportLog()) == "my%20cow.png"
    with pytest.raises(InputError, match=r"may be A\.png or a\.png"):
        index.find("a.PNG", "test", ImportLog())


@pytest.mark.parametrize("suffix", [".gif", ".jfif", ".JPG", ".webp"])
def test_suffixes_of_pictures(suffix, tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (100, 80)).save(
        tmp_path / "photos" / f"a{suffix}", "JPEG" if suffix == ".jfif" else None
    )
    index = ImageIndex(tmp_path / "photos")
    name = index.find(f"a{suffix}", "test", ImportLog())
    picture = index.picture(name, "test", ImportLog(), (100, 80))
    assert (picture.width, picture.height) == (100, 80)


def test_a_file_of_another_suffix_is_not_said_to_be_missing(photos, tmp_path):
    (tmp_path / "photos" / "a.heic").write_bytes(b"")
    log = ImportLog()
    assert photos.find("a.heic", "test", log) is None
    assert "no suffix of a picture" in log.dropped[0]["why"]


def test_a_size_that_exif_exchanged_is_said_to_be_exifs(tmp_path):
    (tmp_path / "photos").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 80)).save(tmp_path / "photos" / "a.jpg", exif=exif)
    index = ImageIndex(tmp_path / "photos")
    with pytest.raises(InputError, match="EXIF orientation 6"):
        index.picture("a.jpg", "coco.json: images[0]", ImportLog(), (100, 80))
    assert index.picture("a.jpg", "test", ImportLog(), (80, 100)).width == 80


# ---------------------------------------------------------------- nothing left


@pytest.mark.parametrize("tool", ["coco", "voc", "yolo", "labelme"])
def test_with_a_wrong_folder_of_images_its_name_is_what_one_reads(tool, tmp_path):
    other = draw(tmp_path / "holiday", "x.png")
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
    pictures, known = read_coco(coco(tmp_path, [{"bbox": [200, 5, 9, 20]}]), photos, log)
    expected = "neither a box nor a tag is left to import, of 2 images: .*wholly outside the image"
    with pytest.raises(InputError, match=expected):
        to_own_data(pictures, log, known=known)
    log = ImportLog()
    pictures, _ = read_coco(coco(tmp_path, [{"bbox": [20, 5, 9, 20]}]), photos, log)
    with pytest.raises(InputError, match='1 x box: class "cow" is not known'):
        to_own_data(pictures, log, known=[{"id": 1, "name": "yak"}], fixed=True)
    folder = write_labelme(tmp_path, {"a.png": (100, 80, [])})
    (folder / "a.json").write_text((folder / "a.json").read_text().replace("true", "false"))
    with pytest.raises(InputError, match="neither a box nor a tag .*the annotation holds none"):
        to_own_data(read_labelme(folder, photos, ImportLog()), ImportLog())


def test_linked_folders_are_folders_of_the_root(tmp_path):
    draw(tmp_path / "elsewhere", "a.png")
    draw(tmp_path / "photos", "real/b.png")
    (tmp_path / "photos" / "train").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "all").symlink_to(tmp_path / "photos" / "real")  # listed once
    (tmp_path / "photos" / "real" / "up").symlink_to(tmp_path / "photos")  # no endless walk
    assert sorted(ImageIndex(tmp_path / "photos").paths) == ["real/b.png", "train/a.png"]


def test_what_is_wrong_in_what_would_be_written_names_the_output(photos, tmp_path):
    from helpers.load_tool import load_tool

    crop = {"box": [90, 0, 30, 30], "tags": ["sky"]}
    images = [{"id": 1, "file_name": "a.png", "crop_tags": [crop]}]
    path = coco(tmp_path, [{"bbox": [1, 1, 9, 9]}], images=images)
    with pytest.raises(InputError, match=r"^\S*weak\.json: .*crop_tags\[0\].*outside"):
        load_tool("import_annotations").main(
            ["coco", "--annotations", str(path), "--images", str(tmp_path / "photos"),
             "--output", str(tmp_path / "weak.json")]
        )  # fmt: skip
    assert not (tmp_path / "weak.json").exists()
