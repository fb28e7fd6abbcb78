# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Files of annotation tools: sound ones, damaged and imported."""

import functools
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import yaml
from helpers.annotation_writers import (
    write_coco,
    write_cvat,
    write_label_studio,
    write_labelme,
    write_voc,
    write_yolo,
)

from fuzz.damage import Choices, damaged_json, damaged_text
from fuzz.files import CLASSES, TRUTH, base, put


@functools.cache
def of_tools() -> dict[str, bytes]:
    folder = Path(tempfile.mkdtemp(prefix="wsis_d2_fuzz_tools_"))
    try:
        rle = {"size": [12, 16], "counts": [20, 5, 167]}
        coco = json.loads(write_coco(folder, TRUTH, CLASSES).read_text())
        for annotation in coco["annotations"]:
            annotation["segmentation"] = rle
        coco["annotations"][0]["attributes"]["rotation"] = 30
        coco["annotations"].append({**coco["annotations"][0], "id": 9, "bbox": []})
        coco["images"][0].update(image_tags=["sky", 10], tags="sky;dog",
                                 crop_tags=[{"box": [0, 0, 8, 8], "tags": ["sky"]}])  # fmt: skip
        files = {
            "voc": write_voc(folder, TRUTH, edges=True) / "a.xml",
            "yolo": write_yolo(folder, TRUTH, CLASSES, polygons=True) / "a.txt",
            "labelme": write_labelme(folder, TRUTH) / "a.json",
            "cvat": write_cvat(folder, TRUTH),
            "labelstudio": write_label_studio(folder, TRUTH),
        }
        return {"coco": json.dumps(coco).encode(), **{k: f.read_bytes() for k, f in files.items()}}
    finally:
        shutil.rmtree(folder)


def imported(tool: str, name: str, read: Callable, data: bytes) -> None:
    """Read one damaged file of a tool, and make own data of what was found."""
    from wsis_d2.data.importers.image_index import ImageIndex
    from wsis_d2.data.importers.import_log import ImportLog
    from wsis_d2.data.importers.own_data import to_own_data

    choices = Choices(data)
    content = of_tools()[tool]
    keep_going = bool(choices.below(2))
    if name.endswith(".json") and choices.below(4):
        content = json.dumps(damaged_json(json.loads(content), choices)).encode()
    else:
        content = damaged_text(content, choices)
    path = put(f"{tool}/{name}", content)
    log = ImportLog(keep_going)
    found = read(path, ImageIndex(base() / "images"), log)
    found, known = found if isinstance(found, tuple) else (found, None)
    assert json.dumps(to_own_data(found, log, known=known), allow_nan=False)
    assert all(line.isprintable() for line in log.lines())


def coco(data: bytes) -> None:
    from wsis_d2.data.importers.coco import read_coco

    imported("coco", "coco.json", read_coco, data)


def voc(data: bytes) -> None:
    from wsis_d2.data.importers.per_image import read_voc

    imported("voc", "a.xml", read_voc, data)


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

    imported("yolo", "a.txt", functools.partial(read_yolo, classes={0: "cow", 1: "dog"}), data)


def yolo_classes(data: bytes) -> None:
    from wsis_d2.data.importers.yolo import read_yolo_classes

    choices = Choices(data)
    value = {"names": {0: "cow", 1: "dog"}, "nc": 2, "kpt_shape": [4, 3]}
    if choices.below(2):
        text = yaml.safe_dump(damaged_json(value, choices)).encode("utf-8", "replace")
    else:
        text = damaged_text(yaml.safe_dump(value).encode(), choices)
    read_yolo_classes([put("data.yaml", text)])
    read_yolo_classes([put("classes.txt", text)])


def tags_csv(data: bytes) -> None:
    from wsis_d2.data.importers.image_index import ImageIndex
    from wsis_d2.data.importers.import_log import ImportLog
    from wsis_d2.data.importers.tags import read_tags_csv

    choices = Choices(data)
    text = choices.of((
        b'image,tags\na.png,"sky;grass"\nb.png,"[""sky"", ""sea""]"\n',
        b"image;x;y;width;height;tags\na.png;0;0;8;8;sky\n",
        b"file_name,sky,sea\na.png,1,0\nb.png,0,1\n",
    ))  # fmt: skip
    log = ImportLog(bool(choices.below(2)))
    path = put("tags.csv", damaged_text(text, choices))
    read_tags_csv(path, [], ImageIndex(base() / "images"), log, ["a;b"])


READERS = (
    coco,
    voc,
    labelme,
    cvat,
    label_studio,
    yolo,
    yolo_classes,
    tags_csv,
)
