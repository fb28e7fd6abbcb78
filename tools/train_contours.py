#!/usr/bin/env python
# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Train the contour network of the region proposals.

The weights in the package come from the first example below: generated scenes with textures that
are procedural or cut from the freely licensed photographs named there, without non-commercial
data. BSDS500 can be used instead where its terms allow.
"""

import argparse
import hashlib
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from wsis_d2.utils.cli import main_with_errors
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.files import atomic_write, check_writable, list_files
from wsis_d2.utils.image_io import read_picture
from wsis_d2.utils.matlab import read_matlab
from wsis_d2.utils.progress import progress
from wsis_d2.weak_labels.proposals.contours import (
    WEIGHTS,
    contour_features,
    gradient_contours,
)
from wsis_d2.weak_labels.proposals.dead_leaves import draw_scene, outlines

EPILOG = """examples:
  # the shipped weights; photographs: astronaut, brick, camera, chelsea, coffee, grass, gravel,
  # rocket from scikit-image 0.25.2 (its skimage/data folder; all CC0 or public domain)
  tools/train_contours.py --photographs skimage/data/{astronaut,brick,camera,chelsea,coffee}.png \\
      skimage/data/{grass,gravel}.png skimage/data/rocket.jpg --output contour_weights.npz

  # the same on BSDS500 (images/train, groundTruth/train below the folder)
  tools/train_contours.py --bsds BSDS500/data --output bsds_weights.npz

use them: tools/make_weak_labels.py boxes ... WEAK_LABELS.PROPOSALS.CONTOURS learned \\
    WEAK_LABELS.PROPOSALS.PATH FILE.npz
"""

logger = logging.getLogger(__name__)


def scenes(
    rng: np.random.Generator, count: int, photographs: list[np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield image, target and weight of generated scenes; target is 1 on outlines."""
    for _ in range(count):
        image, leaves, photo = draw_scene(rng, photographs)
        edge = outlines(leaves).astype(np.uint8)
        near = cv2.dilate(edge, np.ones((5, 5), np.uint8))
        # Strong edges inside photographs may be outlines too: nobody drew them, so leave them out.
        unsure = photo & (gradient_contours(image) > 0.7)
        yield image, edge, np.where(edge > 0, 1.0, ((near == 0) & ~unsure).astype(float))


def bsds(folder: Path, split: str) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield image, target and weight of BSDS500; pixels that a minority drew are left out."""
    files = list_files(folder / "groundTruth" / split, "*.mat")
    if not files:
        raise InputError(f"--bsds {folder}: no groundTruth/{split}/*.mat, name BSDS500/data")
    for file in files:
        image = read_picture(folder / "images" / split / f"{file.stem}.jpg", "BGR")
        truths = read_matlab(file, ["groundTruth"])["groundTruth"].ravel()
        drawn = np.mean([t["Boundaries"][0, 0].astype(np.uint8) for t in truths], axis=0)
        near = np.mean(
            [
                cv2.dilate(t["Boundaries"][0, 0].astype(np.uint8), np.ones((3, 3), np.uint8))
                for t in truths
            ],
            axis=0,
        )
        far = cv2.dilate((drawn > 0).astype(np.uint8), np.ones((7, 7), np.uint8)) == 0
        yield image, (near >= 0.5).astype(np.uint8), ((near >= 0.5) | far).astype(float)


def samples(
    pictures: Iterator, count: int, rng: np.random.Generator, each: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return features and targets of pixels of the pictures, half of them outlines."""
    inputs, targets = [], []
    for image, target, weight in progress(pictures, total=count, desc="features", unit="picture"):
        features = contour_features(image).reshape(-1, contour_features_count())
        for value in (0, 1):
            places = np.flatnonzero((target.ravel() == value) & (weight.ravel() > 0))
            chosen = rng.choice(places, min(each, len(places)), replace=False)
            inputs.append(features[chosen])
            targets.append(np.full(len(chosen), value, np.float32))
    return np.concatenate(inputs), np.concatenate(targets)


def contour_features_count() -> int:
    """Return the number of features of a pixel."""
    return contour_features(np.zeros((8, 8, 3), np.uint8)).shape[2]


def train(
    inputs: np.ndarray, targets: np.ndarray, hidden: int, epochs: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Train the network; return its layers, the normalisation folded into the first one."""
    import torch

    torch.manual_seed(seed)
    mean, deviation = inputs.mean(axis=0), inputs.std(axis=0) + 1e-6
    x = torch.from_numpy((inputs - mean) / deviation)
    y = torch.from_numpy(targets)
    net = torch.nn.Sequential(
        torch.nn.Linear(x.shape[1], hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 1)
    )
    size = 4096
    steps = epochs * (len(x) // size)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2, weight_decay=1e-5)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in progress(range(epochs), desc="training", unit="epoch"):
        order = torch.randperm(len(x))
        for start in range(0, len(x) - size + 1, size):
            batch = order[start : start + size]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                net(x[batch])[:, 0], y[batch]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
    logger.info("last loss %.4f", loss.item())
    first, last = net[0], net[2]
    weight = first.weight.detach().numpy().T / deviation[:, None]
    bias = first.bias.detach().numpy() - mean @ weight
    return [(weight, bias), (last.weight.detach().numpy().T, last.bias.detach().numpy())]


def make_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", required=True, type=Path, metavar="W.npz")
    parser.add_argument("--photographs", nargs="*", default=[], metavar="FILE", help="textures")
    parser.add_argument("--bsds", type=Path, metavar="DIR", help="train on BSDS500/data instead")
    parser.add_argument("--scenes", type=int, default=300, help="generated scenes (default 300)")
    parser.add_argument("--each", type=int, default=1500, help="pixels of a class and picture")
    parser.add_argument("--hidden", type=int, default=24, help="hidden units (default 24)")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; return its exit status."""
    args = make_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    check_writable(args.output)
    rng = np.random.default_rng(args.seed)
    origin = {"seed": args.seed, "hidden": args.hidden, "epochs": args.epochs, "each": args.each}
    if args.bsds:
        count = len(list_files(args.bsds / "groundTruth" / "train", "*.mat"))
        pictures = bsds(args.bsds, "train")
        origin["data"] = "BSDS500 train (non-commercial research)"
    else:
        photographs = []
        for name in args.photographs:
            photographs.append(read_picture(name, "BGR"))
        count = args.scenes
        pictures = scenes(rng, count, photographs)
        origin["data"] = f"{count} generated dead-leaves scenes"
        origin["photographs"] = {
            Path(n).name: hashlib.sha256(Path(n).read_bytes()).hexdigest() for n in args.photographs
        }
    layers = train(*samples(pictures, count, rng, args.each), args.hidden, args.epochs, args.seed)
    arrays = {}
    for number, (weight, bias) in enumerate(layers):
        arrays[f"weight{number}"] = weight.astype(np.float32)
        arrays[f"bias{number}"] = bias.astype(np.float32)
    with atomic_write(args.output) as file:
        np.savez_compressed(file, provenance=json.dumps(origin, sort_keys=True), **arrays)
    logger.info("%s written (the shipped weights are %s)", args.output, WEIGHTS.name)
    return 0


if __name__ == "__main__":
    main_with_errors(main)
