#!/usr/bin/env python
# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Compare label stores with true masks: precision, recall, IoU, coverage, ignored and empty share.

It only reports: training reads nothing that it writes.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from wsis_d2.utils.cli import main_with_errors, positive
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.files import check_writable

EPILOG = """examples:
  # the labels of the embedded sample
  tools/evaluate_labels.py --store output/labels/boxes --dataset sample_train_weak

  # baselines side by side (one store each, made with --masks agreement|grabcut|mcg|box)
  tools/evaluate_labels.py --store agreement grabcut mcg box --dataset sample_train_weak

  # other truth in COCO panoptic format; everything, also by class and size, in a file
  tools/evaluate_labels.py --store labels --gt-json G.json --gt-dir G --output quality.json

  # what the region proposals could reach at best (J_i), and with how many
  tools/evaluate_labels.py --proposals --dataset sample_train_weak --limit 50
"""

_COLUMNS = (
    ("IoU", "IoU"), ("P", "precision"), ("R", "recall"), ("empty", "empty"), ("mIoU", "mIoU"),
    ("pixel P", "pixel_precision"), ("cover", "coverage"), ("PQ", "PQ"),
)  # fmt: skip


def make_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", nargs="+", default=[], metavar="STORE", help="label stores")
    parser.add_argument("--dataset", metavar="NAME", help="registered dataset that has truth")
    parser.add_argument("--gt-json", metavar="G.json", help="or truth: COCO panoptic JSON")
    parser.add_argument("--gt-dir", metavar="DIR", help="its PNGs")
    parser.add_argument("--output", type=Path, metavar="Q.json", help="write all numbers here")
    parser.add_argument(
        "--proposals", action="store_true", help="oracle J_i of the proposals (needs --dataset)"
    )
    parser.add_argument("--limit", type=positive, metavar="N", help="proposals of the first images")
    parser.add_argument("--config-file", metavar="F", help="config with DATASETS.OWN, WEAK_LABELS")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE ...", help="config overrides"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; return its exit status."""
    args = make_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    if not args.store and not args.proposals:
        raise InputError("name what to measure: --store STORE ..., or --proposals")
    if args.output:
        check_writable(args.output)
    cfg = _config(args)
    truth = _truth(args, cfg)
    results: dict = {}
    if args.store:
        from wsis_d2.evaluation.label_quality import evaluate_store

        results["stores"] = {store: evaluate_store(store, *truth) for store in args.store}
        other_images = len(args.store) > 1 and _hold_other_images(args.store, truth)
        print(_table(results["stores"], other_images))
    if args.proposals:
        results["proposals"] = _proposals(args, cfg, truth)
    if args.output:
        from wsis_d2.utils.json_io import write_json

        write_json(args.output, results, indent=1)
    return 0


def _config(args: argparse.Namespace):
    from wsis_d2.config import read_config
    from wsis_d2.data.datasets.own.custom import register_own_datasets

    cfg = read_config(args.config_file, args.opts)
    register_own_datasets(cfg)
    return cfg


def _truth(args: argparse.Namespace, cfg) -> tuple[str, str]:
    """Return JSON and folder of the truth."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    if bool(args.gt_json) != bool(args.gt_dir):
        raise InputError("--gt-json and --gt-dir belong together; one is missing")
    if args.gt_json:
        return args.gt_json, args.gt_dir
    if not args.dataset:
        raise InputError("name the truth: --dataset NAME, or --gt-json G.json with --gt-dir DIR")
    if args.dataset not in DatasetCatalog.list():
        raise InputError(f"--dataset {args.dataset}: not registered (datasets/README.md)")
    metadata = MetadataCatalog.get(args.dataset)
    if not metadata.get("panoptic_json"):
        raise InputError(
            f"--dataset {args.dataset}: has no truth; register it with panoptic_json and "
            "panoptic_dir, or use --gt-json and --gt-dir"
        )
    return metadata.panoptic_json, metadata.panoptic_root


def _proposals(args: argparse.Namespace, cfg, truth: tuple[str, str]) -> dict:
    from detectron2.data import DatasetCatalog

    from wsis_d2.data.datasets.own.custom import dataset_classes
    from wsis_d2.evaluation.label_quality import evaluate_proposals
    from wsis_d2.weak_labels.proposals import build_proposal_source

    if not args.dataset:
        raise InputError("--proposals needs the images: name --dataset")
    records = DatasetCatalog.get(args.dataset)[: args.limit]
    found = evaluate_proposals(
        build_proposal_source(cfg), records, *truth, dataset_classes(args.dataset)
    )
    print(f"J_i of {found['objects']} objects in {found['images']} images; of those > 32 x 32:")
    for budget, value in found["J_i"].items():
        name = f"all ({found['raw']:.0f})" if budget == "all" else budget
        print(f"  {name:>12}  {value:5.1f}  {found['J_i not small'][budget]:5.1f}")
    return found


def _hold_other_images(stores: Sequence[str], truth: tuple[str, str]) -> bool:
    """Whether not all stores are measured on the same images."""
    from wsis_d2.data.panoptic_format import PanopticFile
    from wsis_d2.weak_labels.store import LabelStore

    known = set(PanopticFile(*truth).annotations)
    held = [known.intersection(map(str, LabelStore.open(s).image_ids())) for s in stores]
    return any(images != held[0] for images in held)


def _table(stores: dict, other_images: bool = False) -> str:
    """Return the summaries side by side; objects first, then pixels."""
    width = max(5, *(len(name) for name in stores))
    titles = ("images", *(title for title, _ in _COLUMNS))
    lines = [" ".join([f"{'store':{width}}", *(f"{title:>7}" for title in titles)])]
    for name, found in stores.items():
        cells = (f"{found['summary'][key]:7.1f}" for _, key in _COLUMNS)
        lines.append(" ".join([f"{name:{width}}", f"{found['images']:7d}", *cells]))
    if other_images:
        lines.append("the stores hold different images, so that their numbers do not compare")
    lines.append("objects: IoU, precision, recall, empty share; pixels: mIoU, precision, coverage")
    for name, found in stores.items():
        for size, row in found["objects"]["all"].items():
            if size != "all" and row["count"]:
                lines.append(
                    f"{name:{width}} {size:>7}: IoU {row['IoU']:.1f}, P {row['precision']:.1f}, "
                    f"R {row['recall']:.1f}, empty {row['empty']:.1f}, {row['count']} objects"
                )
    return "\n".join(lines)


if __name__ == "__main__":
    main_with_errors(main)
