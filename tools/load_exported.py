#!/usr/bin/env python
# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Run an exported network without wsis_d2 and Detectron2: an example to copy.

Needs torch, torchvision, NumPy, Pillow, the program (tools/export_model.py) and the compiled
operators (wsis_d2/_C*.so of an installation with the same torch).
"""

import argparse
import contextlib
import json
import logging
import sys
import warnings

import numpy as np
import torch
import torchvision  # noqa: F401  its operators are in the program
from PIL import Image, ImageOps

EPILOG = """examples:
  python load_exported.py --program model.pt2 --operators _C.so --input photo.png \\
      --output segments.png

  # a program exported with --detections given; boxes.json holds
  # [{"box": [x0, y0, x1, y1], "score": 0.9, "class": 0}, ...], unified class ids
  python load_exported.py --program joins.pt2 --operators _C.so --input photo.png \\
      --detections boxes.json --output segments.png
"""


@contextlib.contextmanager
def reading(path):
    """End with one line that names the file, whatever is wrong with it."""
    try:
        yield
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        sys.exit(f"error: {path}: {reason[:200]}")


def read_picture(path):
    """Return the pixels that the network was trained on: turned as EXIF says, 8 bits, RGB."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large pictures and transparent palettes
        with Image.open(path) as image:
            image.load()
            deep = image.mode.startswith("I;16") or image.format in ("PNG", "PPM")
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I") and deep:
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if image.mode in ("F", "I"):
                raise ValueError("has floating-point or 32-bit pixels; save it with 8 bits")
            return np.array(image.convert("RGB"))


def main(argv=None):
    """Run the example; return its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--program", required=True, metavar="M.pt2")
    parser.add_argument("--operators", required=True, metavar="_C.so")
    parser.add_argument("--input", required=True, metavar="PICTURE")
    parser.add_argument("--detections", metavar="B.json", help="if they are not made inside")
    parser.add_argument("--output", required=True, metavar="S.png", help="segment ids, 16 bits")
    args = parser.parse_args(argv)

    logging.getLogger("torch.export").setLevel(logging.ERROR)  # it prints what is said below
    with reading(args.operators):
        torch.ops.load_library(args.operators)
    with reading(args.program):
        extra = {"wsis_d2.json": ""}
        program = torch.export.load(args.program, extra_files=extra).module()
        facts = json.loads(extra["wsis_d2.json"])
        if (facts["detections"] == "given") != (args.detections is not None):
            raise ValueError(f"its detections are {facts['detections']}")
    with reading(args.input):
        picture = read_picture(args.input)
    if facts["format"] == "BGR":
        picture = picture[..., ::-1]
    inputs = [torch.from_numpy(picture.transpose(2, 0, 1).astype(np.float32))]
    if args.detections:
        with reading(args.detections), open(args.detections) as file:
            found = json.load(file)
            inputs += [
                torch.tensor([f["box"] for f in found], dtype=torch.float32).reshape(-1, 4),
                torch.tensor([f["score"] for f in found], dtype=torch.float32),
                torch.tensor([f["class"] for f in found], dtype=torch.int64),
            ]
    with reading(args.program), torch.no_grad():
        outputs = dict(zip(facts["outputs"], program(*inputs), strict=True))

    label, stuff = outputs["label"], set(facts["stuff_ids"])
    for index in torch.unique(label).tolist():
        class_id, pixels = int(outputs["classes"][index]), label == index
        # A thing is as sure as its detection, stuff as its pixels are on the average.
        sure = outputs["probabilities"][class_id][pixels].mean()
        score = float(sure if class_id in stuff else outputs["scores"][index])
        name = facts["classes"][class_id]["name"]
        print(f"segment {index + 1}: {name}, score {score:.3f}, {int(pixels.sum())} pixels")
    Image.fromarray((label + 1).numpy().astype(np.uint16)).save(args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
