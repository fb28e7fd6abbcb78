# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Own data, truth and pictures: sound files, damaged and read."""

import functools
import io
import json

import numpy as np
from PIL import Image

from fuzz.damage import Choices, damaged_bytes, damaged_png, damaged_text
from fuzz.files import CATEGORIES, SIZE, base, put, put_json


def own_json(data: bytes) -> None:
    from wsis_d2.data.datasets.own.weak import read_weak_file
    from wsis_d2.weak_labels.driver import plain_record
    from wsis_d2.weak_labels.recipe import annotation_digest
    from wsis_d2.weak_labels.store_status import image_key

    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 16, "height": 12, "image_tags": [5],
                    "crop_tags": [{"box": [0, 0, 8, 12], "tags": [5]}],
                    "points": [{"category_id": 5, "xy": [3, 4]}],
                    "scribbles": [{"category_id": 5, "xy": [[1, 1], [6, 2]]}]},
                   {"id": "b", "file_name": "b.png", "width": 16, "height": 12,
                    "supervision": "weak"}],
        "categories": CATEGORIES,
        "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 8, 6],
                         "iscrowd": 0, "points": [[3, 4], [2, 2, 0]],
                         "scribbles": [[[3, 4], [5, 5]]]},
                        {"id": "x", "image_id": "b", "category_id": 3, "points": [[3, 4, 1]]}],
    }  # fmt: skip
    path = put_json("own.json", content, Choices(data))
    for record in read_weak_file(path, base() / "images", supervision="mixed").records:
        image_key(record["image_id"])
        annotation_digest(plain_record(record))


def panoptic_content() -> dict:
    segments = [{"id": 1, "category_id": 3, "area": 40, "bbox": [1, 2, 8, 6], "iscrowd": 0},
                {"id": 70000, "category_id": 5, "area": 9, "iscrowd": 0}]  # fmt: skip
    return {
        "images": [{"id": 1, "file_name": "a.png", "width": 16, "height": 12}],
        "categories": CATEGORIES,
        "annotations": [{"image_id": 1, "file_name": "t.png", "segments_info": segments}],
    }


def panoptic_png() -> bytes:
    ids = np.zeros(SIZE, np.int32)
    ids[2:8, 1:9], ids[9:] = 1, 70000
    buffer = io.BytesIO()
    Image.fromarray(np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)).save(
        buffer, "PNG"
    )
    return buffer.getvalue()


def panoptic_json(data: bytes) -> None:
    from wsis_d2.evaluation.from_files import FileOptions, evaluate_files

    put("panoptic/t.png", panoptic_png())
    sound = put("sound.json", json.dumps(panoptic_content()).encode())
    path = put_json("panoptic.json", panoptic_content(), Choices(data))
    folder = base() / "panoptic"
    options = FileOptions(workers=1, allow_missing=True)
    evaluate_files(path, folder, sound, folder, options)
    evaluate_files(sound, folder, path, folder, options)


def truth_json(data: bytes) -> None:
    from wsis_d2.data.datasets.own.truth import add_truth
    from wsis_d2.structures.classes import parse_categories

    put("panoptic/t.png", panoptic_png())
    path = put_json("truth.json", panoptic_content(), Choices(data))
    record = {"image_id": 1, "file_name": str(base() / "images/a.png"), "supervision": "full"}
    add_truth([record], str(path), str(base() / "panoptic"), parse_categories(CATEGORIES, "here"))


def panoptic_picture(data: bytes) -> None:
    from wsis_d2.data.panoptic_format import PanopticFile, semantic_map

    put("panoptic/t.png", damaged_png(panoptic_png(), Choices(data)))
    file = PanopticFile(
        put("sound.json", json.dumps(panoptic_content()).encode()), base() / "panoptic"
    )
    semantic_map(file.ids("1"), file.segments("1"), file.classes)


def label_picture(data: bytes) -> None:
    from wsis_d2.utils.image_io import read_label_png

    choices = Choices(data)
    buffer = io.BytesIO()
    image = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(SIZE))
    (image.convert("P") if choices.below(2) else image).save(buffer, "PNG")
    read_label_png(put("label.png", damaged_png(buffer.getvalue(), choices)))


