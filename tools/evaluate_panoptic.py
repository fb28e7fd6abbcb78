#!/usr/bin/env python
# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Measure any model's panoptic predictions from files alone: PQ, AP^r, IoU, AP of instances."""

import argparse
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

# Files alone are read: models and data sets, and with them torch, need not be loaded.
if __name__ == "__main__":
    os.environ.setdefault("WSIS_D2_NO_REGISTER", "1")

from wsis_d2.evaluation.average_precision import DEFAULT_THRESHOLDS, MATCHINGS, APrOptions
from wsis_d2.evaluation.from_files import FileOptions, evaluate_files
from wsis_d2.evaluation.image_match import RANKING_SCORES
from wsis_d2.evaluation.instance_ap import PROTOCOLS
from wsis_d2.evaluation.panoptic_quality import PQ_VARIANTS
from wsis_d2.evaluation.results import (
    check_results_file,
    copy_paste_rows,
    git_commit,
    make_meta,
    write_results_json,
)
from wsis_d2.evaluation.table import format_results
from wsis_d2.structures.annotation import SUPERVISIONS
from wsis_d2.utils.cli import main_with_errors

EXAMPLES = """examples:
  # every metric of a prediction file
  tools/evaluate_panoptic.py --pred-json P.json --pred-dir P --gt-json G.json --gt-dir G
  # the paper's Cityscapes thresholds, the authors' way of matching, into a results file
  tools/evaluate_panoptic.py --pred-json P.json --pred-dir P --gt-json G.json --gt-dir G \\
      --apr-thresholds 0.5:0.95:0.05 --matching paper --pq paper --output results.json
  # rank by another score, no network needed
  tools/evaluate_panoptic.py --pred-json P.json --pred-dir P --gt-json G.json --gt-dir G \\
      --score-mode mean_confidence
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    files = parser.add_argument_group("files (COCO panoptic JSON and folder of RGB PNGs)")
    files.add_argument("--pred-json", required=True, type=Path, help="the predictions")
    files.add_argument("--pred-dir", required=True, type=Path, help="their PNGs")
    files.add_argument("--gt-json", required=True, type=Path, help="the truth")
    files.add_argument("--gt-dir", required=True, type=Path, help="its PNGs")
    files.add_argument(
        "--semantic-dir", type=Path,
        help="8-bit PNGs of the semantic output (class numbers 0.. in order of category id; of the"
        " categories in DIR.json, if it exists);"
        " without it IoU is that of the segments' union",
    )  # fmt: skip
    what = parser.add_argument_group("metrics")
    what.add_argument("--pq", choices=PQ_VARIANTS, default="coco", help="definition of PQ")
    what.add_argument(
        "--matching", choices=MATCHINGS, default="unique",
        help="AP^r: match a true segment once, or as the authors' code does (default unique)",
    )  # fmt: skip
    what.add_argument(
        "--apr-thresholds", default=DEFAULT_THRESHOLDS, metavar="A:B:STEP",
        help=f"IoU thresholds of AP^r, both ends included (default {DEFAULT_THRESHOLDS})",
    )  # fmt: skip
    what.add_argument(
        "--score-mode", choices=RANKING_SCORES, default="score",
        help="what ranks segments: their score, one of scores{}, detection for things with mean"
        " confidence for stuff (both), nothing (one), or the best possible order (oracle)",
    )  # fmt: skip
    what.add_argument(
        "--instance-ap", choices=(*PROTOCOLS, "none"), default="coco",
        help="protocol of the AP of things (default coco)",
    )  # fmt: skip
    what.add_argument(
        "--allow-missing", action="store_true",
        help="count images without a prediction as missed",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, default=0, help="processes (0: cores, up to 8)")
    out = parser.add_argument_group("results.json")
    out.add_argument("--output", type=Path, help="write or update this results file")
    out.add_argument("--name", default="run", help="name of the run in it (default run)")
    out.add_argument(
        "--supervision", choices=SUPERVISIONS, default="full", help="noted in the results"
    )
    out.add_argument("--dataset", help="noted there (default: the truth's file name)")
    out.add_argument("--variant", default="main", help="noted there (default main)")
    out.add_argument("--seed", type=int, help="noted there")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the tool."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    start = time.monotonic()
    options = FileOptions(
        pq=args.pq,
        apr=APrOptions(args.apr_thresholds, args.matching, args.score_mode),
        instance_ap=args.instance_ap,
        semantic_folder=args.semantic_dir,
        allow_missing=args.allow_missing,
        workers=args.workers,
    )
    if args.output is not None:
        check_results_file(args.output)
    results = evaluate_files(args.pred_json, args.pred_dir, args.gt_json, args.gt_dir, options)
    print(format_results(results))
    print("\n".join(copy_paste_rows(results)))
    if args.output is not None:
        meta = make_meta(
            supervision=args.supervision,
            dataset=args.dataset or args.gt_json.stem,
            variant=args.variant,
            seed=args.seed,
            commit=git_commit(),
            seconds=round(time.monotonic() - start, 3),
        )
        write_results_json(args.output, args.name, results, meta)
        print(f"wrote {args.output}")


if __name__ == "__main__":
    main_with_errors(main)
