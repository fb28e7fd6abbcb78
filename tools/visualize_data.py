#!/usr/bin/env python
# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Draw any stage of the data in the dataset's colours, one file per image.

annotation   boxes, tags and crop tags
proposal     of each box: contours, superpixels, the best proposal, GrabCut, where both agree
pseudo       pseudo labels of a label store and the truth, ignored pixels hatched
dataloader   what training gets: image, boxes and maps after augmentation
prediction   predictions of a run or a prediction file, and the truth
"""

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsis_d2.utils.cli import main_with_errors
from wsis_d2.utils.errors import InputError

SOURCES = ("annotation", "proposal", "pseudo", "dataloader", "prediction")
EPILOG = """examples:
  tools/visualize_data.py --source annotation --dataset sample_train_weak --output pictures
  tools/visualize_data.py --source proposal --annotations cows.json --images photos \\
      --limit 5 --output pictures
  tools/visualize_data.py --source pseudo --dataset sample_train_weak --store output/labels \\
      --output pictures
  tools/visualize_data.py --source dataloader --config-file configs/Sample-Panoptic/detector.yaml \\
      --limit 8 --output pictures
  tools/visualize_data.py --source prediction --dataset sample_val_full --run output/demo/weak \\
      --palette safe --output pictures
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    from wsis_d2.report.sources import add_data_arguments

    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True, choices=SOURCES, help="the stage to draw")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="for the PNGs")
    add_data_arguments(parser)
    parser.add_argument("--store", metavar="STORE", help="pseudo: the label store")
    parser.add_argument("--run", metavar="DIR", help="prediction: OUTPUT_DIR of a run")
    parser.add_argument("--pred-json", metavar="P.json", help="prediction: COCO panoptic JSON")
    parser.add_argument("--pred-dir", metavar="DIR", help="prediction: folder of its PNGs")
    parser.add_argument("--config-file", metavar="F", help="the config: DATASETS.OWN, WEAK_LABELS")
    parser.add_argument(
        "--limit", type=int, default=20, metavar="N",
        help="draw N images, spread evenly; 0: all (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--palette", choices=("dataset", "safe"), default="dataset",
        help="colours of the dataset, or colour-blind-safe ones with patterns",
    )  # fmt: skip
    parser.add_argument("--height", type=int, default=360, help="of a panel (default %(default)s)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE ...")
    return parser


