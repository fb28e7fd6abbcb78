#!/usr/bin/env python
# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Release a trained model: strip and hash its weights, write config, card and index entry.

The output folder is a model zoo. WSIS_D2_MODEL_ZOO names it, or the URL that serves it, for
wsis_d2.model_zoo and tools/demo.py.
"""

import argparse
from collections.abc import Sequence

from wsis_d2.utils.cli import main_with_errors

EPILOG = """examples:
  # a run's last checkpoint, its results and the recipe of its labels
  tools/publish_model.py --run output/run --id PascalVOC-PanopticSegmentation/wsis_R_101_weak \\
      --store output/labels --output zoo --mirror https://example.org/zoo/weights

  # use it, from the folder or from where the folder is served
  WSIS_D2_MODEL_ZOO=zoo tools/demo.py --model PascalVOC-PanopticSegmentation/wsis_R_101_weak \\
      --input photo.jpg --output pictures

  # the weak model of `make demo`, in 16 bits
  tools/publish_model.py --run output/demo/weak --id Sample-Panoptic/instance_weak --half \\
      --store output/demo/labels --output zoo
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", required=True, metavar="DIR", help="OUTPUT_DIR of the run")
    parser.add_argument("--id", required=True, metavar="ID", help="model id: FOLDER/CONFIG")
    parser.add_argument("--output", required=True, metavar="ZOO", help="folder of the zoo")
    parser.add_argument("--checkpoint", metavar="W.pth", help="default: model_final.pth of the run")
    parser.add_argument("--results", metavar="R.json", help="default: results.json of the run")
    parser.add_argument("--run-name", metavar="NAME", help="the run in a results.json of several")
    parser.add_argument(
        "--store", action="append", default=[], help="label store it was trained from; repeatable"
    )
    parser.add_argument("--half", action="store_true", help="weights in 16 bits: half the size")
    parser.add_argument(
        "--mirror", action="append", default=[], metavar="URL", help="folder that has them too"
    )
    parser.add_argument("--license", default="Apache-2.0", help="of the weights (%(default)s)")
    parser.add_argument("--notes", default="", help="a paragraph for the card")
    parser.add_argument(
        "--trust", action="store_true", help="read a checkpoint that may contain code"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; return its exit status."""
    args = make_parser().parse_args(argv)

    from wsis_d2.checkpoint.reader import trust_checkpoints
    from wsis_d2.evaluation.results import git_commit
    from wsis_d2.model_zoo.publish import publish

    if args.trust:
        trust_checkpoints()
    entry = publish(
        args.run,
        args.id,
        args.output,
        checkpoint=args.checkpoint,
        results=args.results,
        run_name=args.run_name,
        stores=args.store,
        half=args.half,
        mirrors=args.mirror,
        license=args.license,
        notes=args.notes,
        commit=git_commit(),
    )
    found = entry["checkpoint"]
    print(f"{args.id}: {found['file']}, {found['size'] / 2**20:.2f} MiB, sha256 {found['sha256']}")
    print(f"card {entry['card']}; index {args.output}/model_zoo.json")
    return 0


if __name__ == "__main__":
    main_with_errors(main)
