#!/usr/bin/env python
# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Turn weak annotation into pseudo ground truth: a label store.

boxes   boxes of things -> masks, where GrabCut and region proposals agree
tags    image tags of stuff -> cues, from a trained tag classifier or tag segmenter
merge   both stores -> one semantic and one instance map per image
all     boxes, tags and merge; the parts are kept in STORE/parts/
review  labels that a review in the report refused become ignore
"""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace

from wsis_d2.utils.cli import main_with_errors, positive
from wsis_d2.utils.errors import InputError

logger = logging.getLogger(__name__)

EPILOG = """examples:
  # the embedded sample, from its boxes alone
  tools/make_weak_labels.py boxes --dataset sample_train_weak --output output/labels/boxes

  # own data: boxes and tags to one store, two processes
  tools/make_weak_labels.py all --annotations cows.json --images photos --output cow_labels \\
      --classifier output/tags/model_final.pth --workers 2

  # own data of things and one stuff class, which is all that lies outside the boxes
  tools/make_weak_labels.py boxes --annotations cows.json --images photos --output cow_labels \\
      --outside-boxes background

  # what was refused in the report (tools/report.py labels) becomes ignore
  tools/make_weak_labels.py review --review review.json --output cow_labels

  # a baseline to compare with, and another option of the recipe
  tools/make_weak_labels.py boxes --annotations cows.json --images photos \\
      --masks grabcut --output cow_grabcut WEAK_LABELS.GRABCUT.SEED_RADIUS 0

