#!/usr/bin/env python
# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Measure the time of data loading, a training step, inference, the CRF and label making.

Each result is the median of repeated runs after a warm-up, with the fastest and the slowest, and
the least processor time of a run (all threads of this process). On a shared machine the fastest
run is more reliable, on a busy one the processor time.
"""

import argparse
import logging
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from wsis_d2.utils.cli import main_with_errors
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.files import check_writable

TASKS = ("data", "train", "inference", "crf", "labels")
EPILOG = """examples:
  # the CRF alone, at the size of a VOC image, no data needed
  tools/benchmark.py --tasks crf --height 375 --width 500 --labels 10

  # everything of a recipe; weak sets need their labels
  tools/benchmark.py --config-file configs/Sample-Panoptic/semantic_weak.yaml --output b.json \\
      DATASETS.LABEL_STORES "[['sample_train_weak', 'output/labels']]"

  # a training step of a recipe that names no data, on your own data
  tools/benchmark.py --tasks train --config-file configs/Lite/semantic_Lite0.yaml \\
      DATASETS.OWN "[{'name': 'a', 'json': 'a.json', 'images': 'photos', 'labels': 'labels'}]" \\
      DATASETS.TRAIN "('a',)"

  # training step and inference on a GPU
  tools/benchmark.py --tasks train inference \\
      --config-file configs/Sample-Panoptic/semantic_full.yaml MODEL.DEVICE cuda
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tasks", nargs="+", choices=TASKS, help="default: all; crf without config"
    )
    parser.add_argument("--config-file", metavar="F", help="for all tasks but crf")
    parser.add_argument("--repeat", type=int, default=10, metavar="N", help="(%(default)s)")
    parser.add_argument("--warmup", type=int, default=2, metavar="N", help="(%(default)s)")
    parser.add_argument("--height", type=int, default=128, help="crf: of the image (%(default)s)")
    parser.add_argument("--width", type=int, default=160, help="crf: of the image (%(default)s)")
    parser.add_argument("--labels", type=int, default=10, metavar="L", help="crf: (%(default)s)")
    parser.add_argument("--output", type=Path, metavar="B.json", help="figures as JSON")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE ...")
    return parser


def measure(
    function: Callable[[], Any], repeat: int, warmup: int, device: str = "cpu"
) -> dict[str, float]:
    """Return median, fastest and slowest of ``repeat`` calls, in milliseconds.

    ``processor_ms`` is the least processor time of a call.
    """
    import torch

    times, processor = [], []
    for index in range(warmup + repeat):
        start, begun = time.perf_counter(), time.process_time()
        function()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        if index >= warmup:
            times.append(1000 * (time.perf_counter() - start))
            processor.append(1000 * (time.process_time() - begun))
    return {
        "median_ms": float(np.median(times)),
        "fastest_ms": min(times),
        "slowest_ms": max(times),
        "processor_ms": min(processor),
        "repeat": repeat,
    }


