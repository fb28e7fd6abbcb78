# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Every reader of files of others: a sound file, how it is damaged, and how it is read.

``READERS[NAME](data)`` damages the sound file as ``data`` chooses and reads it. It raises what the
reader raises; only an InputError of one line is right.
"""

import functools
import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import torch
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

from fuzz.damage import Choices, damaged_bytes, damaged_json, damaged_png, damaged_text
from wsis_d2.utils.errors import InputError

Damage = Callable[[object, Choices], object]
CLASSES = ["cow", "dog"]
CATEGORIES = [
    {"id": 3, "name": "cow", "isthing": 1, "color": [255, 0, 0]},
    {"id": 5, "name": "sky", "isthing": 0, "color": [0, 0, 255]},
]
SIZE = (12, 16)  # height, width
TRUTH = {"a.png": (16, 12, [("cow", 1, 2, 8, 6)]), "b.png": (16, 12, [("dog", 3, 3, 5, 5)])}


@functools.cache
def base() -> Path:
    """A folder with two pictures in images/; it is removed when the process ends."""
    import atexit

    folder = Path(tempfile.mkdtemp(prefix="wsis_d2_fuzz_"))
    owner = os.getpid()
    atexit.register(lambda: os.getpid() == owner and shutil.rmtree(folder, ignore_errors=True))
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for name in TRUTH:
        Image.fromarray(rng.integers(0, 255, (*SIZE, 3), np.uint8)).save(folder / "images" / name)
    return folder


def one_line(error: InputError) -> None:
    """Assert that an error tells a user in one line of sane length what is wrong."""
    from wsis_d2.utils.cli import error_line

    line = error_line(error)
    assert line and line.isprintable(), f"{line!r}"
    assert len(line) < 1500, f"a line of {len(line)} characters: {line[:200]}"


def attempt(name: str, data: bytes) -> bool:
    """Read a damaged file; whether it was taken. AssertionError: it was refused in a wrong way."""
    try:
        READERS[name](data)
    except InputError as error:
        one_line(error)
        return False
    return True


def put(name: str, content: bytes) -> Path:
    path = base() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def put_json(name: str, value: object, choices: Choices) -> Path:
    return put(name, json.dumps(damaged_json(value, choices)).encode())


# Own data and truth


def own_json(data: bytes) -> None:
    from wsis_d2.data.datasets.own.weak import read_weak_file
    from wsis_d2.weak_labels.driver import plain_record
    from wsis_d2.weak_labels.recipe import annotation_digest
    from wsis_d2.weak_labels.store_status import image_key

    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 16, "height": 12, "image_tags": [5],
                    "crop_tags": [{"box": [0, 0, 8, 12], "tags": [5]}]},
                   {"id": "b", "file_name": "b.png", "width": 16, "height": 12,
                    "supervision": "weak"}],
        "categories": CATEGORIES,
        "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 8, 6],
                         "iscrowd": 0}],
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
    deep = io.BytesIO()
    Image.fromarray(rng.integers(0, 65535, SIZE, np.uint16)).save(deep, "PNG")
    return [*found, ("PNG", deep.getvalue())]


def picture(data: bytes) -> None:
    from wsis_d2.utils.image_io import picture_size, read_picture

    choices = Choices(data)
    kind, content = choices.of(pictures())
    change = damaged_png if kind == "PNG" and choices.below(2) else damaged_bytes
    path = put("picture.bin", change(content, choices))
    picture_size(path, whole=False)
    assert read_picture(path).shape[:2] == picture_size(path)[::-1]


# Importers


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


# Proposals


def mat(data: bytes, packed: bool | None = None) -> None:
    from scipy.io import savemat

    from wsis_d2.weak_labels.proposals.files import read_mat

    choices = Choices(data)
    labels = np.empty((2, 1), object)
    labels[0, 0], labels[1, 0] = np.array([[1, 2]], np.uint16), np.array([[3]], np.uint16)
    superpixels = np.repeat(np.arange(1, 5, dtype=np.uint16), 48).reshape(SIZE)
    buffer = io.BytesIO()
    content = {"superpixels": superpixels, "labels": labels}
    savemat(buffer, content, do_compression=bool(choices.below(2)))
    with np.errstate(all="ignore"):
        read_mat(put("p.mat", damaged_bytes(buffer.getvalue(), choices)), SIZE)


def mat_73(data: bytes) -> None:
    """HDF5's reader is C: run this one in a process that may die."""
    import h5py

    from wsis_d2.weak_labels.proposals.files import read_mat

    with h5py.File(base() / "p73.mat", "w") as file:
        file["superpixels"] = np.repeat(np.arange(1.0, 5), 48).reshape(SIZE).T
        part = file.create_dataset("#refs#/a", data=np.array([[1.0, 2.0]]))
        file["labels"] = np.array([[part.ref]], h5py.ref_dtype)
    content = (base() / "p73.mat").read_bytes()
    with np.errstate(all="ignore"):
        read_mat(put("q73.mat", damaged_bytes(content, Choices(data))), SIZE)


