#!/usr/bin/env python
# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Write a static HTML report: one page and a folder of images, without a server or a network.

labels   pseudo labels of one or more label stores, with annotation and truth
run      results, training curves, rounds and predictions of one or more runs
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from wsis_d2.utils.cli import main_with_errors
from wsis_d2.utils.errors import InputError

EPILOG = """examples:
  # labels of the embedded sample beside the truth, the worst images first
  tools/report.py labels --dataset sample_train_weak --store output/labels --output labels.html

  # own data, two recipes compared: sorted by where they disagree
  tools/report.py labels --annotations cows.json --images photos \\
      --store agreement=cow_labels --store grabcut=cow_grabcut --output cows.html

  # two runs: table, curves, predictions beside the truth
  tools/report.py run --run weak=output/demo/weak --run full=output/demo/full \\
      --dataset sample_val_full --output report.html

  # the same page with training images and their pseudo labels
  tools/report.py run --run output/demo/weak --dataset sample_val_full --limit 30 \\
      --store output/demo/labels --label-dataset sample_train_weak --output report.html

  # only curves, of a run that is still in progress
  tools/report.py run --run output/demo/weak --output curves.html

Keys in the page: 1 to 9 layers, m side by side or stacked, p safe colours, Enter enlarge, ? help.
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    from wsis_d2.report.sources import add_data_arguments

    common = argparse.ArgumentParser(add_help=False)
    add_data_arguments(common)
    common.add_argument("--output", required=True, type=Path, metavar="R.html", help="the page")
    common.add_argument("--title", default="", help="title of the page")
    common.add_argument(
        "--limit", type=int, default=0, metavar="N", help="show N images, spread evenly; 0: all"
    )
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="{labels,run}", help="with -h behind it: its options"
    )
    texts = dict(line.split(None, 1) for line in __doc__.splitlines()[2:])
    for name in ("labels", "run"):
        sub = commands.add_parser(
            name,
            parents=[common],
            description=texts[name],
            epilog=EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.add_argument(
            "--store", action="append", default=[], metavar="[NAME=]STORE",
            required=name == "labels", help="a label store; repeat to compare several",
        )  # fmt: skip
        if name == "run":
            sub.add_argument(
                "--run", action="append", required=True, metavar="[NAME=]DIR",
                help="OUTPUT_DIR of a run; repeat to compare several",
            )  # fmt: skip
            sub.add_argument("--results", metavar="R.json", help="results.json to show instead")
            sub.add_argument(
                "--label-dataset", metavar="NAME",
                help="dataset that --store labels, where it is not --dataset: up to --limit of its"
                " images are added with their pseudo labels",
            )  # fmt: skip
    return parser


def named(values: Sequence[str], option: str) -> dict[str, str]:
    """Return ``[NAME=]PATH`` arguments as a dict; a name is the folder's own unless given.

    Raises:
        InputError: an empty path, or a name given twice.
    """
    result: dict[str, str] = {}
    for value in values:
        name, mark, path = value.partition("=")
        if not mark or "/" in name:
            name, path = Path(value).resolve().name, value
        if not path or name in result:
            problem = "the same name twice" if path else "no path"
            raise InputError(
                f"{option} {value}: {problem}, expected NAME=PATH, names all different"
            )
        result[name] = path
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; return its exit status."""
    args = make_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)

    from wsis_d2.report.labels import label_report
    from wsis_d2.report.runs import run_report
    from wsis_d2.report.sources import open_data
    from wsis_d2.weak_labels.store import LabelStore

    if args.output.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--output {args.output}: expected a name that ends in .html")
    if args.limit < 0:
        raise InputError(f"--limit {args.limit}: expected 0 or more")
    stores = {n: LabelStore.open(p) for n, p in named(args.store, "--store").items()}
    if args.command == "labels":
        page = label_report(
            args.output, open_data(args), stores, limit=args.limit, title=args.title
        )
    else:
        if len(stores) > 1:
            raise InputError("--store: expected at most one beside --run")
        named_data = (args.dataset, args.annotations, args.images, args.gt_json, args.gt_dir)
        data = open_data(args) if any(named_data) else None
        label_data = None
        if args.label_dataset:
            if not stores:
                raise InputError("--label-dataset: needs --store STORE, the labels of its images")
            label_data = open_data(
                argparse.Namespace(
                    dataset=args.label_dataset, annotations=None, images=None,
                    gt_json=None, gt_dir=None,
                )
            )  # fmt: skip
        elif stores and data is None:
            raise InputError("--store: needs --dataset or --label-dataset, whose images it labels")
        page = run_report(
            args.output,
            named(args.run, "--run"),
            data,
            results=args.results,
            store=next(iter(stores.values()), None),
            label_data=label_data,
            label_limit=args.limit,
            limit=args.limit,
            title=args.title,
        )
    print(f"wrote {page}")
    return 0


if __name__ == "__main__":
    main_with_errors(main)
