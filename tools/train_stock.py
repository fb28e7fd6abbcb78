#!/usr/bin/env python
# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Train Detectron2's Panoptic FPN, Mask R-CNN or Faster R-CNN from a label store.

Boxes are the annotated ones; unknown pixels are ignored by the losses of masks and semantics.
"""

import argparse
import sys
from collections.abc import Sequence

from wsis_d2.utils.cli import main_with_errors
from wsis_d2.utils.errors import InputError

EPILOG = """examples:
  tools/train_stock.py --config-file COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml \\
      --annotations cows/train.json --images cows/images --store cows/labels \\
      MODEL.WEIGHTS R-50.pkl OUTPUT_DIR output/cows_fpn
  tools/train_stock.py --config-file COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml \\
      --annotations cows/train.json --images cows/images --store cows/labels \\
      --test-annotations cows/val.json --test-images cows/images \\
      --gt-json cows/panoptic_val.json --gt-dir cows/panoptic_val OUTPUT_DIR output/cows_rcnn
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file", required=True, metavar="F", help="a file, or a name of Detectron2's zoo"
    )
    data = parser.add_argument_group("what to train from: a dataset, or own data")
    data.add_argument("--dataset", metavar="NAME", help="a registered dataset, weak, mixed or full")
    data.add_argument("--annotations", metavar="A.json", help="own data: boxes, tags, points")
    data.add_argument("--images", metavar="DIR", help="folder of its images")
    data.add_argument("--store", metavar="STORE", help="labels of tools/make_weak_labels.py")
    test = parser.add_argument_group("what to test on (optional)")
    test.add_argument("--test-annotations", metavar="A.json", help="own data")
    test.add_argument("--test-images", metavar="DIR", help="folder of its images")
    test.add_argument("--gt-json", metavar="P.json", help="its truth, COCO panoptic")
    test.add_argument("--gt-dir", metavar="DIR", help="the PNGs of the truth")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument(
        "--trust", action="store_true", help="read checkpoints that may contain code"
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE ...", help="config overrides"
    )
    return parser


def register(args: argparse.Namespace) -> tuple[str, str | None]:
    """Register the separated twins; return their names."""
    from pathlib import Path

    from wsis_d2.data.datasets import register_weak_panoptic, set_label_store
    from wsis_d2.data.datasets.own.separated import register_separated

    if bool(args.dataset) == bool(args.annotations):
        raise InputError("name either --dataset NAME or --annotations A.json with --images DIR")
    if bool(args.annotations) != bool(args.images):
        raise InputError("--annotations and --images belong together; one is missing")
    name = args.dataset
    if args.annotations:
        name = "stock_train"
        register_weak_panoptic(name, args.annotations, args.images, labels=args.store)
    elif args.store:
        set_label_store(name, args.store, "--store")
    train = register_separated(name, keep_all=True)
    named = [args.test_annotations, args.test_images, args.gt_json, args.gt_dir]
    if not any(named):
        return train, None
    if not all(named):
        raise InputError("--test-annotations, --test-images, --gt-json and --gt-dir: name all four")
    register_weak_panoptic(
        "stock_test", args.test_annotations, args.test_images, supervision="full",
        panoptic_json=args.gt_json, panoptic_dir=args.gt_dir,
    )  # fmt: skip
    opts = dict(zip(args.opts[::2], args.opts[1::2], strict=False))
    folder = Path(opts.get("OUTPUT_DIR", "output")) / "test_separated"
    return train, register_separated("stock_test", folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; return its exit status."""
    args = make_parser().parse_args(argv)

    from detectron2.engine import default_setup
    from detectron2.utils import comm

    from wsis_d2.checkpoint.reader import trust_checkpoints
    from wsis_d2.engine.stock import StockTrainer, stock_config

    if args.trust:
        trust_checkpoints()
    cfg = stock_config(args.config_file, *register(args), args.opts)
    cfg.freeze()
    default_setup(cfg, argparse.Namespace(config_file="", opts=args.opts, eval_only=False))
    trainer = StockTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()
    if comm.is_main_process():
        print(f"wrote {cfg.OUTPUT_DIR}/model_final.pth")
    return 0


if __name__ == "__main__":
    main_with_errors(main, sys.argv[1:])
