#!/usr/bin/env python
# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Export a trained panoptic network with torch.export, for images of any size.

Detector, semantic subnetwork and CRF are inside: the program takes an image and returns one label
per pixel. Before it is written, its output is compared with the model's on three other sizes.
The program of a model that does not resize its input refuses images of at most 64 x 64 pixels.
"""

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from wsis_d2.utils.cli import main_with_errors
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.files import atomic_write, check_writable

EPILOG = """examples:
  tools/export_model.py --model output/run --output model.pt2
  tools/export_model.py --model Sample-Panoptic/tiny_instance --output tiny.pt2

  # boxes come from another detector: they are inputs of the program
  tools/export_model.py --model output/run --detections given --output joins.pt2

Load it elsewhere: tools/load_exported.py is a complete example that needs torch, torchvision and
the compiled operators, but not wsis_d2 or Detectron2; copy it and the operators' library.
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, metavar="DIR|ID", help="run folder or zoo id")
    parser.add_argument("--output", required=True, type=Path, metavar="M.pt2")
    parser.add_argument(
        "--detections", choices=("inside", "given"), default="inside",
        help="the detector is part of the program, or its boxes are inputs (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument(
        "--trust", action="store_true", help="read a checkpoint that may contain code"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; return its exit status."""
    args = make_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING)
    if args.output.suffix != ".pt2":
        raise InputError(f"--output {args.output}: expected a name that ends in .pt2")
    check_writable(args.output)

    import torch

    from wsis_d2.checkpoint.reader import trust_checkpoints
    from wsis_d2.export.model import OUTPUTS, compare_with_eager, export_model
    from wsis_d2.inference.predictor import PanopticPredictor

    if args.trust:
        trust_checkpoints()
    predictor = PanopticPredictor(args.model, args.device)
    inside = args.detections == "inside"
    program = export_model(predictor.model, inside)
    differences = compare_with_eager(program, predictor.model, inside)
    for picture, difference in differences.items():
        print(f"{picture}: largest difference of scores to the model's {difference:.2e}")
    facts = {
        "classes": predictor.classes,
        "stuff_ids": list(predictor.model.stuff_ids),
        "format": predictor.cfg.INPUT.FORMAT,
        "detections": args.detections,
        "inputs": "image (3, H, W) float32 0..255"
        + ("" if inside else "; boxes (D, 4) XYXY; scores (D,); classes (D,)"),
        "outputs": OUTPUTS,
    }
    with atomic_write(args.output) as file:
        torch.export.save(program, file, extra_files={"wsis_d2.json": json.dumps(facts)})
    from wsis_d2 import _C

    print(f"operators: {_C.__file__}")
    print(f"wrote {args.output}, {args.output.stat().st_size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    main_with_errors(main)
