# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The report on training runs: results, curves, rounds, and predictions beside the truth."""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wsis_d2.data.datasets.own.values import is_number, shorten
from wsis_d2.data.panoptic_format import PanopticFile
from wsis_d2.evaluation.results import fs_percent, read_results_json, warn_of_other_sets
from wsis_d2.report.html import write_report
from wsis_d2.report.labels import spread
from wsis_d2.report.sources import (
    DataSource,
    annotation_layer,
    class_names,
    class_quality,
    confusion,
    disagreement,
    image_name,
    of_other_pictures,
    panoptic_layer,
    predictions_of,
    store_layer,
)
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.files import list_files
from wsis_d2.utils.image_io import read_record
from wsis_d2.utils.progress import progress

METRICS = (
    ("sem_seg", "mIoU", "IoU"),
    ("apr", "APr_vol", "AP^r vol"),
    ("apr", "APr_vol_th", "AP^r vol things"),
    ("apr", "APr_vol_st", "AP^r vol stuff"),
    ("panoptic_seg", "PQ", "PQ"),
    ("panoptic_seg", "PQ_th", "PQ things"),
    ("panoptic_seg", "PQ_st", "PQ stuff"),
    ("panoptic_seg", "SQ", "SQ"),
    ("panoptic_seg", "DQ", "DQ"),
)
_HIDDEN = ("iteration", "eta_seconds", "data_time", "time", "rank_data_time")
_MAX_POINTS = 400
_MAX_BARS = 6  # runs


@dataclass
class Run:
    """What lies in the output folder of one run.

    Attributes:
        name: what the report calls it.
        folder: the output folder.
        predictions: dataset name to a COCO panoptic file of predictions.
        metrics: the lines of ``metrics.json``.
        results: runs of ``results.json``.
    """

    name: str
    folder: Path
    predictions: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)


