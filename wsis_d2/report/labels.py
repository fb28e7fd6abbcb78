# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The report on pseudo labels: what a label store says of its images, beside the truth."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsis_d2.report.html import write_report
from wsis_d2.report.sources import (
    DataSource,
    annotation_layer,
    class_names,
    class_quality,
    confusion,
    coverage,
    disagreement,
    image_name,
    panoptic_layer,
    store_layer,
)
from wsis_d2.structures.annotation import record_marks
from wsis_d2.structures.labels import IGNORE
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.image_io import read_record
from wsis_d2.utils.json_io import flatten
from wsis_d2.utils.progress import progress
from wsis_d2.weak_labels.store import LabelStore


class _Sums:
    """What is summed over images while their items stream by, for one store."""

    def __init__(self, classes: int) -> None:
        self.table = np.zeros((classes, classes + 1), np.int64)
        self.pixels = np.zeros(classes, np.int64)
        self.coverage: list[float] = []
        self.true_images = 0


def label_report(
    output: str | Path,
    data: DataSource,
    stores: Mapping[str, Any],
    *,
    limit: int = 0,
    title: str = "",
) -> Path:
    """Write a report on one or more label stores of one dataset.

    Images are sorted by their IoU with the truth, else by the disagreement of the first two
    stores, else by coverage, the worst first. Labels of one store can be reviewed in it
    (:mod:`wsis_d2.weak_labels.review`).

    Args:
        output: the HTML file.
        data: the images.
        stores: name to opened :class:`wsis_d2.weak_labels.store.LabelStore`.
        limit: at most so many images, spread evenly; 0 shows all.
        title: title of the page; "" makes one.

    Raises:
        InputError: a store whose classes are not the dataset's, with none of its images, or with
            labels of another annotation or picture.
    """
    stores = {name: store.in_classes(data.table) for name, store in stores.items()}
    for name, store in stores.items():
        if not any(store.has(r) for r in data.records):
            raise InputError(
                f"store {name}: holds no image of {data.name}; make labels with "
                "tools/make_weak_labels.py"
            )
    records = spread([r for r in data.records if any(s.has(r) for s in stores.values())], limit)
    sums = {name: _Sums(len(data.classes)) for name in stores}
    items = list(_items(records, data, stores, sums))  # pictures are drawn later, one by one
    sort, ascending = "coverage", True
    if data.truth is not None:
        sort = "IoU"
    elif len(stores) > 1:
        sort, ascending = "disagreement", False
    return write_report(
        output,
        title or f"Weak labels of {Path(data.name).name}",
        (_load(item, data, stores) for item in items),
        classes=data.classes,
        subtitle=f"{len(records)} of {len(data.records)} images.",
        tables=_tables(data, stores, sums, len(records)),
        bars=_bars(data, sums),
        sort=sort,
        ascending=ascending,
        review=next(iter(stores.values())).recipe_hash if len(stores) == 1 else "",
        footer="Grey hatching marks ignored pixels. "
        + " ".join(f"{name}: recipe {store.recipe_hash[:12]}." for name, store in stores.items()),
    )


