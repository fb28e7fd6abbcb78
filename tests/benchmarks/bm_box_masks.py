# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Time boxes to masks on photographs: one process, one thread; milliseconds are medians.

proposals    our region proposals of an image, and a box: GrabCut, selection and the mask; the
             largest resident set; ratios to the published times of MCG and SCG (one core of
             their day) and, with OpenCV's contrib build, to its selective search, interleaved
workers      tools/make_weak_labels.py boxes on an own-data file: two processes over one, for the
             whole command and for the pace once every process has labelled an image; beside it two
             commands at once with half the images each, which is what the machine gives

Label making sets these variables for its processes; here they must be given.

Examples:
    export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 NUMBA_NUM_THREADS=1 WSIS_D2_NO_REGISTER=1
    python tests/benchmarks/bm_box_masks.py proposals --images photos/*.jpg --size 500x375
    python tests/benchmarks/bm_box_masks.py proposals --images street.png --size 2048x1024
    python tests/benchmarks/bm_box_masks.py workers --annotations a.json --images photos --limit 24
"""

import argparse
import json
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

from wsis_d2.structures.boxes import Box
from wsis_d2.utils.image_io import read_picture
from wsis_d2.weak_labels.box_masks import BoxLabelOptions, box_parts
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
        image = read_picture(name, "BGR")
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


def random_boxes(image: np.ndarray, count: int, rng: np.random.Generator) -> list[Box]:
    """Return boxes with sides of 0.1 to 0.6 of the image's."""
    height, width = image.shape[:2]
    boxes = []
    for _ in range(count):
        w, h = (int(s * rng.uniform(0.1, 0.6)) for s in (width, height))
        x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
        boxes.append(Box(0, x, y, x + w - 1, y + h - 1))
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
    box_parts(warm, Box(0, 8, 8, 39, 39), lambda: source(warm, {}), options)
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


def start_labelling(annotations: str, images: str, store: Path, count: int) -> subprocess.Popen:
    """Start the command with so many processes."""
    return subprocess.Popen(
        [sys.executable, str(TOOL), "boxes", "--annotations", annotations, "--images", images,
         "--output", str(store), "--workers", str(count)],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip


def halves(own: dict) -> list[dict]:
    """Return an own-data file's content twice, with every second image each."""
    parts = []
    for which in (0, 1):
        images = own["images"][which::2]
        ids = {image["id"] for image in images}
        boxes = [box for box in own["annotations"] if box["image_id"] in ids]
        parts.append({**own, "images": images, "annotations": boxes})
    return parts


def workers(args: argparse.Namespace) -> None:
    """Print how much quicker two processes label than one."""
    own = json.loads(Path(args.annotations).read_text())
    own["images"] = own["images"][: args.limit]
    ids = {image["id"] for image in own["images"]}
    own["annotations"] = [box for box in own["annotations"] if box["image_id"] in ids]
    seconds, pace = {}, {}
    for name, parts, count in (
        ("one process", [own], 1),
        ("two processes", [own], 2),
        ("two commands", halves(own), 1),
    ):
        with tempfile.TemporaryDirectory() as folder:
            stores, running, start = [], [], time.perf_counter()
            for number, part in enumerate(parts):
                file, store = Path(folder) / f"{number}.json", Path(folder) / f"store{number}"
                file.write_text(json.dumps(part))
                stores.append(store)
                running.append(start_labelling(str(file), args.images[0], store, count))
            if any([process.wait() for process in running]):
                raise SystemExit(f"error: {name}: labelling failed")
            seconds[name] = time.perf_counter() - start
            ended = sorted(f.stat().st_mtime for s in stores for f in s.glob("status/*.json"))
        first = count * len(parts)
        pace[name] = (len(ended) - first) / (ended[-1] - ended[first - 1])
        print(f"{name}: {seconds[name]:.1f} s for {len(ended)} images, {pace[name]:.2f} images a s")
    for name in ("two processes", "two commands"):
        print(
            f"{name} / one process: {seconds['one process'] / seconds[name]:.2f} times as quick, "
            f"pace {pace[name] / pace['one process']:.2f}"
        )


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
