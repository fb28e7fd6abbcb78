# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Runs of thousands of small images: memory, open files and processes stay as they were."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from wsis_d2.data.panoptic_format import write_panoptic_png
from wsis_d2.evaluation.from_files import FileOptions, _Worker, evaluate_files
from wsis_d2.structures.annotation import AnnotatedClasses
from wsis_d2.utils import image_io
from wsis_d2.weak_labels.driver import run
from wsis_d2.weak_labels.store import LabelStore
from wsis_d2.weak_labels.workers import Labels

IMAGES = int(os.environ.get("WSIS_D2_TEST_IMAGES", 2000))
PREDICTED = max(IMAGES // 20, 60)
MOST_MB = 30  # that the second half of a run may take beside the first
SIZE = (16, 20)
CATEGORIES = [
    {"id": 1, "name": "cow", "isthing": 1, "color": [250, 0, 0]},
    {"id": 2, "name": "sky", "isthing": 0, "color": [0, 0, 250]},
]

pytestmark = pytest.mark.long


class Use:
    """What this process uses, noted now and then."""

    def __init__(self, every: int) -> None:
        self.every, self.count = every, 0
        self.megabytes: list[float] = []
        self.files: list[int] = []
        self.processes: list[int] = []

    def note(self) -> None:
        self.count += 1
        if self.count % self.every:
            return
        pages = int(open("/proc/self/statm").read().split()[1])
        self.megabytes.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
        self.files.append(len(os.listdir("/proc/self/fd")))
        children = open(f"/proc/self/task/{os.getpid()}/children").read().split()
        self.processes.append(len(children))

    def check(self) -> None:
        half = len(self.megabytes) // 2
        assert half >= 5
        print(f"{self.count} images: {self.megabytes[0]:.0f} to {max(self.megabytes):.0f} MB, "
              f"{max(self.files)} files, {max(self.processes)} processes")  # fmt: skip
        assert max(self.megabytes[half:]) < max(self.megabytes[:half]) + MOST_MB, self.megabytes
        assert max(self.files[half:]) <= max(self.files[:half]), self.files
        assert max(self.processes[half:]) <= max(self.processes[:half]), self.processes


def scene(index):
    rng = np.random.default_rng(index)
    ids = np.full(SIZE, 2, np.int32)
    x, y = rng.integers(0, 12), rng.integers(0, 8)
    ids[y : y + 7, x : x + 7] = 1
    return rng.integers(0, 256, (*SIZE, 3), np.uint8), ids, [float(x), float(y), 7.0, 7.0]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pictures, truth and weak annotation of IMAGES images; the poisoned one is no picture."""
    root = tmp_path_factory.mktemp("long")
    (root / "images").mkdir()
    images, boxes, truth = [], [], []
    for index in range(IMAGES):
        image, ids, box = scene(index)
        name = f"{index:05d}.png"
        Image.fromarray(image).save(root / "images" / name, compress_level=0)
        write_panoptic_png(root / "truth" / name, ids)
        images.append({"id": index, "file_name": name, "height": SIZE[0], "width": SIZE[1],
                       "image_tags": [2]})  # fmt: skip
        boxes.append({"id": index, "image_id": index, "category_id": 1, "bbox": box})
        segments = [{"id": k, "category_id": k, "iscrowd": 0, "area": int((ids == k).sum()),
                     "bbox": box} for k in (1, 2)]  # fmt: skip
        truth.append({"image_id": index, "file_name": name, "segments_info": segments})
    poisoned = root / "images" / f"{IMAGES // 3:05d}.png"
    poisoned.write_bytes(poisoned.read_bytes()[:80])
    content = {"images": images, "categories": CATEGORIES}
    (root / "weak.json").write_text(json.dumps({**content, "annotations": boxes}))
    (root / "truth.json").write_text(json.dumps({**content, "annotations": truth}))
    return root


def test_labelling(data, tmp_path):
    """Boxes filled, in this process; the poisoned image alone is left out."""
    from wsis_d2.data.datasets.own.weak import read_weak_file
    from wsis_d2.structures.annotation import centre_boxes

    use = Use(max(1, IMAGES // 40))
    annotation = AnnotatedClasses.of(CATEGORIES)
    assert annotation.thing_ids == {0}

    def label(record):
        use.note()
        image_io.read_record(record)
        semantic = np.full(SIZE, 255, np.uint8)
        for box in centre_boxes(record):
            semantic[box.y0 : box.y1 + 1, box.x0 : box.x1 + 1] = box.class_id
        instance = np.where(semantic == 0, 1, -1).astype(np.int32)
        return Labels(semantic, instance, [{"id": 1, "category_id": 0}], {"boxes": 1})

    records = read_weak_file(data / "weak.json", data / "images").records
    store = LabelStore.create(tmp_path / "labels", {"kind": "boxes"}, CATEGORIES)
    result = run(lambda: label, records, store, workers=1)
    assert list(result.failed) == [IMAGES // 3] and result.made == IMAGES - 1
    use.check()


def test_evaluation(data, monkeypatch):
    use = Use(max(1, IMAGES // 40))
    add = _Worker.add

    def noted(worker, sums, key):
        use.note()
        add(worker, sums, key)

    monkeypatch.setattr(_Worker, "add", noted)
    options = FileOptions(workers=1)
    results = evaluate_files(
        data / "truth.json", data / "truth", data / "truth.json", data / "truth", options
    )
    assert results["panoptic_seg"]["PQ"] == 100.0
    use.check()


def test_prediction(data, tmp_path, monkeypatch, capsys):
    from helpers.load_tool import load_tool

    use = Use(max(1, PREDICTED // 40))
    read = image_io.read_picture
    chosen = sorted((data / "images").glob("*.png"))[IMAGES // 3 - PREDICTED // 3 :][:PREDICTED]

    def noted(path, *others):
        use.note()
        return read(path, *others)

    monkeypatch.setattr(image_io, "read_picture", noted)
    status = load_tool("demo").main(
        ["--device", "cpu", "--output", str(tmp_path), "--input", *map(str, chosen)]
    )
    assert status == 1 and capsys.readouterr().err.count("error: ") == 1
    assert len(json.loads((tmp_path / "panoptic.json").read_text())["images"]) == PREDICTED - 1
    use.check()