A run can be stopped at any moment; the same command goes on where it stopped.
Exit status: 0 all images labelled, 1 some images failed (named above), 2 bad input.
"""


# Modules are imported when their subcommand runs: worker processes load this file too, and
# should not pay for what they do not use.
def _boxes(args: SimpleNamespace, cfg, data: SimpleNamespace) -> int:
    from wsis_d2.weak_labels.box_labels import make_box_store

    return make_box_store(
        cfg,
        data.records,
        data.categories,
        args.output,
        outside_boxes=data.outside_boxes,
        run=_run(args),
    )


def _tags(args: SimpleNamespace, cfg, data: SimpleNamespace) -> int:
    from wsis_d2.relabeling.tag_cues import make_tag_labels

    return make_tag_labels(
        cfg,
        data.records,
        data.categories,
        args.output,
        classifier=args.classifier,
        has_boxes=data.has_boxes,
        run=_run(args),
    )


def _merge(args: SimpleNamespace, cfg, data: SimpleNamespace) -> int:
    from wsis_d2.weak_labels.merge import make_merged_labels

    return make_merged_labels(
        cfg,
        data.records,
        data.categories,
        args.output,
        boxes=args.boxes,
        tags=args.tags,
        outside_boxes=data.outside_boxes,
        has_boxes=data.has_boxes,
        run=_run(args),
    )


def _all(args: SimpleNamespace, cfg, data: SimpleNamespace) -> int:
    from wsis_d2.relabeling.first_labels import make_all_labels

    return make_all_labels(
        cfg,
        data.records,
        data.categories,
        args.output,
        classifier=args.classifier,
        outside_boxes=data.outside_boxes,
        has_boxes=data.has_boxes,
        run=_run(args),
    )


#: Subcommand -> function(args, cfg, data) -> exit status. ``data`` holds ``records`` (weak
#: records), ``categories`` (the file's) and ``outside_boxes`` ("ignore" or a class id).
SUBCOMMANDS: dict[str, Callable] = {"boxes": _boxes, "tags": _tags, "merge": _merge, "all": _all}


def _review(args: SimpleNamespace) -> int:
    from wsis_d2.weak_labels.review import apply_review

    return apply_review(args.output, args.review, args.dry_run)


def _run(args: SimpleNamespace):
    from wsis_d2.weak_labels.driver import LabelRun

    return LabelRun(
        workers=args.workers,
        limit=args.limit,
        force=args.force,
        dry_run=args.dry_run,
        ray_address=args.ray,
        image_seconds=args.image_seconds,
    )


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all subcommands; options stand behind the subcommand."""
    common = argparse.ArgumentParser(add_help=False)
    data = common.add_argument_group("what to label")
    data.add_argument("--dataset", metavar="NAME", help="a registered weak dataset")
    data.add_argument("--annotations", metavar="A.json", help="or own data: boxes and tags")
    data.add_argument("--images", metavar="DIR", help="folder of the own data's images")
    common.add_argument("--output", required=True, metavar="STORE", help="folder of the labels")
    common.add_argument("--config-file", metavar="F", help="recipe: a config with WEAK_LABELS")
    common.add_argument("--workers", type=positive, metavar="N", help="processes (default: cores)")
    common.add_argument("--ray", metavar="ADDRESS", help="use a ray cluster: 'auto' or an address")
    common.add_argument(
        "--image-seconds", type=positive, metavar="N", default=1800,
        help="skip an image that takes longer, and name it (default: 1800)",
    )  # fmt: skip
    common.add_argument("--limit", type=positive, metavar="N", help="only the first N images")
    common.add_argument("--force", action="store_true", help="discard existing labels")
    common.add_argument(
        "--dry-run", action="store_true", help="say what would be done and write nothing"
    )
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    subparsers = parser.add_subparsers(
        dest="command",
        required=True,
        metavar="{" + ",".join([*SUBCOMMANDS, "review"]) + "}",
        help="with -h behind it: its options",
    )
    texts = dict(line.split(None, 1) for line in __doc__.splitlines()[2:])
    for name in SUBCOMMANDS:
        sub = subparsers.add_parser(
            name,
            parents=[common],
            description=f"{name}: {texts[name]}",
            epilog=EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name in ("boxes", "all"):
            sub.add_argument(
                "--masks",
                choices=("agreement", "grabcut", "mcg", "box"),
                help="how a box's mask is made; mcg: the proposal of any source (default: the "
                "config's WEAK_LABELS.MASKS, agreement)",
            )
        if name != "tags":
            sub.add_argument(
                "--outside-boxes",
                metavar="NAME",
                help="own data: the stuff class of everything outside all boxes (default: ignore)",
            )
        if name in ("tags", "all"):
            sub.add_argument(
                "--classifier",
                metavar="W.pth",
                help="weights of the tag classifier or tag segmenter",
            )
        if name == "merge":
            sub.add_argument("--boxes", metavar="STORE", help="labels made from boxes")
            sub.add_argument("--tags", metavar="STORE", help="labels made from tags")
        sub.add_argument(
            "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE ...", help="config overrides"
        )
    review = subparsers.add_parser("review", description=texts["review"])
    review.add_argument(
        "--review", required=True, metavar="R.json", help="what the report exported"
    )
    review.add_argument("--output", required=True, metavar="STORE", help="the labels, changed")
    review.add_argument("--dry-run", action="store_true", help="say what would be done")
    return parser


def config_of(args: SimpleNamespace):
    """Return the config: defaults, ``--config-file``, KEY VALUE pairs, then ``--masks``."""
    from wsis_d2.config import read_config

    cfg = read_config(args.config_file, args.opts)
    if getattr(args, "masks", None):
        cfg.WEAK_LABELS.MASKS = args.masks
    return cfg


def load_data(args: SimpleNamespace, cfg) -> SimpleNamespace:
    """Return records, categories, outside_boxes and has_boxes of what the arguments name."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from wsis_d2.data.datasets.own.custom import register_own_datasets
    from wsis_d2.data.datasets.own.weak import read_weak_file

    if bool(args.dataset) == bool(args.annotations):
        raise InputError("name either --dataset NAME or --annotations A.json with --images DIR")
    if bool(args.annotations) != bool(args.images):
        raise InputError("--annotations and --images belong together; one is missing")
    if args.annotations:
        own = read_weak_file(args.annotations, args.images)
        categories = [dict(c) for c in own.classes.categories]
        return SimpleNamespace(
            records=own.records,
            categories=categories,
            outside_boxes=_outside_boxes(args, categories),
            has_boxes=True,
        )
    if getattr(args, "outside_boxes", None):
        raise InputError(
            f"--outside-boxes {args.outside_boxes}: is for --annotations; a dataset has it as "
            "outside_boxes in DATASETS.OWN"
        )
    register_own_datasets(cfg)
    name = args.dataset
    if name not in DatasetCatalog.list():
        raise InputError(
            f"--dataset {name}: not registered; name a built-in dataset (datasets/README.md), or "
            "one of DATASETS.OWN in --config-file, or use --annotations and --images"
        )
    metadata = MetadataCatalog.get(name)
    if metadata.get("supervision") not in ("weak", "mixed"):
        raise InputError(f"--dataset {name}: is no weak dataset; it trains from its own masks")
    records = [r for r in DatasetCatalog.get(name) if r["supervision"] == "weak"]
    return SimpleNamespace(
        records=records,
        categories=[dict(c) for c in metadata.categories],
        outside_boxes=metadata.get("outside_boxes", "ignore"),
        has_boxes=metadata.get("has_boxes", True),
    )


def _outside_boxes(args: SimpleNamespace, categories: list[dict]) -> int | str:
    """Return the contiguous id of ``--outside-boxes``, or "ignore"; say what will be labelled so.

    Args:
        args: the command's; ``tags`` has no such option, as it labels no boxes.
        categories: sorted by id.
    """
    stuff = [c["name"] for c in categories if not c["isthing"]]
    name = getattr(args, "outside_boxes", None)
    if name is not None:
        if name not in stuff:
            raise InputError(
                f"--outside-boxes {name}: no stuff class of {args.annotations}; expected one of "
                f"{', '.join(stuff) or 'none, as it has only things'}"
            )
        number = [c["name"] for c in categories].index(name)
        logger.info(
            'pixels outside all boxes become "%s"; the DATASETS.OWN entry that trains from these '
            "labels needs outside_boxes: %s",
            name,
            name,
        )
        return number
    if args.command == "boxes":
        logger.info(
            "pixels outside all boxes stay ignore, none gets a stuff class%s",
            f"; --outside-boxes NAME labels them (of {', '.join(stuff)})" if stuff else "",
        )
    return "ignore"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; return its exit status."""
    args = make_parser().parse_args(argv)
    logging.basicConfig(
        level=logging.INFO, format="[%(asctime)s] %(message)s", datefmt="%H:%M:%S",
        stream=sys.stderr, force=True,
    )  # fmt: skip
    if args.command == "review":
        return _review(args)
    cfg = config_of(args)
    return SUBCOMMANDS[args.command](args, cfg, load_data(args, cfg))


if __name__ == "__main__":
    main_with_errors(main)
