#!/usr/bin/env python
# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Turn the Cityscapes labels that the paper's authors released into label stores."""

import argparse
import logging
import sys
from collections.abc import Sequence

from wsis_d2.utils.cli import main_with_errors, positive
from wsis_d2.utils.errors import InputError

EPILOG = """examples:
  # start from their round-0 labels
  tools/import_released_labels.py merged --labels cam_mandg_merged/train \\
      --dataset cityscapes_fine_panoptic_train_weak --output output/released

  # or from the parts, merged here
  tools/import_released_labels.py cam --labels cam/train --dataset NAME --output output/cam
  tools/import_released_labels.py mandg --labels mcg_and_grabcut/train --dataset NAME \\
      --output output/mandg
  tools/make_weak_labels.py merge --dataset NAME --boxes output/mandg --tags output/cam \\
      --output output/labels

Exit status: 0 all images imported, 1 some could not be (named above), 2 bad input.
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=("cam", "mandg", "merged"), help="what the files are")
    parser.add_argument("--labels", required=True, metavar="DIR", help="folder of the PNGs")
    parser.add_argument("--dataset", required=True, metavar="NAME", help="the weak dataset")
    parser.add_argument("--output", required=True, metavar="STORE", help="folder of the store")
    parser.add_argument("--workers", type=positive, metavar="N", help="processes (default: cores)")
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N images")
    parser.add_argument("--force", action="store_true", help="discard existing labels")
    args = parser.parse_args(argv)
    logging.basicConfig(
        level=logging.INFO, format="[%(asctime)s] %(message)s", datefmt="%H:%M:%S",
        stream=sys.stderr, force=True,
    )  # fmt: skip
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from wsis_d2.data.datasets.builtin.metadata import CITYSCAPES_CATEGORIES
    from wsis_d2.data.datasets.own.custom import dataset_classes
    from wsis_d2.structures.classes import in_order, match_classes, parse_categories
    from wsis_d2.weak_labels.driver import LabelRun
    from wsis_d2.weak_labels.released import import_released

    if args.dataset not in DatasetCatalog.list():
        raise InputError(f"--dataset {args.dataset}: not registered, see datasets/README.md")
    metadata = MetadataCatalog.get(args.dataset)
    if metadata.get("supervision") != "weak":
        raise InputError(f"--dataset {args.dataset}: is no weak dataset")
    released = parse_categories(CITYSCAPES_CATEGORIES, "the released labels")
    classes = dataset_classes(args.dataset)
    if not in_order(match_classes(released, classes)):
        raise InputError(
            f"--dataset {args.dataset}: has Cityscapes' classes in another order than the released "
            f"labels ({classes.id_text()}); name a built-in dataset, cityscapes_..._weak"
        )
    return import_released(
        args.kind,
        args.labels,
        DatasetCatalog.get(args.dataset),
        [dict(c) for c in metadata.categories],
        args.output,
        has_boxes=metadata.get("has_boxes", True),
        run=LabelRun(workers=args.workers, limit=args.limit, force=args.force),
    )


if __name__ == "__main__":
    main_with_errors(main)