def time_data(cfg: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Time one batch of the training loader."""
    from wsis_d2.data.loader import build_train_loader

    batches = iter(build_train_loader(cfg))
    found = measure(lambda: next(batches), args.repeat, args.warmup)
    return {**found, "batch": cfg.SOLVER.IMS_PER_BATCH, "workers": cfg.DATALOADER.NUM_WORKERS}


def time_train(cfg: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Time forward, backward and update of one batch, data loading left out."""
    from detectron2.utils.events import EventStorage

    from wsis_d2.data.loader import build_train_loader
    from wsis_d2.engine import build_optimizer
    from wsis_d2.modeling.build import build_model

    batch = next(iter(build_train_loader(cfg)))
    model = build_model(cfg).train()
    optimizer = build_optimizer(cfg, model)

    def step() -> None:
        loss = sum(model(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    with EventStorage():
        found = measure(step, args.repeat, args.warmup, cfg.MODEL.DEVICE)
    return {**found, "batch": len(batch), "size": list(batch[0]["image"].shape[1:])}


def time_inference(cfg: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Time the prediction of one image of the test set."""
    import torch

    from wsis_d2.data.loader import build_test_loader
    from wsis_d2.modeling.build import build_model

    names = cfg.DATASETS.TEST or cfg.DATASETS.TRAIN
    if not names:
        raise InputError(f"{args.config_file}: DATASETS.TEST is empty, expected a dataset")
    batch = next(iter(build_test_loader(cfg, names[0])))
    model = build_model(cfg).eval()
    with torch.no_grad():
        found = measure(lambda: model(batch), args.repeat, args.warmup, cfg.MODEL.DEVICE)
    return {**found, "size": list(batch[0]["image"].shape[1:])}


def time_crf(cfg: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Time forward, and forward with backward, of the CRF on a smooth random picture."""
    import cv2
    import torch

    from wsis_d2.layers import mean_field

    device = cfg.MODEL.DEVICE if cfg is not None else "cpu"
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (args.height // 8 + 2, args.width // 8 + 2, 3)).astype(np.uint8)
    picture = cv2.resize(small, (args.width, args.height), interpolation=cv2.INTER_CUBIC)
    noisy = np.clip(picture + rng.normal(0, 5, picture.shape), 0, 255).transpose(2, 0, 1)
    image = torch.from_numpy(noisy.astype(np.float32)).to(device)
    scores = torch.randn(args.labels, args.height, args.width, device=device)
    leaf = scores.clone().requires_grad_()

    def backward() -> None:
        leaf.grad = None
        mean_field(leaf, image).sum().backward()

    forward = measure(lambda: mean_field(scores, image), args.repeat, args.warmup, device)
    both = measure(backward, args.repeat, args.warmup, device)
    return {
        **forward,
        "with_backward_median_ms": both["median_ms"],
        "with_backward_fastest_ms": both["fastest_ms"],
        "labels": args.labels,
        "size": [args.height, args.width],
    }


def time_labels(cfg: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Time the labels of one image's boxes (GrabCut and region proposals), image by image."""
    from itertools import cycle

    from wsis_d2.data.records import load_records
    from wsis_d2.weak_labels.box_labels import BoxLabeller
    from wsis_d2.weak_labels.box_masks import BoxLabelOptions
    from wsis_d2.weak_labels.proposals import build_proposal_source

    names = cfg.DATASETS.TRAIN or cfg.DATASETS.TEST
    if not names:
        raise InputError(f"{args.config_file}: DATASETS.TRAIN is empty, expected a dataset")
    records = cycle(load_records(names))
    options = BoxLabelOptions.from_config(cfg)
    source = build_proposal_source(cfg) if options.needs_proposals else None
    labeller = BoxLabeller(source, options, 255)
    return measure(lambda: labeller(next(records)), args.repeat, args.warmup)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; return its exit status."""
    args = make_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    if args.output is not None:
        check_writable(args.output)
    tasks = args.tasks or (TASKS if args.config_file else ("crf",))
    for name, low in (("repeat", 1), ("warmup", 0), ("height", 2), ("width", 2), ("labels", 1)):
        if getattr(args, name) < low:
            raise InputError(f"--{name} {getattr(args, name)}: expected at least {low}")
    if not args.config_file and set(tasks) != {"crf"}:
        raise InputError(
            f"--tasks {' '.join(tasks)}: expected --config-file F, all but crf need it"
        )

    import torch

    from wsis_d2 import __version__
    from wsis_d2.engine import load_cfg
    from wsis_d2.utils.json_io import write_json

    cfg = load_cfg(args.config_file, args.opts) if args.config_file or args.opts else None
    functions = {"data": time_data, "train": time_train, "inference": time_inference,
                 "crf": time_crf, "labels": time_labels}  # fmt: skip
    figures: dict[str, Any] = {}
    for task in tasks:
        figures[task] = functions[task](cfg, args)
        f = figures[task]
        print(f"{task}: {f['median_ms']:.1f} ms ({f['fastest_ms']:.1f} to {f['slowest_ms']:.1f})")
    rows = [
        [task, f["median_ms"], f["fastest_ms"], f["slowest_ms"], f["processor_ms"],
         ", ".join(f"{k} {v}" for k, v in f.items() if k in ("batch", "size", "labels", "workers"))]
        for task, f in figures.items()
    ]  # fmt: skip
    print(
        tabulate(
            rows, ["part", "median ms", "fastest", "slowest", "processor", "of"], floatfmt=".1f"
        )
    )
    if args.output is not None:
        device = cfg.MODEL.DEVICE if cfg is not None else "cpu"
        name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor()
        content = {
            "figures": figures,
            "config": args.config_file,
            "machine": {
                "device": device,
                "name": name or platform.machine(),
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "wsis_d2": __version__,
            },
        }
        write_json(args.output, content, indent=1)
        print(f"wrote {args.output}")
    return 0


if __name__ == "__main__":
    main_with_errors(main)
