# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""A few scenes, round-0 labels and a thin network for the tests of iterative training."""

from pathlib import Path

import numpy as np

from wsis_d2.data.datasets.own.weak import load_weak_json
from wsis_d2.data.datasets.sample.dataset import CATEGORIES, prepare_sample
from wsis_d2.structures.annotation import AnnotatedClasses, touched_boxes
from wsis_d2.weak_labels.store import LabelStore

CONFIG = """
DATASETS:
  TRAIN: ["{name}"]
  TEST: []
  OWN:
    - name: "{name}"
      json: "{root}/data/weak_train.json"
      images: "{root}/data/images/train"
      labels: "{root}/labels"
INPUT:
  MIN_SIZE_TRAIN: [0]
  MIN_SIZE_TEST: 0
  COLOR_JITTER: 0.2
DATALOADER:
  NUM_WORKERS: 0
MODEL:
  META_ARCHITECTURE: "WeakPanopticRCNN"
  DEVICE: "cpu"
  WEIGHTS: ""
  WSIS:
    STAGE: "semantic"
  SEMANTIC:
    PIXEL_STD: [58.0, 57.0, 57.0]
    RESNETS:
      DEPTH: 18
      NORM: "BN"
      STEM_OUT_CHANNELS: 8
      RES2_OUT_CHANNELS: 8
  SEM_SEG_HEAD:
    NORM: "BN"
    PPM_DIM: 8
    CONVS_DIM: 16
    AUX_DIM: 8
SOLVER:
  IMS_PER_BATCH: 2
  BASE_LR: 0.02
  MAX_ITER: 5
  WARMUP_ITERS: 2
  STEPS: []
  CHECKPOINT_PERIOD: 2
  HEAD_LR_FACTOR: 1.0
REFINE:
  ENABLED: False
SEED: 3
VERSION: 2
OUTPUT_DIR: "{root}/run"
"""


def make_run(root: Path, name: str, images: int = 4) -> Path:
    """Write scenes, labels of round 0 and a config below ``root``; return the config's path."""
    prepare_sample(root / "data", images, 1)
    records = load_weak_json(root / "data/weak_train.json", root / "data/images/train")
    things = AnnotatedClasses.of(CATEGORIES).thing_ids
    store = LabelStore.create(root / "labels", {"kind": "test"}, CATEGORIES)
    for record in records:
        size = (record["height"], record["width"])
        semantic = np.full(size, 255, np.uint8)
        stuff = sorted(set(record["image_tags"]) - things)
        for k, class_id in enumerate(stuff):  # bands of the tagged stuff
            semantic[k * size[0] // len(stuff) : (k + 1) * size[0] // len(stuff)] = class_id
        instance, segments = np.full(size, -1, np.int32), []
        for number, box in enumerate(touched_boxes(record), 1):
            window = (slice(box.y0, box.y1 + 1), slice(box.x0, box.x1 + 1))
            semantic[window], instance[window] = box.class_id, number
            segments.append({"id": number, "category_id": box.class_id})
        store.write(record, semantic, instance, segments, {})
    store.finish()
    path = root / "config.yaml"
    path.write_text(CONFIG.format(name=name, root=root))
    return path


def label_bytes(run: Path) -> dict[str, bytes]:
    """Every file of every label store below a run, by its path; not the writers' folders."""
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted(run.rglob("labels/**/*"))
        if path.is_file() and ".tmp" not in path.parts
    }