@functools.cache
def pictures() -> list[tuple[str, bytes]]:
    rng = np.random.default_rng(1)
    image = Image.fromarray(rng.integers(0, 255, (*SIZE, 3), np.uint8))
    found = []
    kinds = (("RGB", "PNG"), ("P", "PNG"), ("L", "PNG"), ("RGB", "JPEG"), ("P", "GIF"),
             ("RGB", "TIFF"), ("RGB", "BMP"), ("RGB", "WEBP"), ("RGB", "PPM"))  # fmt: skip
    for mode, kind in kinds:
        buffer = io.BytesIO()
        image.convert(mode).save(buffer, kind)
        found.append((kind, buffer.getvalue()))
    deep = Image.fromarray(rng.integers(0, 65535, SIZE, np.uint16))
    turned = Image.Exif()
    turned[0x0112] = 6
    others = ((deep, "PNG", {}), (deep, "TIFF", {}), (image.convert("RGBA"), "PNG", {}),
              (image.convert("LA"), "PNG", {}), (image.convert("1"), "PNG", {}),
              (image.convert("CMYK"), "JPEG", {}), (image, "JPEG", {"exif": turned}),
              (image, "PNG", {"exif": turned}), (image.convert("F"), "TIFF", {}),
              (image.convert("L"), "PNG", {"transparency": 3}))  # fmt: skip
    for made, kind, options in others:
        buffer = io.BytesIO()
        made.save(buffer, kind, **options)
        found.append((kind, buffer.getvalue()))
    return found


def picture(data: bytes) -> None:
    from wsis_d2.utils.image_io import picture_size, read_picture

    choices = Choices(data)
    kind, content = choices.of(pictures())
    change = damaged_png if kind == "PNG" and choices.below(2) else damaged_bytes
    path = put("picture.bin", change(content, choices))
    picture_size(path, whole=False)
    assert read_picture(path).shape[:2] == picture_size(path)[::-1]


def box_file(data: bytes) -> None:
    import torch
    from detectron2.data import MetadataCatalog

    from wsis_d2.modeling.meta_arch.detector import BoxesFromFiles, Limits

    known = MetadataCatalog.get("fuzz_boxes")
    known.set(thing_ids=[0], thing_dataset_id_to_contiguous_id={3: 0})
    row = {"image_id": 1, "category_id": 3, "bbox": [1, 2, 8, 6], "score": 0.5}
    content = [row, row | {"image_id": "b", "bbox": [1, 2, 3, 4.5]}]
    path = put_json("boxes.json", content, Choices(data))
    boxes = BoxesFromFiles(files={"fuzz_boxes": str(path)}, limits=Limits(0.1, 0.5, 9))
    found = boxes.detect([torch.zeros(3, *SIZE)], [{"dataset_name": "fuzz_boxes", "image_id": 1}])
    assert found[0].pred_boxes.tensor.isfinite().all() and found[0].scores.isfinite().all()


def coco_official(data: bytes) -> None:
    from wsis_d2.data.datasets.builtin.coco import converter, make_jobs
    from wsis_d2.data.datasets.builtin.metadata import COCO_NAMES, VOC_CATEGORIES

    names = [COCO_NAMES.get(c["name"], c["name"]) for c in VOC_CATEGORIES if c["id"]]
    row = {"id": 1, "image_id": 7, "category_id": 1, "bbox": [1, 2, 8, 6], "area": 40.0,
           "iscrowd": 0, "segmentation": [[1, 2, 9, 2, 9, 8, 1, 8]]}  # fmt: skip
    crowd = {"iscrowd": 1, "segmentation": {"size": [12, 16], "counts": [20, 5, 167]}}
    content = {
        "images": [{"id": 7, "file_name": "a.png", "height": 12, "width": 16}],
        "annotations": [row, row | crowd],
        "categories": [{"id": k, "name": name} for k, name in enumerate(names, start=1)],
    }
    put("coco/val2017/a.png", (base() / "images/a.png").read_bytes())
    put_json("coco/annotations/instances_val2017.json", content, Choices(data))
    for job in make_jobs(base() / "coco", "2017", "val")[0]:
        converter()(job)


def voc_lists(data: bytes) -> None:
    from wsis_d2.data.datasets.builtin.voc import split_lists

    folder = "voc/ImageSets/Segmentation"
    put(f"{folder}/val.txt", b"c\n")
    put(f"{folder}/train.txt", damaged_text(b"a  1\nb -1\n", Choices(data)))
    split_lists(base() / "voc", None, partial_tree=True)


def list_file(data: bytes) -> None:
    from wsis_d2.data.datasets.own.full_images import mark_full

    images = str(base() / "images")
    records = [{"image_id": k, "file_name": f"{images}/{k}.png"} for k in "ab"]
    path = put("full.txt", damaged_text(b"a.png\nb.png\n", Choices(data)))
    mark_full(records, str(path), images, "here")


READERS = (
    own_json,
    panoptic_json,
    truth_json,
    panoptic_picture,
    label_picture,
    picture,
    box_file,
    coco_official,
    voc_lists,
    list_file,
)
