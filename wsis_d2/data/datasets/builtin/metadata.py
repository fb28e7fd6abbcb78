# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Categories of the paper's datasets, as their JSON files hold them, and how they are measured."""

from typing import Any

# (name, colour); the position is the category id of the files and the unified id.
# The colours follow VOC's bit rule, background first.
_VOC = [
    ("background", (0, 0, 0)),
    ("aeroplane", (128, 0, 0)),
    ("bicycle", (0, 128, 0)),
    ("bird", (128, 128, 0)),
    ("boat", (0, 0, 128)),
    ("bottle", (128, 0, 128)),
    ("bus", (0, 128, 128)),
    ("car", (128, 128, 128)),
    ("cat", (64, 0, 0)),
    ("chair", (192, 0, 0)),
    ("cow", (64, 128, 0)),
    ("diningtable", (192, 128, 0)),
    ("dog", (64, 0, 128)),
    ("horse", (192, 0, 128)),
    ("motorbike", (64, 128, 128)),
    ("person", (192, 128, 128)),
    ("pottedplant", (0, 64, 0)),
    ("sheep", (128, 64, 0)),
    ("sofa", (0, 192, 0)),
    ("train", (128, 192, 0)),
    ("tvmonitor", (0, 64, 128)),
]

# (name, label id, is a thing, colour), in the order of the train ids 0..18.
_CITYSCAPES = [
    ("road", 7, 0, (128, 64, 128)),
    ("sidewalk", 8, 0, (244, 35, 232)),
    ("building", 11, 0, (70, 70, 70)),
    ("wall", 12, 0, (102, 102, 156)),
    ("fence", 13, 0, (190, 153, 153)),
    ("pole", 17, 0, (153, 153, 153)),
    ("traffic light", 19, 0, (250, 170, 30)),
    ("traffic sign", 20, 0, (220, 220, 0)),
    ("vegetation", 21, 0, (107, 142, 35)),
    ("terrain", 22, 0, (152, 251, 152)),
    ("sky", 23, 0, (70, 130, 180)),
    ("person", 24, 1, (220, 20, 60)),
    ("rider", 25, 1, (255, 0, 0)),
    ("car", 26, 1, (0, 0, 142)),
    ("truck", 27, 1, (0, 0, 70)),
    ("bus", 28, 1, (0, 60, 100)),
    ("train", 31, 1, (0, 80, 100)),
    ("motorcycle", 32, 1, (0, 0, 230)),
    ("bicycle", 33, 1, (119, 11, 32)),
]

# COCO's name of each VOC class that has another one there.
COCO_NAMES = {
    "aeroplane": "airplane",
    "motorbike": "motorcycle",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
}

VOC_CATEGORIES: list[dict[str, Any]] = [
    {"id": i, "name": name, "isthing": int(i > 0), "color": list(color)}
    for i, (name, color) in enumerate(_VOC)
]
CITYSCAPES_CATEGORIES: list[dict[str, Any]] = [
    {"id": i, "name": name, "isthing": isthing, "color": list(color)}
    for name, i, isthing, color in _CITYSCAPES
]

# Thresholds of AP^r (paper 4.1) and what a pixel outside every box is (paper 3.4).
VOC_EXTRAS: dict[str, Any] = {"apr_thresholds": "0.1:0.9:0.1", "outside_boxes": 0}
CITYSCAPES_EXTRAS: dict[str, Any] = {"apr_thresholds": "0.5:0.95:0.05", "outside_boxes": "ignore"}
