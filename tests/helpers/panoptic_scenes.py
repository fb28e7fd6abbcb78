# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Random panoptic truth and predictions, in memory and as files, for the metrics' tests."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from wsis_d2.structures.classes import parse_categories

# File ids are neither dense nor sorted, so that they cannot pass for unified ids.
CATEGORIES = [
    {"id": 21, "name": "car", "isthing": 1},
    {"id": 7, "name": "road", "isthing": 0},
    {"id": 33, "name": "bus", "isthing": 1},
    {"id": 12, "name": "sky", "isthing": 0},
    {"id": 40, "name": "cow", "isthing": 1},
]
CLASSES = parse_categories(CATEGORIES, "test")


def random_image(
    rng: np.random.Generator,
    height: int = 24,
    width: int = 32,
    blobs: int = 7,
    void: bool = True,
    crowd: bool = True,
    categories: list[dict] = CATEGORIES,
) -> tuple:
    """Return (gt ids, gt segments, predicted ids, predicted segments) of one scene.

    The prediction is the truth with shifted, split and reclassified segments. At most one crowd
    segment a class.
    """
    gt, gt_class = np.zeros((height, width), np.int64), {}
    start = 0 if void else 1
    if not void:
        gt[:] = 1000
        gt_class[1000] = int(rng.choice([c["id"] for c in categories]))
    for _ in range(start, blobs):
        y, x = rng.integers(0, height - 4), rng.integers(0, width - 4)
        h, w = rng.integers(3, height // 2), rng.integers(3, width // 2)
        number = int(rng.integers(1, 2**24 - 1))
        gt[y : y + h, x : x + w] = number
        gt_class[number] = int(rng.choice([c["id"] for c in categories]))
    if void:
        y, x = rng.integers(0, height - 4), rng.integers(0, width - 4)
        gt[y : y + 5, x : x + 6] = 0
    shift = rng.integers(-2, 3, size=2)
    pred = np.roll(gt, shift, axis=(0, 1))
    y, x = rng.integers(0, height), rng.integers(0, width)
    block = pred[y:, x:]
    block[block > 0] = block[block > 0] % (2**22) + 2**22 + 5
    pred_class = {}
    for number in np.unique(pred[pred > 0]).tolist():
        overlap = gt[pred == number]
        overlap = overlap[overlap > 0]
        pred_class[number] = int(rng.choice([c["id"] for c in categories]))
        if overlap.size and rng.random() < 0.8:
            values, counts = np.unique(overlap, return_counts=True)
            pred_class[number] = gt_class[int(values[counts.argmax()])]
    gt_segments, crowded = [], set()
    for number in np.unique(gt[gt > 0]).tolist():
        category = gt_class[number]
        is_crowd = crowd and category not in crowded and rng.random() < 0.2
        if is_crowd:
            crowded.add(category)
        gt_segments.append(
            {
                "id": number,
                "category_id": category,
                "iscrowd": int(is_crowd),
                "area": int((gt == number).sum()),
            }
        )
    pred_segments = []
    for number in pred_class:
        # Few distinct values, so that ties happen.
        detection, confidence = (float(v) for v in rng.integers(1, 20, size=2) / 20)
        pred_segments.append(
            {
                "id": number,
                "category_id": pred_class[number],
                "score": float(rng.integers(1, 20) / 20),
                "scores": {"detection": detection, "mean_confidence": confidence},
            }
        )
    return gt, gt_segments, pred, pred_segments


def save_png(path: Path, ids: np.ndarray) -> None:
    """Write ids as R + 256 G + 65536 B."""
    path.parent.mkdir(parents=True, exist_ok=True)
    color = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
    Image.fromarray(color).save(path)


def write_files(folder: Path, scenes: list[tuple], categories: list[dict] = CATEGORIES) -> dict:
    """Write scenes as two COCO panoptic files; return evaluate_files' four paths."""
    names = ("gt", "pred")
    annotations: dict[str, list] = {name: [] for name in names}
    images = []
    for number, (gt, gt_segments, pred, pred_segments) in enumerate(scenes):
        images.append(
            {
                "id": 100 + number,
                "file_name": f"{number}.jpg",
                "height": gt.shape[0],
                "width": gt.shape[1],
            }
        )
        for name, ids, segments in (("gt", gt, gt_segments), ("pred", pred, pred_segments)):
            save_png(folder / name / f"{number}.png", ids)
            annotations[name].append(
                {
                    "image_id": 100 + number,
                    "file_name": f"{number}.png",
                    "segments_info": segments,
                }
            )
    for name in names:
        content = {
            "images": images,
            "annotations": annotations[name],
            "categories": categories,
        }
        (folder / f"{name}.json").write_text(json.dumps(content))
    return {
        "pred_json": folder / "pred.json",
        "pred_dir": folder / "pred",
        "gt_json": folder / "gt.json",
        "gt_dir": folder / "gt",
    }
