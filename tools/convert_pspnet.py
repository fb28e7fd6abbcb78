#!/usr/bin/env python
# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Turn the public PSPNet (a .caffemodel, depth 101) into a checkpoint to start from."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from wsis_d2.modeling.semantic.public_pspnet import convert, layer_names, read_caffemodel
from wsis_d2.utils.cli import main_with_errors
from wsis_d2.utils.files import atomic_write

EXAMPLES = """examples:
  # what the recipes *_pspnet_init.yaml expect
  tools/convert_pspnet.py pspnet101_cityscapes.caffemodel output/pretrained/pspnet101_cityscapes.pth
  # which layer becomes which
  tools/convert_pspnet.py --names
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("caffemodel", nargs="?", type=Path, help="the released file")
    parser.add_argument("output", nargs="?", type=Path, help="checkpoint to write (.pth)")
    parser.add_argument("--names", action="store_true", help="print the map of names and end")
    args = parser.parse_args(argv)
    if args.names:
        print("\n".join(f"{theirs:24s} semantic.{ours}" for ours, theirs in layer_names().items()))
        return
    if args.caffemodel is None or args.output is None:
        parser.error("name the .caffemodel and the checkpoint to write")
    state = convert(read_caffemodel(args.caffemodel), str(args.caffemodel))
    with atomic_write(args.output) as file:
        torch.save({"model": state}, file)
    print(f"{args.output}: {len(state)} arrays; the auxiliary classifier starts anew")


if __name__ == "__main__":
    main_with_errors(main)
