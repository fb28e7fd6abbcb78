# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Time label cleaning of a street scene: 1024 x 2048, 20 boxes, 15 crops, all six steps.

python tests/benchmarks/bm_clean.py [--boxes 20] [--repeat 7]
"""

import argparse
import time

import numpy as np

from wsis_d2.data.datasets.builtin.segments import crop_starts
from wsis_d2.structures.boxes import Box
from wsis_d2.weak_labels.clean import CleanOptions, clean_labels

HEIGHT, WIDTH = 1024, 2048
THINGS = frozenset(range(11, 19))


def make_case(count: int, seed: int = 0) -> dict:
    """Draw a label map of patches, scores, masks, boxes and crop tags."""
    rng = np.random.default_rng(seed)
    classes = np.array([*range(19), 255], np.uint8)
    patches = (HEIGHT // 16, WIDTH // 16)
    labels = rng.choice(classes, patches).repeat(16, 0).repeat(16, 1)
    boxes = []
    box_mask_map = np.zeros((HEIGHT, WIDTH), np.uint8)
    for _ in range(count):
        width, height = rng.integers(20, 600), rng.integers(20, 400)
        x, y = rng.integers(0, WIDTH - width), rng.integers(0, HEIGHT - height)
        class_id = int(rng.choice(sorted(THINGS)))
        boxes.append(Box(class_id, x, y, x + width - 1, y + height - 1, bool(rng.random() < 0.1)))
        box_mask_map[y : y + height, x : x + width] = 255
        box_mask_map[y + height // 4 : y + height // 2, x + width // 4 : x + width // 2] = class_id
    crops = [
        (x, y, x + 500, y + 400, frozenset(rng.choice(11, 6, replace=False).tolist()))
        for x in crop_starts(WIDTH, 500)
        for y in crop_starts(HEIGHT, 400)
    ]
    return {
        "labels": labels,
        "scores": rng.random((HEIGHT, WIDTH), np.float32) * 0.05 + 0.95,
        "box_mask_map": box_mask_map,
        "boxes": boxes,
        "crop_tags": crops,
        "image_tags": frozenset(range(11)),
        "thing_ids": THINGS,
        "options": CleanOptions(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--boxes", type=int, default=20)
    parser.add_argument("--repeat", type=int, default=7)
    args = parser.parse_args()
    case = make_case(args.boxes)
    wall, cpu = [], []
    for _ in range(args.repeat):
        start, start_cpu = time.perf_counter(), time.process_time()
        result = clean_labels(**case)
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    print(
        f"{HEIGHT} x {WIDTH}, {args.boxes} boxes, stages {', '.join(result.stages)}: "
        f"median {np.median(wall):.3f} s, best {min(wall):.3f} s; "
        f"processor time median {np.median(cpu):.3f} s"
    )


if __name__ == "__main__":
    main()
