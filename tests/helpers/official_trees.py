# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Tiny data sets in the exact layouts of the official releases, and what to do with them."""

import importlib.util
import json
import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import sparse
from scipy.io import savemat

from wsis_d2.data.datasets import register_all_builtin
from wsis_d2.data.datasets.own.custom import unregister

REPOSITORY = Path(__file__).resolve().parents[2]
_roots = [Path(os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets")))]


def run_prepare(script: str, *arguments: object) -> None:
    """Run ``main`` of a command in ``datasets/`` in this process."""
    spec = importlib.util.spec_from_file_location(script, REPOSITORY / "datasets" / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main([str(a) for a in arguments]) == 0


@contextmanager
def registered_under(root: Path):
    """Register the built-in sets under another root for a while; may be nested."""

    def register(folder):
        for name in registered_names():
            unregister(name)
        return register_all_builtin(folder)

    _roots.append(root)
    try:
        yield register(root)
    finally:
        _roots.pop()
        register(_roots[-1])


def registered_names() -> list[str]:
    from detectron2.data import DatasetCatalog

    starts = ("voc_2012_", "coco_2014_vocclasses", "coco_2017_vocclasses", "cityscapes_")
    return [
        name
        for name in DatasetCatalog.list()
        if name.startswith(starts)
        and name.endswith(("_weak", "_full", "voc_2012_test", "fine_panoptic_test"))
    ]


def save_palette(path: Path, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels.astype(np.uint8), "P")
    image.putpalette(list(range(256)) * 3)
    image.save(path)


def save_photo(path: Path, height: int, width: int, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(path)


def voc_maps() -> tuple[np.ndarray, np.ndarray]:
    """A VOC pair (class map, object map), 24 x 32.

    Object 1: a person (15) with a void border, cut off by the left side (truncated). Objects 2
    and 3: touching cars (7). Object 4, difficult: masked as void in both maps.
    """
    semantic, objects = np.zeros((24, 32), np.uint8), np.zeros((24, 32), np.uint8)
    semantic[3:13, 0:8], objects[3:13, 0:8] = 255, 255
    semantic[4:12, 0:7], objects[4:12, 0:7] = 15, 1
    semantic[14:20, 10:16], objects[14:20, 10:16] = 7, 2
    semantic[14:20, 16:23], objects[14:20, 16:23] = 7, 3
    semantic[0:3, 26:31], objects[0:3, 26:31] = 255, 255
    return semantic, objects


def sbd_maps() -> tuple[np.ndarray, np.ndarray, list[int]]:
    """An SBD pair without void border, and the classes of its objects; the third has no pixel.

    Two pixels of object 1 carry another class in the class map, one thing pixel has no object.
    """
    semantic, objects = np.zeros((20, 30), np.uint8), np.zeros((20, 30), np.uint8)
    semantic[2:10, 3:9], objects[2:10, 3:9] = 12, 1
    semantic[2, 3:5] = 8
    semantic[12:18, 20:30], objects[12:18, 20:30] = 1, 2
    semantic[19, 0] = 1
    return semantic, objects, [12, 1, 5]


def save_sbd(root: Path, name: str, semantic, objects, classes: list[int]) -> None:
    """Write cls/NAME.mat and inst/NAME.mat as SBD's own code does (structs, sparse boundaries)."""

    def boundaries(masks):
        cells = np.empty((len(masks), 1), object)
        for k, mask in enumerate(masks):
            edge = mask & ~(
                np.pad(mask, 1)[:-2, 1:-1] & np.pad(mask, 1)[2:, 1:-1]
                & np.pad(mask, 1)[1:-1, :-2] & np.pad(mask, 1)[1:-1, 2:]
            )  # fmt: skip
            cells[k, 0] = sparse.csc_matrix(edge.astype(float))
        return cells

    for folder in ("cls", "inst"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    present = np.array([[int(c in semantic)] for c in range(1, 21)], np.uint8)
    savemat(
        root / "cls" / f"{name}.mat",
        {
            "GTcls": {
                "Boundaries": boundaries([semantic == c for c in range(1, 21)]),
                "Segmentation": semantic,
                "CategoriesPresent": np.flatnonzero(present)[:, None].astype(np.uint8) + 1,
            }
        },
    )
    savemat(
        root / "inst" / f"{name}.mat",
        {
            "GTinst": {
                "Segmentation": objects,
                "Boundaries": boundaries([objects == k + 1 for k in range(len(classes))]),
                "Categories": np.array(classes, np.uint8)[:, None],
            }
        },
    )


def make_voc(root: Path) -> None:
    """VOC: a, b in train, c in val. SBD: b (train), c (val; in VOC val too), d, e of its own."""
    voc, sbd = root / "VOCdevkit" / "VOC2012", root / "benchmark_RELEASE" / "dataset"
    lists = voc / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000001\n2007_000002\n")
    (lists / "val.txt").write_text("2007_000003\n")
    for seed, name in enumerate(("2007_000001", "2007_000002", "2007_000003")):
        semantic, objects = voc_maps()
        save_palette(voc / "SegmentationClass" / f"{name}.png", semantic)
        save_palette(voc / "SegmentationObject" / f"{name}.png", objects)
        save_photo(voc / "JPEGImages" / f"{name}.jpg", 24, 32, seed)
    sbd.mkdir(parents=True)
    (sbd / "train.txt").write_text("2007_000002\n2008_000004\n")
    (sbd / "val.txt").write_text("2007_000003\n2008_000005\n")
    for seed, name in enumerate(("2007_000002", "2007_000003", "2008_000004", "2008_000005")):
        save_sbd(sbd, name, *sbd_maps())
        if name.startswith("2008"):
            save_photo(voc / "JPEGImages" / f"{name}.jpg", 20, 30, 10 + seed)


def cityscapes_ids(height: int = 64, width: int = 96) -> np.ndarray:
    """An instance id map: stuff, a group of persons, two cars, a bicycle, a trailer, void."""
    ids = np.full((height, width), 7, np.uint16)
    ids[: height // 3] = 23
    ids[height // 3 : height // 2, : width // 2] = 21
    ids[:4, :6] = 0
    ids[30:40, 50:60] = 24
    ids[41:50, 10:20] = 26001
    ids[41:50, 20:33] = 26000
    ids[52:60, 70:80] = 33000
    ids[52:60, 84:90] = 30000
    ids[61:, 40:50] = 4
    return ids


def make_cityscapes(root: Path) -> None:
    """Two cities in train and extra, one in val and test, with official file names."""
    base = root / "cityscapes"
    for folder, kind, cities in (
        ("train", "gtFine", ("aachen", "bochum")),
        ("val", "gtFine", ("frankfurt",)),
        ("train_extra", "gtCoarse", ("augsburg", "bad-honnef")),
        ("test", None, ("berlin",)),
    ):
        for seed, city in enumerate(cities):
            stem = f"{city}_000000_00001{seed}"
            save_photo(
                base / "leftImg8bit" / folder / city / f"{stem}_leftImg8bit.png", 64, 96, seed
            )
            if kind:
                ids = np.roll(cityscapes_ids(), 3 * seed, axis=1)
                path = base / kind / folder / city / f"{stem}_{kind}_instanceIds.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(ids).save(path)


def coco_category_table() -> list[dict]:
    """COCO's names of the 20 classes with their ids, and two classes that VOC has not."""
    names = {
        1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train",
        9: "boat", 16: "bird", 17: "cat", 18: "dog", 19: "horse", 20: "sheep", 21: "cow",
        44: "bottle", 47: "cup", 62: "chair", 63: "couch", 64: "potted plant",
        67: "dining table", 72: "tv", 77: "cell phone",
    }  # fmt: skip
    return [{"id": i, "name": name, "supercategory": "-"} for i, name in names.items()]


def make_coco(root: Path, year: str) -> None:
    """Train: 9 (a cat on a couch, a crowd, a cup), 25 (a cup alone). Val: 42 (a tv)."""
    base = root / "coco"
    (base / "annotations").mkdir(parents=True, exist_ok=True)

    def polygon(x0, y0, x1, y1):
        return [[x0, y0, x1, y0, x1, y1, x0, y1]]

    def thing(number, image, category, x0, y0, x1, y1):
        return {
            "id": number, "image_id": image, "category_id": category, "iscrowd": 0,
            "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0),
            "segmentation": polygon(x0, y0, x1, y1),
        }  # fmt: skip

    # Uncompressed run lengths, column after column, of a 40 x 50 image: columns 40..49, rows 0..9.
    counts = [40 * 40] + [10, 30] * 9 + [10, 30]
    crowd = {
        "id": 4, "image_id": 9, "category_id": 1, "iscrowd": 1, "bbox": [40, 0, 10, 10],
        "area": 100, "segmentation": {"size": [40, 50], "counts": counts},
    }  # fmt: skip
    parts = {
        "train": (
            [9, 25],
            [
                thing(1, 9, 63, 5.0, 10.0, 35.0, 30.0),
                thing(2, 9, 17, 10.0, 12.0, 20.0, 22.0),
                thing(3, 9, 47, 36.0, 30.0, 40.0, 34.0),
                crowd,
                thing(5, 25, 47, 1.0, 1.0, 9.0, 9.0),
            ],
        ),
        "val": ([42], [thing(6, 42, 72, 4.5, 4.5, 30.5, 39.0)]),
    }
    for part, (images, annotations) in parts.items():
        entries = []
        for image in images:
            name = f"{image:012d}.jpg"
            name = f"COCO_{part}2014_{name}" if year == "2014" else name
            save_photo(base / f"{part}{year}" / name, 40, 50, image)
            entries.append({"id": image, "file_name": name, "height": 40, "width": 50})
        content = {"images": entries, "annotations": annotations}
        content["categories"] = coco_category_table()
        path = base / "annotations" / f"instances_{part}{year}.json"
        path.write_text(json.dumps(content))


def panoptic_pairs(folder: Path, split: str, png_folder: str) -> dict:
    """{image id: (segment ids (H, W), {segment id: entry})} of written truth."""
    content = json.loads((folder / f"panoptic_{split}.json").read_text())
    result = {}
    for annotation in content["annotations"]:
        rgb = np.asarray(Image.open(folder / png_folder / annotation["file_name"])).astype(int)
        ids = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
        segments = {segment["id"]: segment for segment in annotation["segments_info"]}
        assert set(np.unique(ids)) - {0} == set(segments)
        result[annotation["image_id"]] = (ids, segments)
    return result


def pq_with_panopticapi(folder: Path, split: str, png_folder: str) -> dict:
    """Truth measured against itself by panopticapi: its results for all classes."""
    from panopticapi.evaluation import pq_compute_single_core

    content = json.loads((folder / f"panoptic_{split}.json").read_text())
    categories = {category["id"]: category for category in content["categories"]}
    pairs = [(annotation, annotation) for annotation in content["annotations"]]
    png = str(folder / png_folder)
    stat = pq_compute_single_core(0, pairs, png, png, categories)
    return stat.pq_average(categories, isthing=None)[0]


def results_with_ours(folder: Path, split: str, png_folder: str) -> dict:
    """Truth measured against itself by our evaluation from files: {task: {metric: percent}}."""
    from wsis_d2.evaluation.from_files import FileOptions, evaluate_files

    files = (folder / f"panoptic_{split}.json", folder / png_folder)
    return evaluate_files(*files, *files, FileOptions(workers=1))


def assert_round_trip(folder: Path, split: str, png_folder: str, least_classes: int) -> None:
    """Truth against itself is perfect by panopticapi's measure and by ours."""
    theirs = pq_with_panopticapi(folder, split, png_folder)
    assert theirs["pq"] == theirs["sq"] == theirs["rq"] == 1.0 and theirs["n"] >= least_classes
    ours = results_with_ours(folder, split, png_folder)
    assert ours["panoptic_seg"]["PQ"] == ours["panoptic_seg"]["SQ"] == 100.0
    assert ours["panoptic_seg"]["DQ"] == ours["sem_seg"]["mIoU"] == 100.0
