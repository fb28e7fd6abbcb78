# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Time and memory of evaluating panoptic files, beside panopticapi on the same cores.

    python tests/benchmarks/bm_panoptic_quality.py --images 500

Not a test: prints one line for each case. Each case is a process of its own, start-up included;
processor time is summed over its processes and stays comparable on a busy machine; memory is the
peak of the resident memory of it and its children (shared pages counted once), sampled.
"""

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

CATEGORIES = [{"id": k, "name": str(k), "isthing": int(k > 11)} for k in range(1, 20)]

OURS = """
import os
import sys
os.environ["WSIS_D2_NO_REGISTER"] = "1"
from wsis_d2.evaluation.from_files import FileOptions, evaluate_files
gt_json, pred_json, gt_dir, pred_dir, workers = sys.argv[1:]
result = evaluate_files(pred_json, pred_dir, gt_json, gt_dir, FileOptions(workers=int(workers)))
print(result["panoptic_seg"]["PQ"])
"""
THEIRS = """
import sys
from panopticapi import evaluation
gt_json, pred_json, gt_dir, pred_dir, workers = sys.argv[1:]
evaluation.multiprocessing.cpu_count = lambda: int(workers)
print(float(100 * evaluation.pq_compute(gt_json, pred_json, gt_dir, pred_dir)["All"]["pq"]))
"""


def scene(rng: np.random.Generator, height: int, width: int, segments: int) -> np.ndarray:
    """Return an id picture with ``segments`` regions of uneven shape and a void border."""
    ids = np.full((height, width), 1, np.int64)
    for number in range(2, segments + 1):
        h, w = rng.integers(height // 20, height // 3), rng.integers(width // 30, width // 5)
        y, x = rng.integers(0, height - h), rng.integers(0, width - w)
        yy, xx = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
        inside = yy**2 + xx**2 + 0.3 * np.sin(9 * xx + number) < 1
        ids[y : y + h, x : x + w][inside] = number
    ids[-height // 20 :] = 0
    return ids


def write_set(folder: Path, images: int, height: int, width: int, segments: int) -> list[str]:
    """Write truth and predictions; return the four paths."""
    rng = np.random.default_rng(0)
    pictures = []
    for number in range(min(images, 8)):
        truth = scene(rng, height, width, segments)
        category = rng.integers(1, 20, size=segments + 1)
        pair = []
        for name, ids in (("gt", truth), ("pred", np.roll(truth, (5, 9), (0, 1)))):
            ids = ids * 4099 * (ids > 0)
            color = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
            path = folder / f"{name}_{number}.png"
            Image.fromarray(color).save(path, compress_level=6)
            info = [
                {"id": int(i), "category_id": int(category[i // 4099]), "iscrowd": 0, "score": 0.5,
                 "area": int(n)}
                for i, n in zip(*np.unique(ids, return_counts=True), strict=True) if i
            ]  # fmt: skip
            pair.append((path, info))
        pictures.append(pair)
    paths = []
    for side, name in enumerate(("gt", "pred")):
        (folder / name).mkdir()
        annotations = []
        for number in range(images):
            source, info = pictures[number % len(pictures)][side]
            os.link(source, folder / name / f"{number}.png")
            annotations.append(
                {"image_id": number, "file_name": f"{number}.png", "segments_info": info}
            )
        file = folder / f"{name}.json"
        file.write_text(json.dumps({"annotations": annotations, "categories": CATEGORIES}))
        paths.append(str(file))
    return [*paths, str(folder / "gt"), str(folder / "pred")]


def resident_mib(root: int) -> float:
    """Return the resident memory of a process and its descendants, shared pages split (PSS)."""
    total, todo = 0, [root]
    while todo:
        pid = todo.pop()
        try:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
            for task in Path(f"/proc/{pid}/task").iterdir():
                todo += [int(child) for child in (task / "children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return total / 1024


def cpu_seconds() -> float:
    """Return the processor time of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(code: str, paths: list[str], workers: int) -> tuple[float, float, float, float]:
    """Return (seconds, processor seconds, peak MiB, PQ) of one case."""
    before = cpu_seconds()
    command = [sys.executable, "-W", "ignore", "-c", code, *paths, str(workers)]
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, resident_mib(process.pid))
        time.sleep(0.05)
    seconds = time.monotonic() - start
    if process.returncode:
        raise SystemExit(f"a case failed with status {process.returncode}")
    return seconds, cpu_seconds() - before, peak, float(process.stdout.read().split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[500])
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 2048), metavar=("H", "W"))
    parser.add_argument("--segments", type=int, default=40)
    parser.add_argument("--workers", type=int, default=multiprocessing.cpu_count())
    args = parser.parse_args()
    print(f"{args.workers} processes, {args.size[0]} x {args.size[1]}, {args.segments} segments")
    for images in args.images:
        with tempfile.TemporaryDirectory() as folder:
            paths = write_set(Path(folder), images, *args.size, args.segments)
            for name, code in (("wsis_d2", OURS), ("panopticapi", THEIRS)):
                seconds, processor, peak, quality = measure(code, paths, args.workers)
                print(
                    f"{name:12s} {images:5d} images {seconds:7.1f} s"
                    f" {processor:7.1f} s of processor ({1000 * processor / images:6.1f} ms an"
                    f" image) {peak:6.0f} MiB peak  PQ {quality:.6f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
