#!/usr/bin/env python
# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Make boxes, image and crop tags and COCO panoptic truth from Cityscapes.

Expected under $DETECTRON2_DATASETS (default: datasets): cityscapes/leftImg8bit/{train,val,test,
train_extra}, cityscapes/gtFine/{train,val} and cityscapes/gtCoarse/train_extra as released, with
*_instanceIds.png. Written: wsis_cityscapes/. Run again after an interruption: it continues.
"""

from wsis_d2.data.datasets.builtin import cityscapes
from wsis_d2.data.datasets.builtin.metadata import CITYSCAPES_CATEGORIES
from wsis_d2.data.datasets.builtin.preparation import Preparation
from wsis_d2.data.datasets.builtin.preparation_command import (
    command_parser,
    expect_count,
    print_manifest,
)
from wsis_d2.data.datasets.builtin.split_files import check_split
from wsis_d2.utils.cli import main_with_errors

EXAMPLES = """examples:
  python datasets/prepare_cityscapes.py --workers 8               # train, val, extra and test
  python datasets/prepare_cityscapes.py --splits train val        # the fine annotations alone
  python datasets/prepare_cityscapes.py --check                   # compare with the checksums
"""


def main(argv=None):
    parser = command_parser(__doc__, EXAMPLES, tags=True)
    parser.add_argument(
        "--splits", nargs="+", choices=list(cityscapes.SPLITS), default=list(cityscapes.SPLITS)
    )
    parser.add_argument(
        "--crop", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"),
        default=[cityscapes.CROP_HEIGHT, cityscapes.CROP_WIDTH], help="crops that are tagged",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if min(args.crop) < 1:
        parser.error("--crop: height and width must be positive")
    output = args.root / cityscapes.FOLDER
    # Everything is listed and counted before anything is converted.
    jobs = {}
    for split in args.splits:
        command = f"{cityscapes.PREPARE_COMMAND} --splits {split}"
        if args.check:
            manifest = check_split(output, split, command)
            found, hint = manifest["images"], f"make it again: {command}"
            print_manifest(split, manifest)
        else:
            jobs[split] = cityscapes.make_jobs(args.root / "cityscapes", split)
            found, hint = len(jobs[split]), f"unpack {cityscapes.ARCHIVES[split]} again"
        expect_count(
            f"Cityscapes {split}", found, cityscapes.SPLITS[split][2],
            partial=args.allow_partial, hint=hint,
        )  # fmt: skip
    for split, split_jobs in jobs.items():
        recipe = {"dataset": f"cityscapes {split}", "tags": args.tags, "crop": args.crop}
        if cityscapes.SPLITS[split][1] == "gtCoarse":
            recipe["boxes"] = "coarse"  # files of earlier versions have none
        preparation = Preparation(
            output,
            categories=CITYSCAPES_CATEGORIES,
            recipe=recipe,
            command=f"{cityscapes.PREPARE_COMMAND} --splits {split}",
            workers=args.workers,
            force=args.force,
        )
        folder = f"panoptic_{split}"
        lines = preparation.convert(
            split_jobs,
            cityscapes.converter(split, tags=args.tags, crop=tuple(args.crop)),
            folder=folder,
            desc=f"Cityscapes {split}",
        )
        kinds = ("weak", "panoptic") if cityscapes.SPLITS[split][1] else ("weak",)
        manifest = preparation.write_split(split, list(lines.values()), folder=folder, kinds=kinds)
        print_manifest(split, manifest)
    return 0


if __name__ == "__main__":
    main_with_errors(main)