def dataset_pictures(args: argparse.Namespace) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield (name, panels) of every source but the data loader."""
    from wsis_d2.report import sources
    from wsis_d2.report.labels import spread
    from wsis_d2.utils.image_io import read_record

    cfg = None
    if args.config_file or args.opts:
        from wsis_d2.engine import load_cfg

        cfg = load_cfg(args.config_file, args.opts)
    data = sources.open_data(args, cfg)
    extra = _extra_panel(args, data)
    records = data.records
    if args.source in ("pseudo", "prediction"):
        records = [r for r in records if extra.has(r)]
        if not records:
            raise InputError(f"{extra.what}: holds none of the images of {data.name}")
    for record in spread(records, args.limit):
        image = read_record(record)
        panels = {"image": image}
        panels["annotation"] = _blend(image, sources.annotation_layer(record), data, args.palette)
        if extra is not None:
            panels.update(extra.draw(record, image))
        if data.truth is not None and args.source != "annotation":
            truth = sources.panoptic_layer(data.truth, record["image_id"], data.classes)
            if truth is not None:
                panels["truth"] = _blend(image, truth, data, args.palette)
        yield Path(record["file_name"]).stem, panels


def _blend(image: np.ndarray, layer: Any, data: Any, palette: str) -> np.ndarray:
    from wsis_d2.visualization.sample_pictures import draw_layer

    return draw_layer(image, layer, data.classes, palette)


class _Pseudo:
    """Panels of a label store."""

    def __init__(self, args: argparse.Namespace, data: Any) -> None:
        from wsis_d2.weak_labels.store import LabelStore

        path = args.store or data.label_store
        if path is None:
            raise InputError(
                "--source pseudo: expected --store STORE, made with tools/make_weak_labels.py"
            )
        self.what, self.store = path, LabelStore.open(path).in_classes(data.table)
        self.data, self.palette = data, args.palette

    def has(self, record: dict) -> bool:
        return self.store.has(record)

    def draw(self, record: dict, image: np.ndarray) -> dict[str, np.ndarray]:
        from wsis_d2.report.sources import store_layer

        layer = store_layer(self.store, record["image_id"])
        return {"pseudo label": _blend(image, layer, self.data, self.palette)}


class _Prediction:
    """Panels of a prediction file."""

    def __init__(self, args: argparse.Namespace, data: Any) -> None:
        from wsis_d2.data.panoptic_format import PanopticFile
        from wsis_d2.report.runs import find_predictions, open_run
        from wsis_d2.report.sources import predictions_of

        self.data, self.palette = data, args.palette
        if args.run is not None:
            self.what = args.run
            self.file = find_predictions(open_run("run", args.run), data)
            if self.file is None:
                raise InputError(f"--run {args.run}: holds no predictions of {data.name}")
        elif args.pred_json is not None and args.pred_dir is not None:
            self.what = args.pred_json
            file = PanopticFile(args.pred_json, args.pred_dir, data.table)
            self.file = predictions_of(file, data)
        else:
            raise InputError(
                "--source prediction: expected --run DIR, or --pred-json P.json --pred-dir DIR"
            )

    def has(self, record: dict) -> bool:
        return str(record["image_id"]) in self.file.annotations

    def draw(self, record: dict, image: np.ndarray) -> dict[str, np.ndarray]:
        from wsis_d2.report.sources import panoptic_layer

        layer = panoptic_layer(self.file, record["image_id"], self.data.classes)
        return {"prediction": _blend(image, layer, self.data, self.palette)}


class _Proposal:
    """Panels of how boxes become masks: proposals, GrabCut, and where both agree."""

    def __init__(self, args: argparse.Namespace, data: Any) -> None:
        from wsis_d2.engine import load_cfg
        from wsis_d2.weak_labels.box_masks import BoxLabelOptions
        from wsis_d2.weak_labels.proposals import build_proposal_source

        cfg = load_cfg(args.config_file, args.opts)
        self.source = build_proposal_source(cfg)
        self.options = BoxLabelOptions.from_config(cfg)
        self.data, self.palette = data, args.palette

    def draw(self, record: dict, image: np.ndarray) -> dict[str, np.ndarray]:
        from wsis_d2.structures.annotation import centre_boxes, record_marks
        from wsis_d2.visualization.visualizer import blend, draw_regions
        from wsis_d2.weak_labels.box_masks import box_parts
        from wsis_d2.weak_labels.marked import hints_of
        from wsis_d2.weak_labels.proposals import MCGSource
        from wsis_d2.weak_labels.proposals.contours import make_contours

        bgr = np.ascontiguousarray(image[..., ::-1])
        proposals = self.source(bgr, record)
        panels = {}
        if isinstance(self.source, MCGSource):
            contours = make_contours(self.source.contours, self.source.weights)(bgr)
            grey = (255 * contours).astype(np.uint8)
            panels["contours"] = np.repeat(grey[..., None], 3, axis=2)
        regions = proposals.regions() if proposals is not None else None
        if regions is not None:
            name = f"{int(regions.max()) + 1} superpixels, {len(proposals)} proposals"
            panels[name] = blend(image, draw_regions(regions))
        masks = {"best proposals": [], "GrabCut": [], "agreement": []}
        marks = record_marks(record)
        boxes = [(k, b) for k, b in enumerate(centre_boxes(record)) if not b.is_group]
        for index, box in sorted(boxes, key=lambda entry: -entry[1].area):
            hints = hints_of(index, box.class_id, marks)
            parts = box_parts(bgr, box, lambda: proposals, self.options, hints)
            found = {"best proposals": parts.proposal, "GrabCut": parts.grabcut}
            if parts.proposal is not None and parts.grabcut is not None:
                found["agreement"] = parts.proposal & parts.grabcut
            for name, mask in found.items():
                if mask is not None:
                    masks[name].append((box, mask))
        for name, drawn in masks.items():
            if drawn:
                panels[name] = self._panel(image, drawn)
        return panels

    def _panel(self, image: np.ndarray, masks: list) -> np.ndarray:
        from wsis_d2.visualization.layers import LabelLayer

        semantic = np.full(image.shape[:2], 255, np.uint8)
        instance = np.zeros(image.shape[:2], np.int32)
        for number, (box, mask) in enumerate(masks, start=1):
            semantic[box.window][mask], instance[box.window][mask] = box.class_id, number
        return _blend(image, LabelLayer(semantic, instance), self.data, self.palette)


def _extra_panel(args: argparse.Namespace, data: Any) -> Any:
    kinds = {"pseudo": _Pseudo, "prediction": _Prediction, "proposal": _Proposal}
    return kinds[args.source](args, data) if args.source in kinds else None


def loader_pictures(args: argparse.Namespace) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield (name, panels) of training samples as the data loader gives them."""
    from detectron2.data import MetadataCatalog

    from wsis_d2.data.mappers import build_mapper
    from wsis_d2.data.records import load_records
    from wsis_d2.engine import load_cfg
    from wsis_d2.report.labels import spread
    from wsis_d2.visualization.palette import metadata_classes
    from wsis_d2.visualization.sample_pictures import sample_panels

    if not args.config_file:
        raise InputError("--source dataloader: expected --config-file F, it names data and mapper")
    cfg = load_cfg(args.config_file, args.opts)
    if not cfg.DATASETS.TRAIN:
        raise InputError(f"{args.config_file}: DATASETS.TRAIN is empty, expected a dataset")
    classes = metadata_classes(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]))
    mapper = build_mapper(cfg, is_train=True)
    things = list(cfg.MODEL.WSIS.THING_IDS)
    for record in spread(load_records(cfg.DATASETS.TRAIN), args.limit):
        sample = mapper(record)
        if sample is None:
            continue
        panels = sample_panels(sample, classes, things, cfg.INPUT.FORMAT, args.palette)
        yield Path(record["file_name"]).stem, panels


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; return its exit status."""
    args = make_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if args.limit < 0 or args.height < 16:
        raise InputError(f"--limit {args.limit}, --height {args.height}: expected >= 0 and >= 16")

    from wsis_d2.data.panoptic_format import write_png
    from wsis_d2.utils.progress import progress
    from wsis_d2.visualization.visualizer import side_by_side

    pictures = loader_pictures if args.source == "dataloader" else dataset_pictures
    written: set[str] = set()
    for stem, panels in progress(pictures(args), desc=args.source):
        args.output.mkdir(parents=True, exist_ok=True)
        name = stem
        while name in written:
            name += "_"
        written.add(name)
        write_png(args.output / f"{name}_{args.source}.png", side_by_side(panels, args.height))
    print(f"wrote {len(written)} pictures to {args.output}")
    return 0


if __name__ == "__main__":
    main_with_errors(main)
