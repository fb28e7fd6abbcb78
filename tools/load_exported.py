#!/usr/bin/env python
# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Run an exported network without wsis_d2 and Detectron2: an example to copy.

Needs torch, NumPy, Pillow, the program (tools/export_model.py) and the compiled operators
(wsis_d2/_C*.so of an installation with the same torch).
"""

import argparse
import json
import sys

import numpy as np
import torch
from PIL import Image

EPILOG = """examples:
  python load_exported.py --program model.pt2 --operators _C.so --input photo.png \\
      --detections boxes.json --output segments.png

boxes.json: [{"box": [x0, y0, x1, y1], "score": 0.9, "class": 0}, ...], unified class ids
"""


def main(argv=None):
    """Run the example; return its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--program", required=True, metavar="M.pt2")
    parser.add_argument("--operators", required=True, metavar="_C.so")
    parser.add_argument("--input", required=True, metavar="PICTURE")
    parser.add_argument("--detections", metavar="B.json", help="none: stuff alone")
    parser.add_argument("--output", required=True, metavar="S.png", help="segment ids, 16 bits")
    args = parser.parse_args(argv)

    torch.ops.load_library(args.operators)
    extra = {"wsis_d2.json": ""}
    program = torch.export.load(args.program, extra_files=extra).module()
    facts = json.loads(extra["wsis_d2.json"])

    picture = np.array(Image.open(args.input).convert("RGB"))
    if facts["format"] == "BGR":
        picture = picture[..., ::-1]
    image = torch.from_numpy(picture.transpose(2, 0, 1).astype(np.float32))
    found = []
    if args.detections:
        with open(args.detections) as file:
            found = json.load(file)
    while len(found) < 2:  # the program takes two boxes or more; a score of 0 has no effect
        found.append({"box": [0, 0, 1, 1], "score": 0.0, "class": 0})
    boxes = torch.tensor([f["box"] for f in found], dtype=torch.float32)
    scores = torch.tensor([f["score"] for f in found], dtype=torch.float32)
    classes = torch.tensor([f["class"] for f in found], dtype=torch.int64)
    with torch.no_grad():
        label, _, _ = program(image, boxes, scores, classes)

    names = [facts["classes"][c]["name"] for c in (*classes.tolist(), *facts["stuff_ids"])]
    for index in torch.unique(label).tolist():
        print(f"segment {index + 1}: {names[index]}, {int((label == index).sum())} pixels")
    Image.fromarray((label + 1).numpy().astype(np.uint16)).save(args.output)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        sys.exit(f"error: {str(error).splitlines()[0]}")
