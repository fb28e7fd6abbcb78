# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Time boxes to masks on photographs: one process, one thread; milliseconds are medians.

proposals    our region proposals of an image, and a box: GrabCut, selection and the mask; the
             largest resident set; ratios to the published times of MCG and SCG (one core of
             their day) and, with OpenCV's contrib build, to its selective search, interleaved
workers      tools/make_weak_labels.py boxes on an own-data file: one process over two

Label making sets these variables for its processes; here they must be given.

Examples:
    export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 NUMBA_NUM_THREADS=1 WSIS_D2_NO_REGISTER=1
    python tests/benchmarks/bm_box_masks.py proposals --images photos/*.jpg --size 500x375
    python tests/benchmarks/bm_box_masks.py proposals --images street.png --size 2048x1024
    python tests/benchmarks/bm_box_masks.py workers --annotations a.json --images photos --limit 24
"""

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from wsis_d2.weak_labels.box_masks import BoxLabelOptions, ThingBox, box_parts
from wsis_d2.weak_labels.proposals import MCGSource

#: Seconds an image: Pont-Tuset et al., "Multiscale Combinatorial Grouping", TPAMI, table of times.
PUBLISHED = {"MCG": 42.2, "SCG": 6.2}
TOOL = Path(__file__).resolve().parents[2] / "tools" / "make_weak_labels.py"


def processor() -> str:
    """Name the machine."""
    try:
        with open("/proc/cpuinfo") as lines:
            name = next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def read_images(names: list[str], size: str) -> list[np.ndarray]:
    """Read pictures and bring them to ``size`` (WIDTHxHEIGHT), if one is given."""
    images = []
    for name in names:
        image = cv2.imread(name)
        if image is None:
            raise SystemExit(f"error: {name}: not a picture")
        if size:
            width, height = map(int, size.split("x"))
            shrinks = width * height < image.shape[0] * image.shape[1]
            how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
            image = cv2.resize(image, (width, height), interpolation=how)
        images.append(image)
    return images


def timed(function):
    """Return a function's result and the processor time it took, ms: other jobs count less."""
    start = time.process_time()
    result = function()
    return result, 1e3 * (time.process_time() - start)


def random_boxes(image: np.ndarray, count: int, rng: np.random.Generator) -> list[ThingBox]:
    """Return boxes with sides of 0.1 to 0.6 of the image's."""
    height, width = image.shape[:2]
    boxes = []
    for _ in range(count):
        w, h = (int(s * rng.uniform(0.1, 0.6)) for s in (width, height))
        x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
        boxes.append(ThingBox(0, x, y, x + w, y + h))
    return boxes


def selective_search(image: np.ndarray) -> int:
    """Return the number of boxes that OpenCV's selective search finds, in its fast mode."""
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(image)
    search.switchToSelectiveSearchFast()
    return len(search.process())


def proposals(args: argparse.Namespace) -> None:
    """Print the times of proposals and boxes, and the memory."""
    cv2.setNumThreads(1)
    source = MCGSource(preset_name=args.preset, contours=args.contours)
    options = BoxLabelOptions()
    rival = hasattr(cv2, "ximgproc")
    rng = np.random.default_rng(0)
    warm = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    box_parts(warm, ThingBox(0, 8, 8, 40, 40), lambda: source(warm, {}), options)
    makes, boxes, ratios, rivals, counts = [], [], [], [], []
    for image in read_images(args.images, args.size):
        found, make = timed(lambda image=image: source(image, {}))
        makes.append(make)
        counts.append(len(found))
        for box in random_boxes(image, args.boxes, rng):
            boxes.append(
                timed(lambda b=box, i=image, p=found: box_parts(i, b, lambda: p, options))[1]
            )
        if rival:
            _, took = timed(lambda image=image: selective_search(image))
            rivals.append(took)
            ratios.append(took / make)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    make, box = statistics.median(makes), statistics.median(boxes)
    print(
        f"{len(makes)} images ({args.size or 'as they are'}), preset {args.preset}, "
        f"contours {args.contours}: {np.mean(counts):.0f} proposals"
    )
    print(f"proposals  {make:.0f} ms an image (largest {max(makes):.0f})")
    print(f"box        {box:.0f} ms (largest {max(boxes):.0f}, {len(boxes)} boxes)")
    print(f"memory     {memory:.2f} GiB largest resident set")
    for name, seconds in PUBLISHED.items():
        print(f"published {name} / ours  {1e3 * seconds / make:.0f}")
    if rival:
        print(
            f"selective search (fast) / ours  {statistics.median(ratios):.1f} "
            f"({statistics.median(rivals):.0f} ms)"
        )
    else:
        print("selective search: not measured; it is in opencv-contrib-python-headless")


def workers(args: argparse.Namespace) -> None:
    """Print how much quicker two processes label than one."""
    took = {}
    for count in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, str(TOOL), "boxes", "--annotations", args.annotations, "--images",
                 args.images[0], "--output", f"{folder}/store", "--limit", str(args.limit),
                 "--workers", str(count)],
                check=True, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            took[count] = time.perf_counter() - start
        print(f"{count} process{'es' * (count > 1)}: {took[count]:.1f} s for {args.limit} images")
    print(f"one / two  {took[1] / took[2]:.2f}, start of the command included")


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", choices=("proposals", "workers"))
    parser.add_argument("--images", nargs="+", required=True, help="pictures; workers: the folder")
    parser.add_argument("--size", default="", metavar="WxH", help="bring pictures to this size")
    parser.add_argument("--boxes", type=int, default=7, help="boxes an image (default 7)")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--contours", default="gradient")
    parser.add_argument("--annotations", help="workers: own-data file")
    parser.add_argument("--limit", type=int, default=24, help="workers: images (default 24)")
    args = parser.parse_args()
    print(processor())
    {"proposals": proposals, "workers": workers}[args.mode](args)


if __name__ == "__main__":
    main()