def masks_json(data: bytes) -> None:
    from wsis_d2.weak_labels.proposals import files

    runs = {"size": [12, 16], "counts": [20, 5, 167]}
    text = {**runs, "counts": mask_util.frPyObjects(runs, *SIZE)["counts"].decode()}
    content = [{"image_id": 1, "segmentation": s} for s in (runs, text)]
    path = put_json("masks.json", content, Choices(data))
    files.coco_index.cache_clear()
    found = files.CocoJsonSource(str(path))(
        np.zeros((*SIZE, 3), np.uint8), {"image_id": 1, "file_name": "a.png"}
    )
    found.intersections((0, 0, 9, 9))
    found.mask(0)


def contour_weights(data: bytes) -> None:
    from wsis_d2.weak_labels.proposals import contours

    content = Path(contours.WEIGHTS).read_bytes()
    contours.load_weights.__wrapped__(put("w.npz", damaged_bytes(content, Choices(data))))


# Checkpoints


def checkpoint_pth(data: bytes) -> None:
    from wsis_d2.checkpoint.names import read_weights

    choices = Choices(data)
    buffer = io.BytesIO()
    state = {"conv.weight": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3)}
    saved = {"model": state, "iteration": 5, "trainer": {"x": np.float64(2), "y": np.arange(3)}}
    legacy = not choices.below(4)
    torch.save(saved, buffer, _use_new_zipfile_serialization=not legacy)
    content = buffer.getvalue()
    if legacy or not choices.below(4):
        content = damaged_bytes(content, choices)
    else:
        made = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
            for name in old.namelist():
                part = old.read(name)
                if name.endswith("data.pkl"):
                    part = damaged_bytes(part, choices)
                new.writestr(name, part)
        content = made.getvalue()
    read_weights(str(put("c.pth", content)), "KEY")


def checkpoint_pkl(data: bytes) -> None:
    import pickle

    from wsis_d2.checkpoint.names import read_weights

    choices = Choices(data)
    value = {"model": {"w": np.arange(6, dtype="f4").reshape(2, 3)}, "__author__": "x"}
    content = pickle.dumps(value, choices.below(5))
    read_weights(str(put("c.pkl", damaged_bytes(content, choices))), "KEY")


def checkpoint_safetensors(data: bytes) -> None:
    from safetensors.torch import save

    from wsis_d2.checkpoint.names import read_weights

    content = save({"w": torch.arange(6.0).reshape(2, 3)})
    read_weights(str(put("c.safetensors", damaged_bytes(content, Choices(data)))), "KEY")


# Indices, manifests and states


def model_zoo(data: bytes) -> None:
    from wsis_d2.model_zoo.index import Entry, read_index

    part = {"file": "weights/a.pth", "sha256": "0" * 64, "size": 5, "mirrors": ["https://a/b"]}
    fields = {"checkpoint": part, "config": part, "metadata": part, "card": "a.md", "metrics": {}}
    put_json("zoo/model_zoo.json", {"schema": 1, "models": {"A/b": fields}}, Choices(data))
    for name, entry in read_index(str(base() / "zoo")).items():
        Entry(name, str(base() / "zoo"), entry).addresses("checkpoint")


@functools.cache
def label_store() -> Path:
    from wsis_d2.weak_labels.store import LabelStore

    store = LabelStore.create(base() / "store", {"kind": "boxes"}, CATEGORIES)
    semantic = np.ones(SIZE, np.uint8)
    segments = [{"id": 1, "category_id": 1}]
    store.write(store_record(), semantic, semantic.astype(np.int32), segments, {"boxes": 1})
    store.finish()
    return store.path


