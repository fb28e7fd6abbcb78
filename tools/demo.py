#!/usr/bin/env python
# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Segment images and videos: overlays, panoptic PNGs and one panoptic.json.

The model is the output folder of a run or an id of the model zoo. Two ship with the package: for
--input one that segments cat, dog, horse, cow, sheep and person in photographs, trained on boxes;
for --sample a small one for the embedded sample's drawn scenes.
"""

import argparse
import contextlib
import itertools
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsis_d2.utils.cli import error_line, main_with_errors
from wsis_d2.utils.errors import InputError, printable

logger = logging.getLogger(__name__)

PHOTO_MODEL = "VOCAnimals/panoptic_Lite0_weak"
SAMPLE_MODEL = "Sample-Panoptic/tiny_instance"
EPILOG = """examples:
  # without training or download: photographs of animals or people; drawn scenes
  tools/demo.py --input photo.jpg --output pictures
  tools/demo.py --sample 6 --output pictures

  # your own images and model: a file, a folder, a glob, a video
  tools/demo.py --model output/run --input photo.jpg --output pictures
  tools/demo.py --model output/run --input photos 'more/*.png' film.mp4 --output pictures

  # on the CPU, in colour-blind-safe colours, with an HTML page
  tools/demo.py --sample 12 --device cpu \\
      --palette safe --report pictures/index.html --output pictures

OUTPUT/overlays/NAME.png      the image with segments and class names
OUTPUT/panoptic/NAME.png      segment ids, R + 256 G + 65536 B
OUTPUT/panoptic.json          COCO panoptic JSON with scores of segments
Exit status: 0 all predicted, 1 some could not be read (named), 2 bad input.
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", metavar="DIR|ID", help=f"default: {PHOTO_MODEL}, with --sample {SAMPLE_MODEL}"
    )
    parser.add_argument(
        "--input", nargs="+", default=[], metavar="PATH", help="pictures, folders, globs, videos"
    )
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="draw N sample scenes")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    parser.add_argument("--device", help="cpu or cuda; default: a GPU where there is one")
    parser.add_argument("--palette", choices=("dataset", "safe"), default="dataset")
    parser.add_argument(
        "--score-threshold", type=float, metavar="S", help="drop detections below S, 0 to 1"
    )
    parser.add_argument(
        "--max-side", type=int, default=1333, metavar="N",
        help="scale down larger images for network and CRF, and upsample the labels with the image "
        "as guide; 0: never (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--full-size", action="store_true",
        help="run the CRF on all pixels of larger images: time and memory grow with them",
    )  # fmt: skip
    parser.add_argument(
        "--batch", type=int, metavar="N",
        help="images that the network processes together (default: the model's TEST.IMS_PER_BATCH)",
    )  # fmt: skip
    parser.add_argument(
        "--report",
        type=Path,
        metavar="R.html",
        help="HTML page of all pictures; videos are not in it",
    )
    parser.add_argument(
        "--trust", action="store_true", help="read a checkpoint that may contain code"
    )
    return parser


