# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Files of annotation tools: sound ones, damaged and imported."""

import functools
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import yaml
from helpers.annotation_writers import (
    write_coco,
    write_cvat,
    write_label_studio,
    write_labelme,
    write_voc,
    write_yolo,
)
from PIL import Image

from fuzz.damage import Choices, damaged_json, damaged_png, damaged_text
from fuzz.files import CATEGORIES, CLASSES, SIZE, TRUTH, base, put, put_json
from wsis_d2.utils.errors import InputError


def shape(kind: str, **value: object) -> dict:
    """A region of Label Studio."""
    return {"id": kind, "type": kind, "image_rotation": 0, "value": value}


def add_to_coco(coco: dict) -> None:
    image, first = coco["images"][0], coco["annotations"][0]
    image.update(
        image_tags=["sky", 10], tags="sky;dog", supervision="full",
        crop_tags=[{"box": [0, 0, 8, 8], "tags": ["sky"]}],
        points=[{"category_id": 11, "xy": [2, 3]}],
        scribbles=[{"category_id": 12, "xy": [[2, 3], [5, 6]]}],
    )  # fmt: skip
    first["attributes"]["rotation"] = 30
    first.update(
        ignore=0, points=[[3, 4], [1, 1, 0]], scribbles=[[[3, 4], [5, 5]]], keypoints=[3, 4, 2]
    )
    runs = {"size": [12, 16], "counts": [20, 5, 167]}
    text = {**runs, "counts": mask_util.frPyObjects(runs, 12, 16)["counts"].decode()}
    for mask in ([[1, 2, 8, 2, 8, 6]], runs, text):
        bare = {"image_id": 1, "category_id": 11, "bbox": [], "segmentation": mask, "iscrowd": 0}
        coco["annotations"].append({"id": len(coco["annotations"]), **bare})
    coco["annotations"].append({"id": 9, "image_id": "1", "category_id": 11, "points": [[4, 4]]})
    coco["categories"][0]["color"] = "#ff0000"
    coco["categories"].append({"id": 12, "name": "sky", "isthing": 0, "color": [1, 2, 3]})


def add_to_label_studio(tasks: list) -> None:
    # RGBA of 16 x 12 pixels in words of 8 bits: one run of 255, then one of 0.
    sizes = f"{768:032b}" + "00111" + "0010" * 3 + "1001"
    runs = "".join(f"1{3:02b}{n - 1:010b}{v:08b}" for n, v in ((64, 255), (704, 0)))
    bits = sizes + runs
    bits += "0" * (-len(bits) % 8)
    rle = [int(bits[k : k + 8], 2) for k in range(0, len(bits), 8)]
    tasks[0]["annotations"][0]["result"] += [
        shape("polygonlabels", points=[[10, 10], [50, 10], [50, 60]], polygonlabels=["dog"]),
        shape("ellipselabels", x=40, y=40, radiusX=20, radiusY=9, rotation=30, ellipselabels=["a"]),
        shape("brushlabels", format="rle", rle=rle, brushlabels=["dog", "cow"]),
        shape("labels", x=5, y=5, width=20, height=20, rotation=45, labels=["cow"]),
        shape("taxonomy", taxonomy=[["land", "grass"]]),
        {"type": "relation", "from_id": "a", "to_id": "b"},
    ]


def add_to_labelme(content: dict) -> None:
    for kind, points in (
        ("circle", [[5, 5], [7, 6]]), ("polygon", [[1, 1], [5, 1], [5, 4]]), ("point", [[3, 3]]),
        ("points", [[3, 3], [4, 4]]), ("linestrip", [[2, 2], [6, 6]]), ("line", [[1, 2], [3, 4]]),
    ):  # fmt: skip
        group = 1 if kind in ("circle", "linestrip", "polygon") else None
        content["shapes"].append(
            {"label": "dog", "points": points, "shape_type": kind, "group_id": group}
        )