def store_record() -> dict:
    return {"image_id": 1, "file_name": "a.png", "height": 12, "width": 16, "image_tags": [1],
            "annotations": []}  # fmt: skip


def store_files(data: bytes) -> None:
    from wsis_d2.weak_labels.store import LabelStore

    choices = Choices(data)
    sound = label_store()
    path = base() / "store_copy"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(sound, path)
    file = choices.of((path / "manifest.json", path / "status" / "000000000001.json"))
    file.write_text(json.dumps(damaged_json(json.loads(file.read_text()), choices)))
    store = LabelStore.open(path, writable=True)
    store.check(store_record())
    store.semantic(1)
    store.instance(1)
    store.counters(1)
    assert store.failed == {}
    store.finish()


def round_state(data: bytes) -> None:
    from wsis_d2.relabeling.run_state import history_of, read_state

    state = {
        "schema": 2, "round": 1, "stage": "train", "labels_of_round_0": {"a": "b"},
        "config": {"SEED": 1, "MODEL": {"A": 1}}, "history": {"0": {"labels": {}}},
    }  # fmt: skip
    put_json("run/state.json", state, Choices(data))
    history_of(read_state(base() / "run"))


def results(data: bytes) -> None:
    from wsis_d2.evaluation.results import full_supervision_ratios, read_results_json
    from wsis_d2.evaluation.table import format_results

    run = {"panoptic_seg": {"PQ": 50.0, "PQ-cow": None}, "apr": {"APr_vol": 40.0},
           "sem_seg": {"mIoU": 60.0}, "meta": {"supervision": "weak", "dataset": "a",
           "variant": "main", "seed": 1}}  # fmt: skip
    content = {"schema": 1, "runs": {"weak": run, "full": run}, "ratios": {}}
    found = read_results_json(put_json("results.json", content, Choices(data)))["runs"]
    full_supervision_ratios(found)
    for run in found.values():
        format_results(run)


def metadata(data: bytes) -> None:
    from wsis_d2.model_zoo.publish import read_metadata
    from wsis_d2.structures.classes import ClassTable

    content = {"stuff_classes": ["cow", "sky"], "stuff_colors": [[1, 2, 3], [4, 5, 6]],
               "thing_ids": [0], "categories": CATEGORIES}  # fmt: skip
    choices = Choices(data)
    if choices.below(2):
        del content["categories"]
    path = put_json("metadata.json", content, choices)
    ClassTable.of_metadata(read_metadata(path), str(path))


def config(data: bytes) -> None:
    from wsis_d2.config import read_config

    choices = Choices(data)
    value = {
        "MODEL": {"WSIS": {"STAGE": "semantic", "THING_IDS": [0]}, "RESNETS": {"DEPTH": 18}},
        "DATASETS": {"OWN": [{"name": "a", "json": "b"}], "TRAIN": ["a"], "LABEL_STORES": []},
        "INPUT": {"SCALE_RANGE": [0.5, 2.0], "MIN_SIZE_TRAIN": [0]},
        "SOLVER": {"STEPS": [1, 2], "BASE_LR": 0.1, "MAX_ITER": 3}, "VERSION": 2, "_BASE_": [],
    }  # fmt: skip
    if choices.below(3):
        text = yaml.safe_dump(damaged_json(value, choices)).encode("utf-8", "replace")
    else:
        text = damaged_text(yaml.safe_dump(value).encode(), choices)
    read_config(str(put("config.yaml", text)))


READERS: dict[str, Callable[[bytes], None]] = {
    f.__name__: f
    for f in (
        own_json, panoptic_json, truth_json, panoptic_picture, label_picture, picture, coco, voc,
        labelme, cvat, label_studio, yolo, yolo_classes, tags_csv, mat, mat_73, masks_json,
        contour_weights, checkpoint_pth, checkpoint_pkl, checkpoint_safetensors, model_zoo,
        store_files, round_state, results, metadata, config,
    )
}  # fmt: skip
#: Read by C code that a damaged file may end, so never in the process of the tests.
IN_C = ("mat_73",)
