#!/usr/bin/env python
# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Make boxes, tags and COCO panoptic truth from Pascal VOC 2012 and SBD.

Expected under $DETECTRON2_DATASETS (default: datasets): VOCdevkit/VOC2012/ (JPEGImages,
SegmentationClass, SegmentationObject, ImageSets) and benchmark_RELEASE/dataset/ (cls, inst,
train.txt, val.txt); VOC's test archive too for submissions. Written: wsis_voc_2012/.
Run again after an interruption: it continues.
"""

from wsis_d2.data.datasets.builtin import voc
from wsis_d2.data.datasets.builtin.metadata import VOC_CATEGORIES
from wsis_d2.data.datasets.builtin.preparation import Preparation
from wsis_d2.data.datasets.builtin.preparation_command import (
    command_parser,
    expect_count,
    print_manifest,
)
from wsis_d2.data.datasets.builtin.split_files import check_split
from wsis_d2.utils.cli import main_with_errors
from wsis_d2.utils.errors import InputError

EXAMPLES = """examples:
  python datasets/prepare_voc.py --workers 8          # train, val and trainaug (10 582 images)
  python datasets/prepare_voc.py --no-sbd             # VOC alone: train and val
  python datasets/prepare_voc.py --check              # compare what was written with its checksums
"""


def main(argv=None):
    parser = command_parser(__doc__, EXAMPLES, tags=True)
    parser.add_argument("--no-sbd", action="store_true", help="do without SBD: no trainaug")
    parser.add_argument(
        "--sbd-void", type=int, default=0, metavar="PIXELS",
        help="void border on each side of SBD's boundaries (VOC has one of about 3; default 0)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    output = args.root / voc.FOLDER
    if args.check:
        splits = ["train", "val"] + ([] if args.no_sbd else ["trainaug"])
        splits += ["test"] if (output / "manifest_test.json").exists() else []
        for split in splits:
            manifest = check_split(output, split, voc.PREPARE_COMMAND)
            expect_count(
                f"VOC 2012 {split}", manifest["images"], voc.LIST_LENGTHS[split],
                partial=args.allow_partial, hint=f"make it again: {voc.PREPARE_COMMAND}",
            )  # fmt: skip
            print_manifest(split, manifest)
        return 0
    folder = voc.find_voc(args.root)
    if not folder.is_dir():
        raise InputError(f"{folder}: missing; unpack VOC 2012 ({voc.VOC_URL}) in {args.root}")
    sbd = None if args.no_sbd else args.root / "benchmark_RELEASE" / "dataset"
    if sbd is not None and not sbd.is_dir():
        raise InputError(
            f"{sbd}: missing; unpack SBD ({voc.SBD_URL}) in {args.root}, or do without trainaug: "
            "--no-sbd"
        )
    lists = voc.split_lists(folder, sbd, partial_tree=args.allow_partial)
    preparation = Preparation(
        output,
        categories=VOC_CATEGORIES,
        recipe={"dataset": "voc_2012", "tags": args.tags, "sbd_void": args.sbd_void},
        command=voc.PREPARE_COMMAND,
        workers=args.workers,
        force=args.force,
    )
    lines = preparation.convert(
        voc.make_jobs(folder, sbd, lists),
        voc.converter(tags=args.tags, sbd_void=args.sbd_void),
        folder="panoptic",
        desc="VOC 2012",
    )
    for split, names in lists.items():
        chosen = [lines[name] for name in names]
        kinds = ("weak",) if split == "test" else ("weak", "panoptic")
        manifest = preparation.write_split(split, chosen, folder="panoptic", kinds=kinds)
        print_manifest(split, manifest)
    return 0


if __name__ == "__main__":
    main_with_errors(main)
