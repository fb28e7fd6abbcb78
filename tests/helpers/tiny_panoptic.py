# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""A tiny data set with boxes, tags, truth and a label store, and a tiny model's config."""

import json
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from PIL import Image

from wsis_d2.data.datasets import register_weak_panoptic, set_label_store
from wsis_d2.data.datasets.own.custom import unregister
from wsis_d2.engine import load_cfg
from wsis_d2.modeling.semantic import PSPHead
from wsis_d2.weak_labels.store import LabelStore

HEIGHT, WIDTH = 40, 56
# Category ids of the file; contiguous: cat 0, sky 1, dog 2, sea 3, so things are 0 and 2.
CATEGORIES = [
    {"id": 3, "name": "cat", "isthing": 1, "color": [255, 0, 0]},
    {"id": 5, "name": "sky", "isthing": 0, "color": [0, 0, 255]},
    {"id": 8, "name": "dog", "isthing": 1, "color": [255, 255, 0]},
    {"id": 9, "name": "sea", "isthing": 0, "color": [0, 255, 255]},
]
THING_IDS = [0, 2]
COLORS = {0: (220, 30, 30), 1: (90, 120, 240), 2: (230, 220, 40), 3: (20, 180, 170)}


@SEM_SEG_HEADS_REGISTRY.register()
class PSPHeadWithoutDropout(PSPHead):
    """So that two runs may be compared."""

    @classmethod
    def from_config(cls, cfg, input_shape):
        return {**super().from_config(cfg, input_shape), "dropout": 0.0}


def scene(index: int) -> tuple[np.ndarray, np.ndarray, list[dict]]:
    """An image with sky, sea and up to three rectangles.

    Returns:
        (H, W, 3) uint8 RGB; (H, W) int32 segment ids; segments with contiguous ``category_id`` and
        ``bbox`` XYWH.
    """
    rng = np.random.default_rng(index)
    ids = np.ones((HEIGHT, WIDTH), np.int32)
    horizon = int(rng.integers(12, 28))
    ids[horizon:] = 2
    segments = [{"id": 1, "category_id": 1}, {"id": 2, "category_id": 3}]
    for k in range(index % 4):
        x, y = int(rng.integers(0, WIDTH - 18)), int(rng.integers(0, HEIGHT - 16))
        w, h = int(rng.integers(9, 17)), int(rng.integers(8, 15))
        ids[y : y + h, x : x + w] = 3 + k
        segments.append({"id": 3 + k, "category_id": int(rng.choice(THING_IDS))})
    kept = []
    image = np.zeros((HEIGHT, WIDTH, 3))
    for segment in segments:
        ys, xs = np.nonzero(ids == segment["id"])
        if not len(ys):
            continue
        image[ys, xs] = COLORS[segment["category_id"]]
        box = [int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1]
        kept.append({**segment, "bbox": box})
    image = np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)
    return image, ids, kept


def write_dataset(folder: Path, count: int = 8) -> None:
    """Write images, weak.json, panoptic.json and panoptic PNGs."""
    (folder / "images").mkdir(parents=True)
    (folder / "panoptic").mkdir()
    images, boxes, truths = [], [], []
    file_ids = [c["id"] for c in CATEGORIES]
    for index in range(count):
        image, ids, segments = scene(index)
        name = f"{index:03d}.png"
        Image.fromarray(image).save(folder / "images" / name)
        rgb = np.stack([ids & 255, ids >> 8, ids >> 16], -1).astype(np.uint8)
        Image.fromarray(rgb).save(folder / "panoptic" / name)
        classes = {s["category_id"] for s in segments}
        images.append(
            {
                "id": index + 1,
                "file_name": name,
                "height": HEIGHT,
                "width": WIDTH,
                "image_tags": sorted(file_ids[c] for c in classes if c not in THING_IDS),
            }
        )
        infos = []
        for segment in segments:
            file_id = file_ids[segment["category_id"]]
            area = int((ids == segment["id"]).sum())
            infos.append(
                {"id": segment["id"], "category_id": file_id, "area": area, "iscrowd": 0,
                 "bbox": segment["bbox"]}
            )  # fmt: skip
            if segment["category_id"] in THING_IDS:
                boxes.append(
                    {"id": len(boxes) + 1, "image_id": index + 1, "category_id": file_id,
                     "bbox": segment["bbox"], "iscrowd": 0}
                )  # fmt: skip
        truths.append({"image_id": index + 1, "file_name": name, "segments_info": infos})
    weak = {"images": images, "categories": CATEGORIES, "annotations": boxes}
    (folder / "weak.json").write_text(json.dumps(weak))
    truth = {"images": images, "categories": CATEGORIES, "annotations": truths}
    (folder / "panoptic.json").write_text(json.dumps(truth))