def sample_scenes(count: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, RGB picture) of scenes that no model was trained on."""
    from wsis_d2.data.datasets.sample.scenes import draw_scene

    for index in range(count):
        yield f"sample_{index:04d}", draw_scene(np.random.default_rng([2026, index])).image


class Results:
    """What was predicted so far; its JSON is written even when the tool is interrupted."""

    def __init__(self, output: Path, predictor: Any, palette: str) -> None:
        self.output, self.predictor, self.palette = output, predictor, palette
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.detections: list[dict[str, Any]] = []
        self.failed = 0
        self._names: set[str] = set()

    @contextlib.contextmanager
    def failures(self, *names: str | Path) -> Iterator[None]:
        """Print an error of some files, and go on without them: one must not end thousands."""
        try:
            yield
        except OSError:  # nothing can be written
            raise
        except Exception as error:
            logger.debug("%s", names, exc_info=True)
            told = f"{', '.join(map(str, names))}: {type(error).__name__}: {error}"
            print(f"error: {error_line(error) or printable(told)[:600]}", file=sys.stderr)
            self.failed += len(names)

    def unique(self, stem: str) -> str:
        """Return a name that was not used before."""
        name, number = stem, 1
        while name in self._names:
            number += 1
            name = f"{stem}_{number}"
        self._names.add(name)
        return name

    def add(
        self, names: Sequence[str], images: Sequence[np.ndarray]
    ) -> list[tuple[np.ndarray, dict[str, Any]]]:
        """Predict pictures and write their files; return overlays, RGB, and a report's items."""
        found = self.predictor.batch(images)
        return [self._write(*one) for one in zip(names, images, found, strict=True)]

    def _write(
        self, name: str, image: np.ndarray, prediction: Any
    ) -> tuple[np.ndarray, dict[str, Any]]:
        from wsis_d2.data.panoptic_format import write_panoptic_png
        from wsis_d2.visualization.layers import AnnotationLayer
        from wsis_d2.visualization.visualizer import blend, draw_annotation, draw_labels

        layer, classes = prediction.layer(), self.predictor.classes
        if isinstance(layer, AnnotationLayer):
            drawn = draw_annotation(
                *image.shape[:2], layer.boxes, layer.class_ids, classes=classes,
                scores=layer.scores, palette=self.palette,
            )  # fmt: skip
        else:
            drawn = draw_labels(
                layer.semantic, layer.instance, classes=classes, palette=self.palette
            )
        number = len(self.images) + 1
        self.images.append(
            {"id": number, "file_name": name, "height": image.shape[0], "width": image.shape[1]}
        )
        if prediction.ids is not None:
            file = self.output / "panoptic" / f"{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            write_panoptic_png(file, prediction.ids)
            self.annotations.append(
                {
                    "image_id": number,
                    "file_name": f"{name}.png",
                    "segments_info": self._segments(prediction),
                }
            )
        for box, class_id, score in zip(
            prediction.boxes, prediction.box_classes, prediction.box_scores, strict=True
        ):
            x0, y0, x1, y1 = box
            self.detections.append(
                {
                    "image_id": number,
                    "category_id": classes[class_id]["id"],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "score": score,
                }
            )
        found = {s["category_id"] for s in prediction.segments} | set(prediction.box_classes)
        item = {
            "name": name,
            "layers": {"image": image, "prediction": layer},
            "classes": [classes[i]["name"] for i in sorted(found)],
            "scores": {"segments": len(prediction.segments) + len(prediction.boxes)},
        }
        return blend(image, drawn), item

    def _segments(self, prediction: Any) -> list[dict[str, Any]]:
        from wsis_d2.structures.segments import segment_sizes

        sizes = segment_sizes(prediction.ids)
        return [
            {
                "id": segment["id"],
                "category_id": self.predictor.classes[segment["category_id"]]["id"],
                "area": sizes[segment["id"]][0],
                "bbox": sizes[segment["id"]][1],
                "iscrowd": 0,
                "score": segment["score"],
                "scores": segment["scores"],
            }
            for segment in prediction.segments
        ]

    def write(self) -> None:
        """Write panoptic.json."""
        from wsis_d2.utils.json_io import write_json

        categories = [{**c, "isthing": int(c["isthing"])} for c in self.predictor.classes]
        content = {"images": self.images, "annotations": self.annotations, "categories": categories}
        if self.detections:
            content["detections"] = self.detections
        write_json(self.output / "panoptic.json", content)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; return its exit status."""
    args = make_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)

    from wsis_d2.checkpoint.reader import trust_checkpoints
    from wsis_d2.inference.media import find_media
    from wsis_d2.inference.predictor import PanopticPredictor
    from wsis_d2.report.html import write_report

    if not args.input and args.sample < 1:
        raise InputError("expected --input PATH ..., or --sample N to draw N scenes")
    if args.input and args.sample and args.model is None:
        raise InputError(
            "--input with --sample: no released model is for both photographs and drawn scenes; "
            "name one with --model, or run the tool twice"
        )
    model = args.model or (SAMPLE_MODEL if args.sample else PHOTO_MODEL)
    if args.score_threshold is not None and not 0 <= args.score_threshold <= 1:
        raise InputError(f"--score-threshold {args.score_threshold}: expected 0 to 1")
    if args.max_side < 0:
        raise InputError(f"--max-side {args.max_side}: expected 0 or more")
    if args.batch is not None and args.batch < 1:
        raise InputError(f"--batch {args.batch}: expected 1 or more")
    files = find_media(args.input)
    if args.trust:
        trust_checkpoints()
    predictor = PanopticPredictor(
        model, args.device, args.max_side, args.score_threshold, args.full_size, args.batch
    )
    results = Results(args.output, predictor, args.palette)
    (args.output / "overlays").mkdir(parents=True, exist_ok=True)
    items = predict(files, args.sample, results)
    try:
        if args.report is not None:
            write_report(
                args.report, "Predictions", items, classes=predictor.classes,
                subtitle=f"Model {model}.",
            )  # fmt: skip
            print(f"wrote {args.report}")
        for _ in items:  # without a report, predicting is all
            pass
    finally:
        results.write()
    print(f"predicted {len(results.images)} pictures into {args.output}")
    return 1 if results.failed else 0


def predict(files: Sequence[Path], scenes: int, results: Results) -> Iterator[dict[str, Any]]:
    """Predict scenes, pictures and videos, one batch in memory; yield a report's items."""
    from wsis_d2.data.panoptic_format import write_png
    from wsis_d2.inference.media import is_video

    for group in groups(pictures(files, scenes, results), results.predictor.batch_size):
        names = [results.unique(name) for name, _ in group]
        found: list[tuple[np.ndarray, dict[str, Any]]] = []
        with results.failures(*names):
            found = results.add(names, [image for _, image in group])
        for name, (overlay, item) in zip(names, found, strict=False):
            write_png(results.output / "overlays" / f"{name}.png", overlay)
            yield item
    for path in files:
        if is_video(path):
            with results.failures(path):
                predict_video(path, results)