def open_run(name: str, folder: str | Path) -> Run:
    """Read a run's output folder.

    Raises:
        InputError: no such folder, or nothing in it that a run writes.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"--run {folder}: no such folder, expected the OUTPUT_DIR of a run")
    run = Run(name, folder)
    for file in list_files(folder, "inference/*/panoptic_pred.json"):
        run.predictions[file.parent.name] = PanopticFile(file, file.with_suffix(""))
    if (folder / "metrics.json").is_file():
        run.metrics = read_metrics(folder / "metrics.json")
    if (folder / "results.json").is_file():
        run.results = read_results_json(folder / "results.json")["runs"]
    if not (run.predictions or run.metrics or run.results):
        raise InputError(
            f"--run {folder}: holds no metrics.json, results.json or "
            "inference/*/panoptic_pred.json; expected the OUTPUT_DIR of tools/train_net.py"
        )
    return run


def find_rounds(run: Run, prefix: str = "") -> list[Run]:
    """Return an iterative run's rounds, named ``prefix`` and "round K", in order; else []."""
    found = []
    for folder in run.folder.iterdir():
        match = re.fullmatch(r"round[_-]?(\d+)", folder.name)
        if match and folder.is_dir():
            try:
                name = f"{prefix}round {match.group(1)}"
                found.append((int(match.group(1)), open_run(name, folder)))
            except InputError:
                continue  # a round that has only just begun
    return [run for _, run in sorted(found, key=lambda pair: pair[0])]


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Return the lines of a ``metrics.json``; a last line cut off by a kill is left out.

    So are lines of iterations that were run again after them, from a checkpoint or from the start:
    the file of a folder is written on, not anew.

    Raises:
        InputError: a line that is no JSON object, or whose iteration is no integer.
    """
    lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line) if line.strip() else {}
            if not isinstance(entry, dict):
                raise ValueError(f"{type(entry).__name__}, expected an object")
            if type(entry.get("iteration", 0)) is not int:
                raise ValueError(f"its iteration is {shorten(entry['iteration'])}")
            entries.append(entry)
        except ValueError as error:
            if number == len(lines):
                break
            raise InputError(f"{path}: line {number} is no line of a training ({error})") from None
    kept: list[dict[str, Any]] = []
    newest = -1
    for entry in entries:
        if "iteration" not in entry:
            continue
        # Only a training's step goes back; Detectron2 writes evaluations behind later steps.
        if "total_loss" in entry:
            if newest >= entry["iteration"]:
                kept = [e for e in kept if e["iteration"] < entry["iteration"]]
            newest = entry["iteration"]
        kept.append(entry)
    return kept


def training_curves(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return one chart for each logged number that changes, a line a run; losses come first."""
    keys: dict[str, None] = {}
    for run in runs:
        for entry in run.metrics:
            keys.update(dict.fromkeys(k for k, v in entry.items() if is_number(v)))
    wanted = [k for k in keys if k not in _HIDDEN and "-" not in k and not k.startswith("rank")]
    wanted.sort(key=lambda k: (k != "total_loss", not k.startswith("loss"), k != "lr", k))
    charts = []
    for key in wanted:
        series = []
        for run in runs:
            points = {e["iteration"]: e[key] for e in run.metrics if is_number(e.get(key))}
            points = {x: y for x, y in sorted(points.items()) if math.isfinite(y)}
            if len(points) < 2:
                continue
            xs = list(points)[:: max(1, len(points) // _MAX_POINTS)]
            series.append({"name": run.name, "x": xs, "y": [points[x] for x in xs]})
        if series:
            charts.append({"title": key, "x_label": "iteration", "y_label": "", "series": series})
    return charts


def result_tables(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the main numbers of runs as a table, with FS% where ``weak`` and ``full`` are there.

    Args:
        results: the ``runs`` of a ``results.json``.
    """
    shown = [m for m in METRICS if any(_value(run, *m[:2]) is not None for run in results.values())]
    if not shown:
        return []
    rows = [
        [name, *(_value(run, task, key) for task, key, _ in shown)] for name, run in results.items()
    ]
    if "weak" in results and "full" in results:
        warn_of_other_sets({n: results[n] for n in ("weak", "full")}, "FS% compares")
        ratio: list[Any] = ["FS % (weak of full)"]
        for task, key, _ in shown:
            ratio.append(fs_percent(*(_value(results[n], task, key) for n in ("weak", "full"))))
        rows.append(ratio)
    facts = [
        [
            name,
            *(str(run["meta"].get(k) if run["meta"].get(k) is not None else "–") for k in
              ("supervision", "dataset", "variant", "seed", "device")),
            round(float(run["meta"].get("seconds") or 0)),
        ]
        for name, run in results.items()
    ]  # fmt: skip
    columns = ["run", "supervision", "dataset", "variant", "seed", "device", "seconds"]
    return [
        {"title": "Results, percent", "columns": ["run", *(m[2] for m in shown)], "rows": rows},
        {"title": "Runs", "columns": columns, "rows": facts},
    ]


def _value(run: Mapping[str, Any], task: str, key: str) -> float | None:
    value = run.get(task, {}).get(key)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def class_bars(results: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return a bar chart of PQ, AP^r_vol and IoU by class, for what the results hold."""
    charts = []
    for task, prefix, title in (
        ("panoptic_seg", "PQ-", "PQ by class"),
        ("apr", "APr_vol-", "AP^r vol by class"),
        ("sem_seg", "IoU-", "IoU by class"),
    ):
        series = [
            {"name": run, "values": [_value(found, task, prefix + n) for n in names]}
            for run, found in results.items()
            if any(_value(found, task, prefix + n) is not None for n in names)
        ]
        if series:
            chart = {"title": title, "labels": list(names), "series": series[:_MAX_BARS]}
            if len(series) > _MAX_BARS:
                chart["note"] = f"The first {_MAX_BARS} of {len(series)} runs."
            charts.append({**chart, "unit": " %"})
    return charts


def round_curves(rounds: Mapping[str, Sequence[Run]]) -> list[dict[str, Any]]:
    """Return the main numbers against the round, a chart for IoU, AP^r and PQ each.

    Args:
        rounds: name of a run to its rounds.
    """
    charts = []
    for group in (METRICS[:1], METRICS[1:4], METRICS[4:7]):
        series = []
        for task, key, title in group:
            for name, own in rounds.items():
                points = {}
                for run in own:
                    values = [_value(found, task, key) for found in run.results.values()]
                    if values := [v for v in values if v is not None]:
                        points[int(run.name.split()[-1])] = values[0]
                if points:
                    label = title if len(rounds) == 1 else f"{title}, {name}"
                    series.append({"name": label, "x": list(points), "y": list(points.values())})
        if series:
            axes = {"x_label": "round", "y_label": "percent"}
            charts.append({"title": f"{group[0][2]} by round", **axes, "series": series})
    return charts


def run_report(
    output: str | Path,
    runs: Mapping[str, str | Path],
    data: DataSource | None = None,
    *,
    results: str | Path | None = None,
    store: Any = None,
    label_data: DataSource | None = None,
    label_limit: int = 24,
    limit: int = 0,
    title: str = "",
) -> Path:
    """Write a report on one or more runs.

    Images are sorted by their IoU with the truth, the worst first; without truth by the
    disagreement of the first two runs.

    Args:
        output: the HTML file.
        runs: name to OUTPUT_DIR; folders ``round_*`` in one are shown as its rounds.
        data: the images that were predicted, with annotation and truth; None shows none.
        results: a ``results.json`` to show instead of those in the folders.
        store: opened label store whose labels are shown, of ``label_data`` or of ``data``.
        label_data: training images that are shown with their pseudo labels, after the others;
            their classes and those of ``data`` meet by name.
        label_limit: at most so many of them.
        limit: at most so many predicted images, spread evenly; 0 shows all.
        title: text at the top; "" makes one.

    Raises:
        InputError: a folder that is no run's, predictions of none of the images, or ``label_data``
            of other classes than ``data``.
    """
    opened = [open_run(name, folder) for name, folder in runs.items()]
    by_run = {r.name: find_rounds(r, f"{r.name} " if len(opened) > 1 else "") for r in opened}
    rounds = [one for own in by_run.values() for one in own]
    if data is not None and label_data is not None:
        label_data = label_data.in_classes(data)
    if results is not None:
        found = read_results_json(results)["runs"]
    else:
        found = {}
        for run in opened + rounds:
            for name, values in run.results.items():
                found[run.name if len(run.results) == 1 else f"{run.name} {name}"] = values
    names = [c["name"] for c in data.classes] if data is not None else []
    items: list[dict[str, Any]] = []
    predicted = [(r.name, find_predictions(r, data)) for r in opened + rounds] if data else []
    predicted = [(name, file) for name, file in predicted if file is not None]
    if data is not None:
        records = [
            r for r in data.records
            if not predicted or any(str(r["image_id"]) in f.annotations for _, f in predicted)
        ]  # fmt: skip
        if not records:
            raise InputError(
                f"{', '.join(map(str, runs.values()))}: predictions of none of the images of "
                f"{data.name}; name the dataset that was predicted"
            )
        items += _scored(spread(records, limit), data, predicted)
    if store is not None and (label_data or data) is not None:
        store = store.in_classes((label_data or data).table)
    loaders = [_load(item, data, predicted, None if label_data else store) for item in items]
    if label_data is not None:
        labelled = [r for r in label_data.records if store is None or store.has(r)]
        loaders += [
            _load({**i, "name": f"train/{i['name']}", "caption": "training image"},
                  label_data, [], store)
            for i in _scored(spread(labelled, label_limit), label_data, [])
        ]  # fmt: skip
    has_iou = any("IoU" in item["scores"] for item in items)
    has_two = any("disagreement" in item["scores"] for item in items)
    return write_report(
        output,
        title or "Runs: " + ", ".join(runs),
        (make() for make in loaders),
        classes=(data or label_data).classes if (data or label_data) else (),
        subtitle=f"Output of {', '.join(str(Path(f).name) for f in runs.values())}.",
        tables=result_tables(found),
        bars=class_bars(found, names),
        curves=round_curves(by_run) + training_curves(opened + rounds),
        sort="IoU" if has_iou else "disagreement" if has_two else "",
        ascending=has_iou or not has_two,
        footer="Grey hatching marks ignored pixels. Scores are per image, 0 to 1.",
    )


def find_predictions(run: Run, data: DataSource) -> Any:
    """Return the predictions of the data's dataset, else those that share an image with it.

    Raises:
        InputError: they are of other classes than the dataset, or number its pictures otherwise.
    """
    file = run.predictions.get(data.name)
    if file is None:
        wanted = {str(r["image_id"]) for r in data.records}
        shared = (f for f in run.predictions.values() if wanted & set(f.annotations))
        file = next((f for f in shared if not of_other_pictures(f, data)), None)
    return None if file is None else predictions_of(file, data)


def _scored(records: Sequence[dict], data: DataSource, predicted: list) -> Iterator[dict[str, Any]]:
    """Yield items without layers: names and scores."""
    for record in progress(records, desc="scores"):
        key = record["image_id"]
        truth = panoptic_layer(data.truth, key, data.classes) if data.truth else None
        scores: dict[str, float | None] = {}
        maps = []
        for name, file in predicted:
            labels = panoptic_layer(file, key, data.classes)
            if labels is None:
                continue
            maps.append(labels)
            if truth is not None:
                table = confusion(labels, truth, len(data.classes), record["file_name"])
                iou = class_quality(table)["IoU"]
                suffix = "" if len(predicted) == 1 else f" {name}"
                scores["IoU" + suffix] = float(np.nanmean(iou)) if np.isfinite(iou).any() else None
        if len(predicted) > 1:
            values = [v for v in scores.values() if v is not None]
            if values:
                scores = {"IoU": float(np.mean(values)), **scores}
            if len(maps) > 1:
                scores["disagreement"] = disagreement(maps[0], maps[1])
        shown = truth if truth is not None else (maps[0] if maps else None)
        classes = class_names(shown, record, data.classes)
        yield {"record": record, "name": image_name(record), "scores": scores, "classes": classes}


def _load(
    item: dict[str, Any], data: DataSource, predicted: list, store: Any
) -> Callable[[], dict[str, Any]]:
    """Return a function that reads an item's layers."""

    def make() -> dict[str, Any]:
        record = item["record"]
        key = record["image_id"]
        layers = {"image": read_record(record), "annotation": annotation_layer(record)}
        if store is not None:
            layers["pseudo label"] = store_layer(store, key)
        for name, file in predicted:
            layer = "prediction" if len(predicted) == 1 else f"prediction {name}"
            layers[layer] = panoptic_layer(file, key, data.classes)
        if data.truth is not None:
            layers["truth"] = panoptic_layer(data.truth, key, data.classes)
        return {**item, "layers": layers}

    return make
