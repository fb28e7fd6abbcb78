# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""tools/import_annotations.py as a user runs it: what it writes, says, refuses."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import annotation_writers
from PIL import Image

from wsis_d2.data.datasets.own.weak import load_weak_json
from wsis_d2.utils.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "import_annotations.py"
COCO = {
    "images": [{"id": 1, "file_name": "a.png", "width": 60, "height": 40},
               {"id": 2, "file_name": "gone.png", "width": 60, "height": 40}],
    "categories": [{"id": 3, "name": "cow"}, {"id": 8, "name": "sky"}],
    "annotations": [
        {"image_id": 1, "category_id": 3, "bbox": [1, 2, 30, 20],
         "segmentation": [[1, 2, 31, 2, 31, 22]]},
        {"image_id": 1, "category_id": 8, "bbox": [0, 0, 60, 10]},
        {"image_id": 1, "category_id": 3, "bbox": [1, 2, 0, 20]},
        {"image_id": 2, "category_id": 3, "bbox": [1, 2, 30, 20]},
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("import_annotations", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def place(tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "photos" / name)
    (tmp_path / "coco.json").write_text(json.dumps(COCO))
    return tmp_path


def write(kind, place, truth, names):
    """Write boxes in the format of a tool; return what --annotations takes."""
    path = {
        "coco": lambda: annotation_writers.write_coco(place, truth, names),
        "voc": lambda: annotation_writers.write_voc(place, truth, True),
        "yolo": lambda: annotation_writers.write_yolo(place, truth, names),
        "labelme": lambda: annotation_writers.write_labelme(place, truth),
        "cvat": lambda: annotation_writers.write_cvat(place, truth),
        "labelstudio": lambda: annotation_writers.write_label_studio(place, truth),
    }[kind]()
    if kind == "yolo":
        (path / "classes.txt").write_text("\n".join(names))
    return path


def arguments(place, kind="coco", annotations="coco.json", output="weak.json"):
    return [kind, "--annotations", str(place / annotations), "--images", str(place / "photos"),
            "--output", str(place / output)]  # fmt: skip


def test_coco_with_stuff_and_report(tool, place, capsys):
    report = place / "report.json"
    options = ["--stuff", "sky", "--report", str(report)]
    assert tool.main([*arguments(place), *options]) == 0
    (record,) = load_weak_json(place / "weak.json", place / "photos")
    assert [a["bbox"] for a in record["annotations"]] == [[1.0, 2.0, 31.0, 22.0]]
    assert record["image_tags"] == [1]  # cow 0, sky 1
    assert "segmentation" not in (place / "weak.json").read_text()
    said = capsys.readouterr().out
    assert "dropped 1 x box: no area" in said and "things: cow; stuff: sky" in said
    assert "1 images of" in said  # b.png has no annotation
    reasons = {d["why"] for d in json.loads(report.read_text())["dropped"]}
    missing = f"no image of this name under --images {place / 'photos'}"
    assert reasons == {"no area", missing, "its image was left out"}


def test_second_file_takes_the_ids_of_the_first(tool, place):
    tool.main([*arguments(place), "--stuff", "sky"])
    (place / "yolo").mkdir()
    (place / "yolo" / "b.txt").write_text("1 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.1 0.1\n")
    (place / "yolo" / "classes.txt").write_text("dog\ncow\n")
    more = ["--categories", str(place / "weak.json")]
    assert tool.main([*arguments(place, "yolo", "yolo", "val.json"), *more]) == 0
    first, second = (json.loads((place / n).read_text()) for n in ("weak.json", "val.json"))
    assert first["categories"] == second["categories"]
    assert [a["category_id"] for a in second["annotations"]] == [3]


def test_tags_from_csv_reach_images_without_boxes(tool, place):
    (place / "tags.csv").write_text("image,tags\na.png,sky;road\nb.png,road\n")
    tool.main([*arguments(place), "--stuff", "sky", "--tags", str(place / "tags.csv")])
    records = load_weak_json(place / "weak.json", place / "photos")
    assert [r["image_tags"] for r in records] == [[1, 2], [2]]


def test_own_data_with_masks_loses_the_masks_alone(tool, place):
    """What the loader's message about masks in weak files tells the user to do."""
    content = json.loads(json.dumps(COCO))
    content["images"].pop()
    content["annotations"] = [{**content["annotations"][0], "id": 1}]
    content["images"][0]["crop_tags"] = [{"box": [0, 0, 30, 40], "tags": [8]}]
    for category, isthing in zip(content["categories"], (1, 0), strict=True):
        category["isthing"] = isthing
    (place / "coco.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"import_annotations\.py coco"):
        load_weak_json(place / "coco.json", place / "photos")
    tool.main(arguments(place))
    (record,) = load_weak_json(place / "weak.json", place / "photos")
    assert record["crop_tags"] == [{"box": [0, 0, 30, 40], "tags": [1]}]
    assert record["image_tags"] == [1] and len(record["annotations"]) == 1


def test_existing_files_are_safe(tool, place):
    (place / "weak.json").write_text("precious")
    with pytest.raises(InputError, match="--force"):
        tool.main(arguments(place))
    assert (place / "weak.json").read_text() == "precious"
    assert tool.main([*arguments(place), "--force"]) == 0
    with pytest.raises(InputError, match="is an input"):
        tool.main([*arguments(place, output="coco.json"), "--force"])
    bad = json.loads(json.dumps(COCO))
    bad["annotations"][0]["bbox"][0] = float("nan")
    (place / "coco.json").write_text(json.dumps(bad))
    before = (place / "weak.json").read_bytes()
    with pytest.raises(InputError, match="--keep-going"):
        tool.main([*arguments(place), "--force"])
    assert (place / "weak.json").read_bytes() == before
    assert sorted(os.listdir(place)) == ["coco.json", "photos", "weak.json"]
    assert tool.main([*arguments(place), "--force", "--keep-going"]) == 0


def test_closing_lines_count_what_is_taken_otherwise(tool, place, capsys):
    """Groups, spellings, copies and classes that nothing has, each with its number."""
    content = json.loads(json.dumps(COCO))
    content["categories"] += [{"id": 9, "name": "Cow"}, {"id": 10, "name": "yak"}]
    content["annotations"] = [
        {"image_id": 1, "category_id": 3, "bbox": [1, 2, 30, 20]},
        {"image_id": 1, "category_id": 9, "bbox": [1, 2, 30, 20]},
        {"image_id": 1, "category_id": 3, "bbox": [5, 6, 20, 10], "iscrowd": "1"},
    ]
    (place / "coco.json").write_text(json.dumps(content))
    assert tool.main(arguments(place)) == 0
    said = capsys.readouterr().out
    for line in (
        "1 of the boxes are groups (iscrowd), which are not trained on and get no label; "
        "1 are objects; --crowds-as-objects imports groups as objects",
        "2 classes have neither box nor tag: sky, yak",
        'dropped 1 x box: a copy of another box of "cow" (a.png)',
        'changed 1 x class: "Cow" is taken as the class "cow" (id 3)',
        "1 images, 2 boxes, 0 image tags, 2 records dropped, 1 changed",
    ):
        assert line in said
    assert tool.main([*arguments(place, output="objects.json"), "--crowds-as-objects"]) == 0
    said = capsys.readouterr().out
    assert "are not trained on" not in said and "2 changed" in said
    (record,) = load_weak_json(place / "objects.json", place / "photos")
    assert [a["iscrowd"] for a in record["annotations"]] == [0, 0]


def test_boxes_alone_of_groups_say_that_no_object_is_there(tool, place, capsys):
    content = json.loads(json.dumps(COCO))
    content["annotations"] = [{**COCO["annotations"][0], "iscrowd": 1}]
    (place / "coco.json").write_text(json.dumps(content))
    assert tool.main(arguments(place)) == 0
    assert "1 of the boxes are groups (iscrowd)" in (said := capsys.readouterr().out)
    assert "; 0 are objects" in said


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo", "labelme", "cvat", "labelstudio"])
def test_a_wrong_folder_of_images_is_what_one_reads(tool, place, kind):
    (place / "other").mkdir()
    Image.new("RGB", (60, 40)).save(place / "other" / "x.png")
    truth = {f"{n}.png": (60, 40, [("cow", 1, 2, 30, 20)]) for n in "ab"}
    path = write(kind, place, truth, ["cow"])
    call = [kind, "--annotations", path, "--images", place / "other", "--keep-going",
            "--output", place / "weak.json", "--report", place / "report.json"]  # fmt: skip
    with pytest.raises(InputError) as error:
        tool.main([str(part) for part in call])
    message = str(error.value)
    assert message.startswith("no image is left to import: dropped 2 x image: no image of ")
    assert str(place / "other") in message and "\n" not in message
    dropped = json.loads((place / "report.json").read_text())["dropped"]
    assert sum(d["what"] == "image" for d in dropped) == 2
    assert not (place / "weak.json").exists()


@pytest.mark.parametrize("kind", ["cvat", "labelstudio"])
def test_the_tools_own_exports(tool, place, kind, capsys):
    truth = {"a.png": (60, 40, [("yak", 1, 2, 30, 20), ("cow", 10, 5, 9, 30)])}
    writer = {"cvat": annotation_writers.write_cvat,
             "labelstudio": annotation_writers.write_label_studio}[kind]  # fmt: skip
    assert tool.main(arguments(place, kind, writer(place, truth))) == 0
    assert "things: cow, yak; stuff: grass" in capsys.readouterr().out
    (record,) = load_weak_json(place / "weak.json", place / "photos")
    assert [a["bbox"] for a in record["annotations"]] == [[1, 2, 31, 22], [10, 5, 19, 35]]
    assert [a["category_id"] for a in record["annotations"]] == [1, 0]
    assert record["image_tags"] == [2]


@pytest.mark.parametrize(
    ("kind", "option"),
    [("coco", ["--classes", "c.txt"]), ("coco", ["--corners", "edges"]),
     ("labelme", ["--difficult", "drop"]), ("voc", ["--crowds-as-objects"]),
     ("voc", ["--bbox", "xyxy"]), ("cvat", ["--lines", "pose"])],
)  # fmt: skip
def test_an_option_of_another_format_is_refused(tool, place, kind, option):
    with pytest.raises(InputError, match=f"{option[0]}: is for .*, not for {kind}"):
        tool.main([*arguments(place, kind), *option])


def test_yolo_finds_the_pose_shape_beside_other_class_names(tool, place):
    (place / "labels").mkdir()
    (place / "labels" / "a.txt").write_text("0 0.5 0.5 0.2 0.3 0.45 0.45 0.55 0.55 0.5 0.5\n")
    (place / "labels" / "classes.txt").write_text("cow\n")
    with pytest.raises(InputError, match="kpt_shape"):
        tool.main(arguments(place, "yolo", "labels"))
    (place / "labels" / "data.yaml").write_text("names: {0: cow}\nkpt_shape: [3, 2]\n")
    assert tool.main(arguments(place, "yolo", "labels")) == 0
    (record,) = load_weak_json(place / "weak.json", place / "photos")
    assert record["annotations"][0]["bbox"] == [24, 14, 36, 26]


def test_yolo_classes_yes_and_no_from_1(tool, place):
    (place / "labels").mkdir()
    (place / "labels" / "a.txt").write_text("2 0.5 0.5 0.2 0.3\n1 0.3 0.5 0.2 0.3\n")
    (place / "labels" / "data.yaml").write_text("names: {1: yes, 2: no}\n")
    assert tool.main(arguments(place, "yolo", "labels")) == 0
    content = json.loads((place / "weak.json").read_text())
    names = {c["id"]: c["name"] for c in content["categories"]}
    assert [names[a["category_id"]] for a in content["annotations"]] == ["no", "yes"]


BAD = {
    "missing file": (["coco", "none.json"], "none.json: no such file"),
    "a folder": (["coco", "photos"], "photos"),
    "truncated": (["coco", "cut.json"], "cut.json: no valid JSON"),
    "no XML in the folder": (["voc", "photos"], "no .xml file"),
    "no classes": (["yolo", "labels"], "--classes"),
    "not labelme": (["labelme", "coco.json"], "no labelme file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_line(tool, place, case):
    (kind, annotations), expected = BAD[case]
    (place / "cut.json").write_text(json.dumps(COCO)[:200])
    (place / "labels").mkdir()
    (place / "labels" / "a.txt").write_text("")
    with pytest.raises(InputError, match=expected) as error:
        tool.main(arguments(place, kind, annotations))
    assert "\n" not in str(error.value) and not (place / "weak.json").exists()


def test_exit_status_of_the_command(place):
    (place / "coco.json").write_text("{")
    run = subprocess.run(
        [sys.executable, str(TOOL), *arguments(place)], capture_output=True, text=True, cwd=ROOT
    )
    last = run.stderr.strip().splitlines()[-1]
    assert run.returncode == 2 and last.startswith("error: ") and "coco.json" in last
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo", "labelme", "cvat", "labelstudio"])
def test_tags_from_csv_reach_the_images_of_every_format(kind, tool, place):
    """Classes of boxes whose names hold a comma are one tag, as the class list says."""
    truth = {"a.png": (60, 40, [("cow, calf", 1, 2, 30, 20)])}
    written = write(kind, place, truth, ["cow, calf"])
    (place / "tags.csv").write_text('image,tags\na.png,"cow, calf"\nb.png,sky\n')
    options = ["--stuff", "sky", "--tags", str(place / "tags.csv")]
    assert tool.main([*arguments(place, kind, written), *options]) == 0
    content = json.loads((place / "weak.json").read_text())
    ids = {c["name"]: c["id"] for c in content["categories"]}
    assert set(ids) - {"grass"} == {"cow, calf", "sky"}  # some writers tag grass
    tags = {image["file_name"]: image["image_tags"] for image in content["images"]}
    assert tags["b.png"] == [ids["sky"]] and ids["sky"] not in tags["a.png"]
    assert len(content["annotations"]) == 1


def test_boxes_alone_need_a_class_outside_them(tool, place, capsys):
    """Without any, everything in a photograph becomes the only class there is."""
    content = json.loads(json.dumps(COCO))
    content["categories"].pop()
    content["annotations"] = content["annotations"][:1]
    (place / "coco.json").write_text(json.dumps(content))
    tool.main(arguments(place))
    assert "no stuff: a detector can be trained" in capsys.readouterr().out
    options = ["--outside-boxes", "background", "--force"]
    tool.main([*arguments(place), *options])
    categories = json.loads((place / "weak.json").read_text())["categories"]
    assert [(c["name"], c["isthing"]) for c in categories] == [("cow", 1), ("background", 0)]
    assert "outside_boxes: background in DATASETS.OWN" in capsys.readouterr().out
    for name, more in (("Cow", []), ("rest", ["--categories", str(place / "weak.json")])):
        with pytest.raises(InputError, match="--outside-boxes (cow|rest): "):
            tool.main([*arguments(place, output="b.json"), "--outside-boxes", name, *more])


def test_images_that_look_unfinished_are_noted(tool, place, capsys):
    for name in ("c.png", "d.png"):
        (place / "photos" / name).write_bytes((place / "photos" / "a.png").read_bytes())
    content = json.loads(json.dumps(COCO))
    content["images"] = [{"id": k, "file_name": f"{n}.png"} for k, n in enumerate("abcd", 1)]
    content["images"][1]["image_tags"] = ["grass"]
    content["images"][3]["image_tags"] = ["cow", "grass"]
    content["annotations"] = content["annotations"][:1]
    (place / "coco.json").write_text(json.dumps(content))
    tool.main(arguments(place))
    said = capsys.readouterr().out
    for image, what in (
        ("a.png", "have boxes and no tag of stuff; their stuff is unknown"),
        ("c.png", "have neither box nor tag; leave them out if they are not annotated yet"),
        ("d.png", "are tagged with a thing that has no box there; it may be anywhere in them"),
    ):
        assert f"1 images {what}: {image}\n" in said
