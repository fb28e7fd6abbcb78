# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Class names and tags as tools and people write them: one class, or refused in one line."""

import json
import unicodedata

import pytest
from helpers.annotation_writers import (
    coco_pair,
    write_voc,
)

from wsis_d2.data.importers.coco import read_coco
from wsis_d2.data.importers.import_log import ImportLog
from wsis_d2.data.importers.own_data import to_own_data
from wsis_d2.data.importers.per_image import read_voc
from wsis_d2.data.importers.tags import read_tags_csv
from wsis_d2.utils.errors import InputError


def whys(entries):
    return sorted(entry["why"] for entry in entries)


def test_spellings_of_one_class_are_one_class(photos, tmp_path):
    categories = [{"id": 3, "name": " cow"}, {"id": 4, "name": "Cow"}, {"id": 5, "name": "dog "}]
    boxes = [{"bbox": [10 * k, 5, 9, 20], "category_id": k} for k in (3, 4, 5)]
    log = ImportLog()
    pictures, known = read_coco(coco_pair(tmp_path, boxes, categories=categories), photos, log)
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
    pictures, _ = read_coco(coco_pair(tmp_path, [{"bbox": [10, 5, 9, 20]}]), photos, log)
    own = to_own_data(pictures, log, known=[{"id": 8, "name": "Cow"}], fixed=True)
    assert [a["category_id"] for a in own["annotations"]] == [8]
    assert [c["name"] for c in own["categories"]] == ["Cow"]
    assert whys(log.changed) == ['"cow" is taken as "Cow"']


def test_tags_of_an_image_entry_are_classes_or_nothing(photos, tmp_path):
    images = [
        {"id": 1, "file_name": "a.png", "tags": ["train", "Cow", "reviewed"]},
        {"id": 2, "file_name": "b.png", "tags": ["train"], "image_tags": ["grass"]},
    ]
    path = coco_pair(tmp_path, [{"bbox": [10, 5, 9, 20]}], images=images)
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
        coco_pair(tmp_path, [{"bbox": [10, 5, 9, 20]}], categories=categories), photos, log
    )
    assert [c["id"] for c in known] == [3] and len(log.dropped) == 1
    assert [a["category_id"] for a in to_own_data(pictures, log, known=known)["annotations"]] == [3]
    # One that has boxes is a class as any other.
    categories[0]["name"] = categories[1]["supercategory"] = "animal"
    boxes = [{"bbox": [10, 5, 9, 20]}, {"bbox": [30, 5, 9, 20], "category_id": 0}]
    known = read_coco(coco_pair(tmp_path, boxes, categories=categories), photos, ImportLog())[1]
    assert [c["id"] for c in known] == [0, 3]


def test_classes_without_annotation_are_named(photos, tmp_path):
    categories = [{"id": 3, "name": "cow"}, {"id": 4, "name": "yak"}]
    log = ImportLog()
    pictures, known = read_coco(
        coco_pair(tmp_path, [{"bbox": [10, 5, 9, 20]}], categories=categories), photos, log
    )
    to_own_data(pictures, log, known=known)
    assert log.notes == [
        "1 classes have neither box nor tag: yak",
        "1 images have neither box nor tag; leave them out if they are not annotated yet: b.png",
    ]


@pytest.mark.parametrize(
    ("written", "color"),
    [("#ff8000", [255, 128, 0]), ("#F80", [255, 136, 0]), ([1, 2, 3], [1, 2, 3]),
     ("rgb(1, 2, 3)", [1, 2, 3])],
)  # fmt: skip
def test_colours_of_categories(written, color, photos, tmp_path):
    path = coco_pair(
        tmp_path, [{"bbox": [1, 5, 9, 20]}], categories=[{"id": 3, "name": "c", "color": written}]
    )
    log = ImportLog()
    pictures, known = read_coco(path, photos, log)
    assert to_own_data(pictures, log, known=known)["categories"][0]["color"] == color
    assert not log.dropped


def test_a_colour_that_is_none_costs_no_class(photos, tmp_path):
    path = coco_pair(
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
    pictures, _ = read_coco(coco_pair(tmp_path, [], images=images), photos, ImportLog())
    assert [p.tags for p in pictures] == [{"sky", "grass"}, {"sky", "road", "cow"}]


@pytest.mark.parametrize("option", ["stuff", "ignore"])
def test_options_that_name_no_class(option, photos, tmp_path):
    pictures, known = read_coco(coco_pair(tmp_path, [{"bbox": [1, 1, 9, 9]}]), photos, ImportLog())
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