VOC_TURNED = b"""<object><name>dog</name><difficult>1</difficult><robndbox><cx>8</cx><cy>6</cy>
<w>5</w><h>3</h><angle>0.5</angle></robndbox></object><object><name>cow</name><bndbox><xmin>3</xmin>
<ymin>2</ymin><xmax>9</xmax><ymax>8</ymax></bndbox><attributes><attribute><name>rotation</name>
<value>30.0</value></attribute></attributes></object></annotation>"""
CVAT_SHAPES = b"""<polygon label="dog" points="1,2;5,2.5;5,6" occluded="0"/><ellipse label="dog"
cx="8" cy="6" rx="3" ry="2" rotation="20"/><mask label="cow" left="2" top="3" width="4" height="5"
rle="3, 4"/><box label="cow" xtl="1" ytl="2" xbr="6" ybr="7" rotation="30.0"/><points label="dog"
points="3,3"/><polyline label="dog" points="1,1;2,2"/><cuboid label="dog" xtl1="1" ytl1="2" xbl1="1"
ybl1="5" xtr1="4" ytr1="2" xbr1="4" ybr1="5" xtl2="2" ytl2="3" xbl2="2" ybl2="6" xtr2="5" ytr2="3"
xbr2="5" ybr2="6"/></image>"""


@functools.cache
def of_tools() -> dict[str, bytes]:
    folder = Path(tempfile.mkdtemp(prefix="wsis_d2_fuzz_tools_"))
    try:
        files = {
            "voc": write_voc(folder, TRUTH, edges=True) / "a.xml",
            "yolo": write_yolo(folder, TRUTH, CLASSES, polygons=True) / "a.txt",
            "labelme": write_labelme(folder, TRUTH) / "a.json",
            "cvat": write_cvat(folder, TRUTH),
            "coco": write_coco(folder, TRUTH, CLASSES),
            "labelstudio": write_label_studio(folder, TRUTH),
        }
        found = {tool: file.read_bytes() for tool, file in files.items()}
    finally:
        shutil.rmtree(folder)
    found["voc"] = found["voc"].replace(b"</annotation>", VOC_TURNED)
    found["cvat"] = found["cvat"].replace(b"</image>", CVAT_SHAPES, 1)
    found["yolo"] += b"1 0.5 0.5 0.4 0.4\n0 0.4 0.4 0.2 0.2 0.9\n"
    for tool, add in (
        ("coco", add_to_coco), ("labelstudio", add_to_label_studio), ("labelme", add_to_labelme),
    ):  # fmt: skip
        content = json.loads(found[tool])
        add(content)
        found[tool] = json.dumps(content).encode()
    return found


def imported(tool: str, name: str, read: Callable, data: bytes, **options: tuple) -> None:
    """Read one damaged file of a tool, and make own data of what was found.

    Args:
        options: of the reader: what each may be.
    """
    from wsis_d2.data.importers.image_index import ImageIndex
    from wsis_d2.data.importers.import_log import ImportLog

    choices = Choices(data)
    content = of_tools()[tool]
    keep_going = bool(choices.below(2))
    chosen = {key: choices.of(values) for key, values in options.items()}
    classes = choices.of(({}, {"stuff": {"dog"}}, {"ignore": {"dog"}}, {"things": {"Cow"}},
                          {"outside": "ground"}, {"known": CATEGORIES},
                          {"known": CATEGORIES, "fixed": True}))  # fmt: skip
    if name.endswith(".json") and choices.below(4):
        content = json.dumps(damaged_json(json.loads(content), choices)).encode()
    else:
        content = damaged_text(content, choices)
    path = put(f"{tool}/{name}", content)
    log = ImportLog(keep_going)
    found = read(path, ImageIndex(base() / "images"), log, **chosen)
    found, known = found if isinstance(found, tuple) else (found, None)
    made_own(found, log, {"known": known, **classes})


def made_own(found: list, log: object, classes: dict) -> None:
    """Make own data, read it, and look at what is said of it."""
    from wsis_d2.data.datasets.own.weak import read_weak_file
    from wsis_d2.data.importers.own_data import to_own_data

    own = json.dumps(to_own_data(found, log, **classes), allow_nan=False)
    assert all(line.isprintable() for line in log.lines())
    path = put("made_own.json", own.encode())
    try:
        read_weak_file(path, base() / "images", supervision="mixed")
    except InputError as error:
        raise AssertionError(f"import makes what training refuses: {error}") from None


def coco(data: bytes) -> None:
    from wsis_d2.data.importers.coco import read_coco

    imported(
        "coco", "coco.json", read_coco, data,
        bbox=("xywh", "auto", "xyxy"), crowds_as_objects=(False, True),
    )  # fmt: skip


