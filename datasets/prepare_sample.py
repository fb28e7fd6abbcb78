#!/usr/bin/env python
# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Draw the embedded sample: scenes with boxes and tags, and the truth to measure against."""

import argparse
import logging
import os
from collections.abc import Sequence

from wsis_d2.data.datasets.sample.dataset import FOLDER, check_sample, prepare_sample
from wsis_d2.utils.cli import main_with_errors
from wsis_d2.utils.errors import InputError

EXAMPLES = """examples:
  python datasets/prepare_sample.py
  python datasets/prepare_sample.py --output /data/wsis_sample --train 24 --val 8 --seed 1
  python datasets/prepare_sample.py --check
"""


def main(argv: Sequence[str] | None = None) -> int:
    default = os.path.join(os.environ.get("DETECTRON2_DATASETS", "datasets"), FOLDER)
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output",
        default=default,
        help="the sample's folder; default $DETECTRON2_DATASETS/wsis_sample, here %(default)s",
    )
    parser.add_argument("--train", type=int, default=240, help="training scenes (%(default)s)")
    parser.add_argument("--val", type=int, default=60, help="validation scenes (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="other scenes (%(default)s)")
    parser.add_argument(
        "--check", action="store_true", help="only compare every file with the manifest"
    )
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.check:
        problem = check_sample(args.output)
        if problem:
            raise InputError(problem)
        print(f"{args.output}: complete and unchanged")
        return 0
    written = prepare_sample(args.output, args.train, args.val, args.seed)
    print(f"{args.output}: {'written' if written else 'already up to date'}")
    return 0


if __name__ == "__main__":
    main_with_errors(main)
