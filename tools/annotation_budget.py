#!/usr/bin/env python
# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Plan annotation: hours and cost of weak, full and mixed supervision, and the quality they give.

Times are the paper's (7 s per box, 1 s per tag, 79 s per mask) unless changed. Given the
results.json of runs, the tool plots quality against hours and makes a recommendation. With
--suggest N it lists N weak images to annotate fully next.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tabulate import tabulate

from wsis_d2.planning.annotation_cost import (
    AnnotationCounts,
    AnnotationTimes,
    RunPoint,
    count_records,
    pareto,
    recommend,
    supervision_cost,
)
from wsis_d2.utils.cli import main_with_errors
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.files import atomic_write

EPILOG = """examples:
  # cost of 3000 images, estimated from 20 that are annotated already
  tools/annotation_budget.py --annotations cows.json --images photos --num-images 3000

  # from counts alone, with other times and wages
  tools/annotation_budget.py --num-images 2975 --num-boxes 52000 --num-tags 60000 \\
      --num-masks 81000 --full-image-seconds 5400 --box-seconds 10 --hourly-rate 12

  # quality per hour of measured runs, within a budget
  tools/annotation_budget.py --dataset sample_train_weak --results output/demo/results.json \\
      --plot budget.png --output budget.json --budget-hours 2

  # 50 images to annotate fully next, at random, as the list that full_images reads
  tools/annotation_budget.py --annotations cows.json --images photos --suggest 50 \\
      --store cow_labels --suggest-list next.txt

  # the 50 whose labels are known least, with a page
  tools/demo.py --model output/run --input photos --output output/predictions
  tools/annotation_budget.py --annotations cows.json --images photos --suggest 50 \\
      --suggest-by gain --store cow_labels --pred-json output/predictions/panoptic.json \\
      --pred-dir output/predictions/panoptic --suggest-report next.html

  # a run that was trained from fewer images, and a mixed one with a fifth of them full
  tools/annotation_budget.py --dataset sample_train_weak --results results.json \\
      --run-images weak_small=60 --run-full-share mixed=0.2
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    from wsis_d2.report.sources import add_data_arguments

    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_data_arguments(parser)
    counts = parser.add_argument_group("counts (instead of a dataset)")
    counts.add_argument(
        "--num-images", type=int, metavar="N", help="images to annotate; scales a dataset's counts"
    )
    counts.add_argument("--num-boxes", type=int, metavar="N", help="boxes of things")
    counts.add_argument("--num-tags", type=int, metavar="N", help="tags of stuff")
    counts.add_argument("--num-masks", type=int, metavar="N", help="segments of full annotation")
    times = parser.add_argument_group("times and wages")
    default = AnnotationTimes()
    times.add_argument("--box-seconds", type=float, default=default.box, help="(%(default)s)")
    times.add_argument("--tag-seconds", type=float, default=default.tag, help="(%(default)s)")
    times.add_argument("--mask-seconds", type=float, default=default.mask, help="(%(default)s)")
    times.add_argument("--point-seconds", type=float, default=default.point, help="(%(default)s)")
    times.add_argument(
        "--scribble-seconds", type=float, default=default.scribble, help="(%(default)s)"
    )
    times.add_argument(
        "--full-image-seconds", type=float,
        help="a whole image by hand, instead of its masks (Cityscapes: 5400)",
    )  # fmt: skip
    times.add_argument(
        "--hourly-rate", type=float, default=default.hourly_rate, help="cost per hour (%(default)s)"
    )
    parser.add_argument(
        "--full-share", type=float, nargs="+", default=[0.1, 0.25, 0.5], metavar="F",
        help="shares of full images of the mixed plans (default 0.1 0.25 0.5)",
    )  # fmt: skip
    runs = parser.add_argument_group("measured runs")
    runs.add_argument("--results", nargs="+", default=[], metavar="R.json", help="results.json")
    runs.add_argument(
        "--metric", default="panoptic_seg.PQ", help="TASK.METRIC of quality (%(default)s)"
    )
    runs.add_argument("--run-images", nargs="+", default=[], metavar="RUN=N", help="trained from")
    runs.add_argument(
        "--run-full-share", nargs="+", default=[], metavar="RUN=F", help="full share of a mixed run"
    )
    runs.add_argument("--run-hours", nargs="+", default=[], metavar="RUN=H", help="hours, measured")
    runs.add_argument("--all-variants", action="store_true", help="ablations too")
    runs.add_argument("--budget-hours", type=float, metavar="H", help="hours that can be spent")
    which = parser.add_argument_group("which images to annotate fully next")
    which.add_argument("--suggest", type=int, metavar="N", help="list N of the weak images")
    which.add_argument("--store", metavar="STORE", help="their labels")
    which.add_argument("--pred-json", metavar="P.json", help="predictions on them, COCO panoptic")
    which.add_argument("--pred-dir", metavar="DIR", help="the PNGs of the predictions")
    which.add_argument(
        "--review", metavar="R.json",
        help="review exported by a label report: images marked f come first, accepted ones never",
    )  # fmt: skip
    which.add_argument(
        "--suggest-by", choices=("random", "gain"), default="random",
        help="at random, which trained better where it was measured, or those whose labels are "
        "known least (%(default)s)",
    )  # fmt: skip
    which.add_argument("--seed", type=int, default=0, help="of the random choice (%(default)s)")
    which.add_argument("--suggest-report", type=Path, metavar="R.html", help="HTML page of them")
    which.add_argument(
        "--suggest-list", type=Path, metavar="L.txt",
        help="list of their names, for full_images of a mixed set",
    )  # fmt: skip
    parser.add_argument("--plot", type=Path, metavar="P.png", help="curve: png, svg or pdf")
    parser.add_argument("--output", type=Path, metavar="B.json", help="everything as JSON")
    return parser


def read_counts(args: argparse.Namespace) -> AnnotationCounts:
    """Return the counts of the dataset or of the arguments.

    Raises:
        InputError: neither is given, or a negative count.
    """
    for name in ("num_images", "num_boxes", "num_tags", "num_masks"):
        value = getattr(args, name)
        if value is not None and value < (1 if name == "num_images" else 0):
            raise InputError(f"--{name.replace('_', '-')} {value}: expected a count")
    if args.dataset is None and args.annotations is None:
        if args.num_images is None or args.num_boxes is None:
            raise InputError(
                "expected --dataset NAME, --annotations A.json --images DIR, or --num-images and "
                "--num-boxes (and --num-tags, --num-masks)"
            )
        tags = args.num_tags or 0
        masks = args.num_boxes + tags if args.num_masks is None else args.num_masks
        return AnnotationCounts(args.num_images, args.num_boxes, tags, masks)
    for name in ("num_boxes", "num_tags", "num_masks"):
        if getattr(args, name) is not None:
            raise InputError(
                f"--{name.replace('_', '-')}: is counted in --dataset or --annotations; only "
                "--num-images goes with them"
            )
    from wsis_d2.report.sources import open_data

    data = open_data(args)
    things = [index for index, c in enumerate(data.classes) if c["isthing"]]
    told = [r for r in data.records if r["supervision"] == "weak" or _is_annotated(r)]
    if not told:
        raise InputError(
            f"{data.name}: has no boxes, tags or marks to count, only full images; name the weak "
            "set, or --num-images and --num-boxes"
        )
    counts = count_records(told, things)
    if len(told) < len(data.records):
        print(f"{data.name}: {len(data.records) - len(told)} full images have no boxes and tags; "
              f"counted as the other {len(told)}", file=sys.stderr)  # fmt: skip
        counts = counts.scaled(len(data.records))
    return counts.scaled(args.num_images) if args.num_images else counts


def _is_annotated(record: dict[str, Any]) -> bool:
    keys = ("annotations", "image_tags", "crop_tags", "unboxed", "points", "scribbles")
    return any(record.get(key) for key in keys)


def numbers(pairs: Sequence[str], option: str, low: float, high: float) -> dict[str, float]:
    """Return RUN=NUMBER arguments as a dict."""
    result = {}
    for pair in pairs:
        name, mark, text = pair.rpartition("=")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not mark or not name or not low <= value <= high:
            raise InputError(f"{option} {pair}: expected RUN=NUMBER, from {low:g} to {high:g}")
        result[name] = value
    return result


def read_points(
    args: argparse.Namespace, counts: AnnotationCounts, times: AnnotationTimes
) -> list[RunPoint]:
    """Return the measured runs with the hours that their annotation takes."""
    from wsis_d2.evaluation.results import read_results_json, warn_of_other_sets

    runs: dict[str, Any] = {}
    for path in {Path(path).resolve(): path for path in args.results}.values():
        for name, run in read_results_json(path)["runs"].items():
            names = (name, f"{Path(path).resolve().parent.name}/{name}", f"{path}/{name}")
            runs[next(name for name in names if name not in runs)] = run
    images = numbers(args.run_images, "--run-images", 1, 1e9)
    shares = numbers(args.run_full_share, "--run-full-share", 0, 1)
    hours = numbers(args.run_hours, "--run-hours", 0, 1e9)
    for option, given in (
        ("--run-images", images), ("--run-full-share", shares), ("--run-hours", hours),
    ):  # fmt: skip
        for name in given:
            if name not in runs:
                raise InputError(
                    f"{option} {name}=...: no such run, expected one of {', '.join(runs) or 'none'}"
                )
    task, _, metric = args.metric.partition(".")
    points = []
    for name, run in runs.items():
        meta = run["meta"]
        if meta.get("variant", "main") != "main" and not args.all_variants:
            continue
        quality = run.get(task, {}).get(metric)
        if not isinstance(quality, int | float) or not math.isfinite(quality):
            print(f"{name}: has no {args.metric}, left out", file=sys.stderr)
            continue
        kind = meta.get("supervision")
        share = shares.get(name, {"weak": 0.0, "full": 1.0}.get(kind))
        if share is None and name not in hours:
            raise InputError(
                f"run {name}: its supervision is {kind}; expected --run-full-share {name}=F, the "
                "share of its images that were annotated fully"
            )
        count = int(images.get(name, counts.images))
        spent = hours.get(name)
        if spent is None:
            spent = supervision_cost(counts.scaled(count), times, share).hours
        points.append(RunPoint(name, str(kind), count, spent, float(quality)))
    warn_of_other_sets({point.name: runs[point.name] for point in points}, "compares quality of")
    if args.results and not points:
        raise InputError(f"{', '.join(args.results)}: no run with {args.metric}")
    return points


def suggestions(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Choose images; write page and annotation; return them as JSON values, the first one first.

    Raises:
        InputError: arguments that are missing or do not belong together.
    """
    import os
    import random

    from detectron2.data import MetadataCatalog

    from wsis_d2.data.panoptic_format import PanopticFile
    from wsis_d2.planning.suggest import suggest
    from wsis_d2.report.sources import open_data
    from wsis_d2.report.suggestions import Predictions, measure, suggestion_report
    from wsis_d2.weak_labels.review import read_review
    from wsis_d2.weak_labels.store import LabelStore

    if args.suggest < 1:
        raise InputError(f"--suggest {args.suggest}: expected 1 or more")
    if args.dataset is None and args.annotations is None:
        raise InputError("--suggest: expected --dataset NAME, or --annotations A.json --images DIR")
    if (args.pred_json is None) != (args.pred_dir is None):
        raise InputError("expected both --pred-json and --pred-dir, or neither")
    data = open_data(args)
    if not args.store and not data.label_store:
        raise InputError("--suggest: needs --store STORE, the labels of the images")
    store = LabelStore.open(args.store or data.label_store).in_classes(data.table)
    predictions = None
    if args.pred_json is not None:
        file = PanopticFile(args.pred_json, args.pred_dir).in_classes(data.table)
        predictions = Predictions(file, data)
    accepted, marked = set(), set()
    if args.review:
        review = read_review(args.review)
        review.check(store)
        accepted, marked = set(review.of("accept")), set(review.of("full"))
    records = [r for r in data.records
               if r["supervision"] == "weak" and r["image_id"] not in accepted]  # fmt: skip
    if predictions is not None:
        predictions.check(records)
    gains = list(measure(records, store, predictions))
    if args.suggest_by == "random":
        random.Random(args.seed).shuffle(gains)
        gains.sort(key=lambda gain: gain.image_id not in marked)
        chosen = [(gain, 0.0) for gain in gains[: args.suggest]]
    else:
        chosen = suggest(gains, args.suggest, marked)
    if args.suggest_report is not None:
        page = suggestion_report(args.suggest_report, data, store, chosen, predictions)
        print(f"wrote {page}")
    if args.suggest_list is not None:
        root = args.images or MetadataCatalog.get(args.dataset).image_root
        names = [Path(os.path.relpath(gain.file_name, root)).as_posix() for gain, _ in chosen]
        with atomic_write(args.suggest_list) as stream:
            stream.write("".join(f"{name}\n" for name in names).encode())
        print(f"wrote {args.suggest_list}")
    return [
        {"image_id": g.image_id, "file_name": Path(g.file_name).name, "gain": value,
         "objects": sum(g.count.values()), "ignored": g.ignored, "disagreement": g.disagreement,
         "uncertainty": g.uncertainty, "refused": g.refused}
        for g, value in chosen
    ]  # fmt: skip