def write_store(folder: Path, records: list[dict], path: Path) -> None:
    """Make a label store: a strip of pixels inside each box, half of the sky, the rest ignored."""
    store = LabelStore.create(path, {"recipe": "strips"}, CATEGORIES)
    for record in records:
        semantic = np.full((HEIGHT, WIDTH), 255, np.uint8)
        instance = np.full((HEIGHT, WIDTH), -1, np.int32)
        semantic[:8], instance[:8] = 1, 1
        semantic[-8:], instance[-8:] = 3, 2
        segments = [{"id": 1, "category_id": 1}, {"id": 2, "category_id": 3}]
        for k, annotation in enumerate(record["annotations"]):
            x0, y0, x1, y1 = (int(v) for v in annotation["bbox"])
            area = (slice(y0 + 2, y1 - 2), slice(x0 + 2, x1 - 2))
            semantic[area], instance[area] = annotation["category_id"], 3 + k
            segments.append({"id": 3 + k, "category_id": annotation["category_id"]})
        store.write(record, semantic, instance, segments, {})
    store.finish()


class TinyData:
    """The data set in a folder, registered as tiny_weak and tiny_full while it is open."""

    def __init__(self, folder: Path, count: int = 8) -> None:
        self.folder, self.store = folder, folder / "labels"
        if not folder.exists():
            write_dataset(folder, count)
            self.register()
            write_store(folder, DatasetCatalog.get("tiny_weak"), self.store)
        self.register()

    def register(self) -> None:
        self.close()
        common = {
            "json": self.folder / "weak.json",
            "images": self.folder / "images",
            "panoptic_json": self.folder / "panoptic.json",
            "panoptic_dir": self.folder / "panoptic",
        }
        register_weak_panoptic("tiny_weak", **common)
        register_weak_panoptic("tiny_full", **common, supervision="full")
        if self.store.exists():
            set_label_store("tiny_weak", self.store)

    def close(self) -> None:
        for name in ("tiny_weak", "tiny_full"):
            if name in DatasetCatalog.list() or name in MetadataCatalog.list():
                unregister(name)


def tiny_cfg(folder: Path, *opts: object, train: str = "tiny_weak") -> CfgNode:
    """A config of the smallest model that has every part, frozen."""
    sample = Path(__file__).resolve().parents[2] / "configs/Sample-Panoptic/Base-Sample.yaml"
    base = [
        "DATASETS.TRAIN", f"('{train}',)", "DATASETS.TEST", "()", "OUTPUT_DIR", str(folder),
        "MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 8,
        "MODEL.FPN.OUT_CHANNELS", 8, "MODEL.ROI_BOX_HEAD.FC_DIM", 16,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN", 30, "MODEL.RPN.POST_NMS_TOPK_TEST", 20,
        "MODEL.SEMANTIC.RESNETS.STEM_OUT_CHANNELS", 8,
        "MODEL.SEMANTIC.RESNETS.RES2_OUT_CHANNELS", 8,
        "MODEL.SEM_SEG_HEAD.PPM_DIM", 4, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 8,
        "MODEL.SEM_SEG_HEAD.AUX_DIM", 4, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 4,
        "SOLVER.BASE_LR", 0.01, "SOLVER.WARMUP_ITERS", 0, "SEED", 3,
    ]  # fmt: skip
    cfg = load_cfg(str(sample), [*base, *opts])
    cfg.freeze()
    return cfg


def renumber(source: Path, target: Path, ids: dict[str, int]) -> Path:
    """Write an own-data or panoptic JSON anew with other category ids, by class name."""
    content = json.loads(source.read_text())
    new = {c["id"]: ids[c["name"]] for c in content["categories"]}
    for category in content["categories"]:
        category["id"] = new[category["id"]]
    for image in content["images"]:
        if "image_tags" in image:
            image["image_tags"] = [new[tag] for tag in image["image_tags"]]
        for crop in image.get("crop_tags", ()):
            crop["tags"] = [new[tag] for tag in crop["tags"]]
    for annotation in content["annotations"]:
        for entry in annotation.get("segments_info", [annotation]):
            entry["category_id"] = new[entry["category_id"]]
    target.write_text(json.dumps(content))
    return target