def voc(data: bytes) -> None:
    from wsis_d2.data.importers.per_image import read_voc

    imported(
        "voc", "a.xml", read_voc, data,
        difficult=("keep", "crowd", "drop"), corners=("auto", "inclusive", "edges"),
    )  # fmt: skip


def labelme(data: bytes) -> None:
    from wsis_d2.data.importers.per_image import read_labelme

    imported("labelme", "a.json", read_labelme, data)


def cvat(data: bytes) -> None:
    from wsis_d2.data.importers.cvat import read_cvat

    imported("cvat", "cvat.xml", read_cvat, data)


def label_studio(data: bytes) -> None:
    from wsis_d2.data.importers.label_studio import read_label_studio

    imported("labelstudio", "tasks.json", read_label_studio, data)


def yolo(data: bytes) -> None:
    from wsis_d2.data.importers.yolo import read_yolo

    read = functools.partial(read_yolo, classes={0: "cow", 1: "dog"})
    imported(
        "yolo", "a.txt", read, data,
        lines=("polygon", "auto", "pose"), bbox=("xywh", "auto", "xyxy"),
        key_points=(None, (2, 2), (4, 3)),
    )  # fmt: skip


def yolo_classes(data: bytes) -> None:
    from wsis_d2.data.importers.yolo import read_yolo_classes

    choices = Choices(data)
    value = {"names": choices.of(({0: "cow", 1: "dog"}, ["cow", "dog"])), "nc": 2,
             "kpt_shape": [4, 3]}  # fmt: skip
    if choices.below(2):
        text = yaml.safe_dump(damaged_json(value, choices)).encode("utf-8", "replace")
    else:
        text = damaged_text(yaml.safe_dump(value).encode(), choices)
    read_yolo_classes([put("data.yaml", text)])
    read_yolo_classes([put("classes.txt", text)])


def categories(data: bytes) -> None:
    from wsis_d2.data.importers.import_log import ImportLog
    from wsis_d2.data.importers.own_data import read_categories

    choices = Choices(data)
    log = ImportLog(bool(choices.below(2)))
    content = [*CATEGORIES, {"id": 7, "name": "dog", "color": "#00ff00", "supercategory": "none"}]
    content = choices.of((content, {"categories": content}))
    read_categories(put_json("categories.json", content, choices), log)
    assert all(line.isprintable() for line in log.lines())


def scribbles(data: bytes) -> None:
    from wsis_d2.data.importers.image_index import ImageIndex
    from wsis_d2.data.importers.import_log import ImportLog
    from wsis_d2.data.importers.scribbles import read_scribbles

    choices = Choices(data)
    log = ImportLog(bool(choices.below(2)))
    drawn = np.full(SIZE, 255, np.uint8)
    drawn[3, 2:9], drawn[5:9, 4] = 1, 2
    buffer = io.BytesIO()
    Image.fromarray(drawn).convert(choices.of(("L", "P"))).save(buffer, "PNG")
    path = put("scribbles/a.png", damaged_png(buffer.getvalue(), choices))
    images = ImageIndex(base() / "images")
    names = {1: "cow", 2: "sky"}
    found = read_scribbles(path.parent, [], images, log, names, objects=bool(choices.below(2)))
    made_own(found, log, {})


def tags_csv(data: bytes) -> None:
    from wsis_d2.data.importers.image_index import ImageIndex
    from wsis_d2.data.importers.import_log import ImportLog
    from wsis_d2.data.importers.tags import read_tags_csv

    choices = Choices(data)
    text = choices.of((
        b'image,tags\na.png,"sky;grass"\nb.png,"[""sky"", ""sea""]"\n',
        b"image;x;y;width;height;tags\na.png;0;0;8;8;sky\nb.png;0;0;8;8;['sky' 'sea']\n",
        b"file_name,sky,sea\na.png,1,0\nb.png,0,1\n",
    ))  # fmt: skip
    log = ImportLog(bool(choices.below(2)))
    path = put("tags.csv", damaged_text(text, choices))
    made_own(read_tags_csv(path, [], ImageIndex(base() / "images"), log, ["a;b"]), log, {})


READERS = (
    coco,
    voc,
    labelme,
    cvat,
    label_studio,
    yolo,
    yolo_classes,
    tags_csv,
    categories,
    scribbles,
)