def groups(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield items in their order, so many at a time."""
    items = iter(items)
    while group := list(itertools.islice(items, size)):
        yield group


def pictures(
    files: Sequence[Path], scenes: int, results: Results
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, RGB picture) of scenes and of files that are no videos, and can be read."""
    from wsis_d2.inference.media import is_video, picture_names
    from wsis_d2.utils.image_io import read_picture
    from wsis_d2.utils.progress import progress

    yield from sample_scenes(scenes)
    stills = [path for path in files if not is_video(path)]
    names = picture_names(stills)
    for path in progress(stills, desc="predicting", unit="file"):
        with results.failures(path):
            yield names[path], read_picture(path)


def predict_video(path: Path, results: Results) -> None:
    """Predict every frame; write one overlay video and the frames' panoptic PNGs."""
    from wsis_d2.inference.media import VideoFrames, VideoWriter
    from wsis_d2.utils.progress import progress

    frames = VideoFrames(path)
    stem = results.unique(path.stem)
    writer = VideoWriter(results.output / "overlays" / f"{stem}.mp4", frames.rate)
    done = False
    try:
        total = len(frames) or None
        shown = progress(frames, desc=path.name, total=total, unit="frame")
        for group in groups(enumerate(shown), results.predictor.batch_size):
            names = [results.unique(f"{stem}_{index:06d}") for index, _ in group]
            for overlay, _ in results.add(names, [frame for _, frame in group]):
                writer.write(overlay)
        done = True
    finally:
        writer.close(keep=done)


if __name__ == "__main__":
    main_with_errors(main)
