#!/usr/bin/env python
# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Count parameters, FLOPs and activations of a model by part."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from wsis_d2.utils.cli import main_with_errors
from wsis_d2.utils.errors import InputError

EPILOG = """examples:
  tools/analyze_model.py --config-file configs/Sample-Panoptic/instance_weak.yaml
  tools/analyze_model.py --height 500 --width 500 \\
      --config-file configs/PascalVOC-PanopticSegmentation/wsis_R_101_weak.yaml
  tools/analyze_model.py --config-file configs/Sample-Panoptic/instance_weak.yaml \\
      --height 500 --width 500 --output model.json
  tools/analyze_model.py --config-file configs/Sample-Panoptic/detector.yaml --tasks parameters
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="F")
    parser.add_argument(
        "--tasks", nargs="+", choices=("parameters", "compute"), default=["parameters", "compute"]
    )
    parser.add_argument("--height", type=int, default=128, help="of the image (%(default)s)")
    parser.add_argument("--width", type=int, default=160, help="of the image (%(default)s)")
    parser.add_argument("--output", type=Path, metavar="M.json", help="everything as JSON")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE ...")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; return its exit status."""
    args = make_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING)
    if not 32 <= args.height <= 8192 or not 32 <= args.width <= 8192:
        raise InputError(f"--height {args.height} --width {args.width}: expected 32 to 8192")

    from wsis_d2.engine import load_cfg
    from wsis_d2.modeling.analysis import compute_table, parameter_table
    from wsis_d2.modeling.build import build_model
    from wsis_d2.utils.json_io import write_json

    cfg = load_cfg(args.config_file, args.opts)
    if cfg.MODEL.META_ARCHITECTURE != "WeakPanopticRCNN" and "compute" in args.tasks:
        raise InputError(
            f"{args.config_file}: MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}; "
            "compute is counted for WeakPanopticRCNN, use --tasks parameters"
        )
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg).eval()
    content = {"config": args.config_file}
    if "parameters" in args.tasks:
        content["parameters"] = parameter_table(model)
        print(tabulate(content["parameters"], headers="keys", intfmt=","))
    if "compute" in args.tasks:
        content["compute"] = compute_table(model, args.height, args.width)
        content["size"] = [args.height, args.width]
        rows = [
            [r["part"], r["flops"] / 1e9, r["activations"] / 1e6, ", ".join(r["not_counted"])]
            for r in content["compute"]
        ]
        headers = ["part", "GFLOP (multiply-add)", "M activations", "operators not counted"]
        print(f"\none image of {args.height} x {args.width}")
        print(tabulate(rows, headers, floatfmt=".3f", maxcolwidths=[None, None, None, 60]))
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.output, content, indent=1)
        print(f"wrote {args.output}")
    return 0


if __name__ == "__main__":
    main_with_errors(main)
