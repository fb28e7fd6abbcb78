#!/usr/bin/env python
# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Make boxes, tags and COCO panoptic truth, in VOC's classes, from COCO 2014 or 2017.

Expected under $DETECTRON2_DATASETS (default: datasets): coco/annotations/instances_{train,val}YEAR
.json, coco/trainYEAR/ and coco/valYEAR/. Written: wsis_coco_YEAR_vocclasses/. Run again after an
interruption: it continues.
"""

from wsis_d2.data.datasets.builtin import coco
from wsis_d2.data.datasets.builtin.metadata import VOC_CATEGORIES
from wsis_d2.data.datasets.builtin.preparation import Preparation
from wsis_d2.data.datasets.builtin.preparation_command import (
    command_parser,
    expect_count,
    print_manifest,
)
from wsis_d2.data.datasets.builtin.split_files import check_split
from wsis_d2.utils.cli import main_with_errors

EXAMPLES = """examples:
  python datasets/prepare_coco.py --year 2014 --workers 8   # the paper's
  python datasets/prepare_coco.py --year 2017 --check       # compare with the checksums
"""


def main(argv=None):
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("--year", choices=("2014", "2017"), default="2014")
    parser.add_argument(
        "--min-area", type=float, default=0.0, metavar="PIXELS",
        help="take an image only with an object of a VOC class larger than this (default 0)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    output = args.root / coco.output_folder(args.year)
    command = f"{coco.PREPARE_COMMAND} --year {args.year}"
    splits = ("train", "val", "trainval")
    if args.check:
        for split in splits:
            print_manifest(split, check_split(output, split, command))
        return 0
    jobs = {}
    for part in ("train", "val"):
        jobs[part], total = coco.make_jobs(
            args.root / "coco", args.year, part, min_area=args.min_area
        )
        expect_count(
            f"COCO {args.year} {part}", total, coco.SIZES[args.year, part],
            partial=args.allow_partial, hint=f"take the official instances_{part}{args.year}.json",
        )  # fmt: skip
    preparation = Preparation(
        output,
        categories=VOC_CATEGORIES,
        recipe={"dataset": f"coco_{args.year}_vocclasses", "min_area": args.min_area},
        command=command,
        workers=args.workers,
        force=args.force,
    )
    jobs["trainval"] = jobs["train"] + jobs["val"]
    lines = preparation.convert(
        jobs["trainval"], coco.converter(), folder="panoptic", desc=f"COCO {args.year}"
    )
    for split in splits:
        chosen = [lines[job.image_id] for job in jobs[split]]
        print_manifest(split, preparation.write_split(split, chosen, folder="panoptic"))
    return 0


if __name__ == "__main__":
    main_with_errors(main)