def draw(path: Path, points: Sequence[RunPoint], metric: str) -> None:
    """Draw quality against hours."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    front = pareto(points)
    axes.plot([p.hours for p in front], [p.quality for p in front], "--", color="#888888", zorder=1)
    styles = {"weak": ("#0072b2", "o"), "full": ("#d55e00", "s"), "mixed": ("#009e73", "^")}
    for kind, (color, marker) in styles.items():
        chosen = [p for p in points if p.supervision == kind]
        if chosen:
            axes.scatter([p.hours for p in chosen], [p.quality for p in chosen], s=60, color=color,
                         marker=marker, label=kind, zorder=2)  # fmt: skip
    for point in points:
        axes.annotate(point.name, (point.hours, point.quality), xytext=(6, -12),
                      textcoords="offset points", fontsize=9)  # fmt: skip
    hours = [p.hours for p in points if p.hours > 0]
    if hours and max(hours) > 5 * min(hours):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}")
    axes.margins(0.15)
    axes.set(xlabel="hours of annotation", ylabel=f"{metric} (percent)")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_write(path) as file:
        figure.savefig(file, format=path.suffix[1:].lower() or "png", dpi=150)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; return its exit status."""
    args = make_parser().parse_args(argv)
    if args.plot is not None and args.plot.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"--plot {args.plot}: expected a name that ends in .png, .svg or .pdf")
    if args.plot is not None and not args.results:
        raise InputError("--plot: needs --results R.json, the measured runs to draw")
    if args.budget_hours is not None and not 0 < args.budget_hours < math.inf:
        raise InputError(f"--budget-hours {args.budget_hours}: expected more than 0")
    times = AnnotationTimes(
        args.box_seconds, args.tag_seconds, args.mask_seconds, args.point_seconds,
        args.scribble_seconds, args.full_image_seconds, args.hourly_rate,
    )  # fmt: skip
    for option in ("store", "pred_json", "pred_dir", "review", "suggest_report", "suggest_list"):
        if args.suggest is None and getattr(args, option) is not None:
            raise InputError(f"--{option.replace('_', '-')}: is for --suggest N")
    counts = read_counts(args)
    plans = [("weak", 0.0), *((f"mixed, {100 * s:g} % full", s) for s in args.full_share),
             ("full", 1.0)]  # fmt: skip
    costs = {name: supervision_cost(counts, times, share) for name, share in plans}
    points = read_points(args, counts, times)
    advice = recommend(points, counts, times, metric=args.metric.split(".")[-1],
                       budget_hours=args.budget_hours)  # fmt: skip

    marks = "".join(
        f"{number} {name}, "
        for name, number in (("points", counts.points), ("scribbles", counts.scribbles))
        if number
    )
    print(f"{counts.images} images: {counts.boxes} boxes, {marks}{counts.tags} tags; by hand "
          f"{counts.masks} segments")  # fmt: skip
    full = costs["full"].hours or math.nan
    rows = [
        [name, c.hours, c.seconds_per_image, c.money, 100 * c.hours / full]
        for name, c in costs.items()
    ]
    headers = ["supervision", "hours", "seconds an image", "cost", "% of full"]
    print(tabulate(rows, headers, floatfmt=(None, ".1f", ".1f", ".0f", ".1f")))
    if points:
        rows = [
            [p.name, p.supervision, p.images, p.hours, p.quality,
             p.quality / p.hours if p.hours else None]
            for p in sorted(points, key=lambda p: p.hours)
        ]  # fmt: skip
        headers = ["run", "supervision", "images", "hours", args.metric, "an hour"]
        print("\n" + tabulate(rows, headers, floatfmt=(None, None, "d", ".1f", ".1f", ".3g")))
    print("\n" + "\n".join(advice))
    chosen = suggestions(args) if args.suggest is not None else []
    if chosen:
        keys = ["file_name", "gain", "objects", "ignored", "disagreement", "uncertainty"]
        rows = [[rank, *(entry[key] for key in keys)] for rank, entry in enumerate(chosen, 1)]
        print("\n" + tabulate(rows[:20], ["", *keys], floatfmt=".2f"))
        if len(rows) > 20:
            print(f"... and {len(rows) - 20} more; --output and --suggest-report have them all")
    if args.plot is not None:
        draw(args.plot, points, args.metric)
        print(f"wrote {args.plot}")
    if args.output is not None:
        from wsis_d2.utils.json_io import write_json

        content = {
            "counts": asdict(counts),
            "times": asdict(times),
            "costs": {name: asdict(cost) for name, cost in costs.items()},
            "runs": [asdict(p) for p in points],
            "pareto": [p.name for p in pareto(points)],
            "recommendation": advice,
            "suggestions": chosen,
        }
        write_json(args.output, content, indent=1)
        print(f"wrote {args.output}")
    return 0


if __name__ == "__main__":
    main_with_errors(main)