def spread(records: Sequence[Any], limit: int) -> list[Any]:
    """Return at most ``limit`` records spread evenly over the list; 0 returns all."""
    if limit <= 0 or len(records) <= limit:
        return list(records)
    return [records[i * len(records) // limit] for i in range(limit)]


def _items(
    records: Sequence[dict],
    data: DataSource,
    stores: Mapping[str, LabelStore],
    sums: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    """Yield scores of each image; label maps are read, summed and dropped."""
    for record in progress(records, desc="scores"):
        image_id = record["image_id"]
        truth = panoptic_layer(data.truth, image_id, data.classes) if data.truth else None
        scores: dict[str, float | None] = {}
        layers = {}
        for name, store in stores.items():
            labels = store_layer(store, image_id)
            layers[name] = labels
            if labels is None:
                continue
            suffix = "" if len(stores) == 1 else f" {name}"
            total = sums[name]
            share = coverage(labels)
            total.coverage.append(share)
            found = labels.semantic[labels.semantic < len(data.classes)]
            total.pixels += np.bincount(found, minlength=len(data.classes))
            if truth is not None:
                table = confusion(labels, truth, len(data.classes), record["file_name"])
                total.table += table
                total.true_images += 1
                quality = class_quality(table)
                scores["IoU" + suffix] = _mean(quality["IoU"])
                if len(stores) == 1:
                    scores["precision"] = _mean(quality["precision"])
            scores["coverage" + suffix] = share
        present = [v for v in layers.values() if v is not None]
        if len(present) > 1:
            scores["disagreement"] = disagreement(present[0], present[1])
        if len(stores) > 1:
            for kind in ("IoU", "coverage"):
                values = [v for k, v in scores.items() if k.startswith(kind + " ")]
                if values:
                    scores = {kind: _mean(np.array(values, float)), **scores}
        yield {
            "record": record,
            "id": image_id,
            "name": image_name(record),
            "scores": scores,
            "classes": class_names(present[0] if present else None, record, data.classes),
        }


def _load(item: dict[str, Any], data: DataSource, stores: Mapping[str, Any]) -> dict[str, Any]:
    """Return an item with its layers, read now."""
    record = item["record"]
    image_id = record["image_id"]
    layers: dict[str, Any] = {"image": read_record(record), "annotation": annotation_layer(record)}
    for name, store in stores.items():
        layers["pseudo label" if len(stores) == 1 else name] = store_layer(store, image_id)
    if data.truth is not None:
        layers["truth"] = panoptic_layer(data.truth, image_id, data.classes)
    return {**item, "layers": layers}


def _mean(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else None


def _tables(
    data: DataSource, stores: Mapping[str, LabelStore], sums: Mapping[str, Any], images: int
) -> list[dict[str, Any]]:
    rows = []
    for name, store in stores.items():
        total = sums[name]
        quality = class_quality(total.table)
        means = [np.array(total.coverage)]
        if data.truth is not None:
            means += [quality[k] for k in ("IoU", "precision", "recall")]
        row = [100 * v if (v := _mean(values)) is not None else None for values in means]
        rows.append([name, len(total.coverage), len(store.failed), *row])
    columns = ["store", "images", "failed", "coverage %"]
    note = "Means over classes; pixels without truth are left out." if data.truth else ""
    columns += ["IoU %", "precision %", "recall %"] if data.truth else []
    lacking = [n for n in stores if data.truth and sums[n].true_images < len(sums[n].coverage)]
    note += "".join(
        f" Only {sums[n].true_images} of the {len(sums[n].coverage)} images of {n} have truth."
        for n in lacking
    )
    if any(len(total.coverage) < images for total in sums.values()):
        note += " The stores hold different images, so that their numbers do not compare."
    tables = [{"title": "Labels", "columns": columns, "rows": rows, "note": note}]
    marked = _marks(data.records)
    if marked:
        tables.append({"title": "Points and scribbles", "columns": ["", "number"], "rows": marked})
    recipes = [flatten(store.recipe) for store in stores.values()]
    keys = sorted(set().union(*recipes))
    lines = [[key, *(str(r[key]) if key in r else None for r in recipes)] for key in keys]
    tables.append({"title": "Recipe", "columns": ["key", *stores], "rows": lines})
    failed = [[n, str(k), m] for n, s in stores.items() for k, m in list(s.failed.items())[:50]]
    if failed:
        columns = ["store", "image", "reason"]
        tables.append({"title": "Failed images", "columns": columns, "rows": failed})
    return tables


def _marks(records: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """Return what is marked, [] where nothing is."""
    objects = [o for r in records for o in (*r["annotations"], *r.get("unboxed", ()))]
    entries = [*records, *objects]
    points, scribbles = (
        sum(len(e.get(key) or ()) for e in entries) for key in ("points", "scribbles")
    )
    if not points + scribbles:
        return []
    marked = [o for o in objects if o.get("points") or o.get("scribbles")]
    drawn = [m for r in records if (m := record_marks(r)) is not None]
    pixels = sum(int(np.count_nonzero(m.classes != IGNORE)) for m in drawn)
    size = sum(r["height"] * r["width"] for r in records)
    return [
        ["points", points],
        ["scribbles", scribbles],
        ["objects", len(objects)],
        ["objects with marks", len(marked)],
        ["objects without a box", sum("bbox" not in o for o in objects)],
        ["images with marks %", 100 * len(drawn) / max(1, len(records))],
        ["pixels marked %", 100 * pixels / max(1, size)],
    ]


def _bars(data: DataSource, sums: Mapping[str, Any]) -> list[dict[str, Any]]:
    names = [c["name"] for c in data.classes]
    charts = []
    if data.truth is not None:
        qualities = {name: class_quality(total.table) for name, total in sums.items()}
        for kind in ("IoU", "precision", "recall"):
            series = [{"name": n, "values": (100 * q[kind]).tolist()} for n, q in qualities.items()]
            charts.append(
                {"title": f"{kind} by class", "labels": names, "series": series, "unit": " %"}
            )
    series = [
        {"name": n, "values": (100 * t.pixels / max(1, t.pixels.sum())).tolist()}
        for n, t in sums.items()
    ]
    title = "Share of the labelled pixels by class"
    charts.append({"title": title, "labels": names, "series": series, "unit": " %"})
    return charts
