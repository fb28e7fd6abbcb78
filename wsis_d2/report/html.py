# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Static HTML reports: one page and a folder of pictures beside it.

No server and no request that leaves the disk; pictures are loaded only near the view, so that
hundreds of images stay fluid.
"""

import base64
import json
import math
import os
import shutil
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np

from wsis_d2.report.charts import CHART_DEFS, bar_chart, format_number, line_chart
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.files import atomic_write, remove_dead_temporaries
from wsis_d2.utils.image_io import read_picture
from wsis_d2.utils.processes import LOCK, only_writer
from wsis_d2.visualization.layers import AnnotationLayer, LabelLayer, Layer
from wsis_d2.visualization.palette import IGNORE_COLOR, IGNORE_PATTERN, pattern_mask, safe_style
from wsis_d2.visualization.visualizer import draw_annotation, draw_labels

MARKER = ".wsis_d2_report"
THUMBNAIL = 480
# Tables with more rows are folded up at first.
_LONG_TABLE = 14
# Known layers stand in this order, others between them as they come.
_ORDER = {"image": 0, "annotation": 1, "pseudo label": 2, "truth": 4}


def write_report(
    output_html: str | Path,
    title: str,
    items: Iterable[dict[str, Any]] = (),
    *,
    classes: Sequence[dict[str, Any]] = (),
    subtitle: str = "",
    tables: Sequence[dict[str, Any]] = (),
    curves: Sequence[dict[str, Any]] = (),
    bars: Sequence[dict[str, Any]] = (),
    sort: str = "",
    ascending: bool = True,
    hidden_layers: Sequence[str] = (),
    footer: str = "",
    review: str = "",
    max_side: int = 1600,
) -> Path:
    """Write a report; an existing report of the same name is replaced as a whole.

    Args:
        output_html: the page; its pictures lie beside it in ``<stem>_files/``.
        title: title of the page.
        items: the images, each ``{"name", "layers": {layer name: layer}, "scores": {name:
            number or None}, "caption", "classes": [names]}``; only name and layers are required.
            The first layer should be the photograph (``"image"``). A layer is the path of a
            picture, a uint8 array (H, W, 3) RGB (opaque) or (H, W, 4) RGBA (laid over the
            photograph), :class:`LabelLayer` or :class:`AnnotationLayer`. A generator is used up
            lazily, one image in memory at a time.
        classes: from :func:`wsis_d2.visualization.palette.class_list`; needed by LabelLayer and
            AnnotationLayer.
        subtitle: one or two sentences under the title.
        tables: ``{"title", "columns": [...], "rows": [[...]], "note"}`` each.
        curves: ``{"title", "x_label", "y_label", "series": [{"name", "x", "y"}], "note"}`` each.
        bars: ``{"title", "labels", "series": [{"name", "values"}], "unit", "note"}`` each.
        sort: score by which the images are ordered at first; "" keeps the given order.
        ascending: whether the lowest comes first.
        hidden_layers: layers that are off at first.
        footer: plain text at the end of the page.
        review: recipe hash of the labels that are shown; given, images can be accepted, refused or
            marked for full annotation, and the verdicts exported
            (:mod:`wsis_d2.weak_labels.review`). Items then have ``"id"``, their image id.
        max_side: photographs with a longer side are scaled down to it.

    Returns:
        The path of the page.

    Raises:
        InputError: a picture that cannot be read, a layer of a wrong shape, or a folder
            ``<stem>_files`` that no report wrote.
    """
    output_html = Path(output_html)
    output_html.parent.mkdir(parents=True, exist_ok=True)
    folder = output_html.with_name(output_html.stem + "_files")
    if folder.exists() and not (folder / MARKER).is_file():
        raise InputError(
            f"{folder}: exists and was not written by a report; expected no such folder. "
            "Move it or choose another output name"
        )
    work = folder.with_name(f".{folder.name}")
    with only_writer(work):
        for left in work.iterdir():  # of a report that was killed
            if left.name != LOCK:
                left.unlink()
        remove_dead_temporaries(output_html.parent)
        try:
            (work / MARKER).write_text("pictures of the report beside this folder\n")
            entries = [
                _write_item(index, item, work, folder.name, list(classes), max_side)
                for index, item in enumerate(items)
            ]
            page = _page(
                title, subtitle, entries, list(classes), tables, curves, bars, sort, ascending,
                hidden_layers, footer, review,
            )  # fmt: skip
            # Halves of characters, which JSON may hold, have no place in a file.
            with atomic_write(output_html) as file:
                if folder.exists():
                    shutil.rmtree(folder)
                (work / LOCK).unlink()
                os.replace(work, folder)
                file.write(page.encode("utf-8", "replace"))
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
    return output_html


def _write_item(
    index: int, item: dict, work: Path, folder: str, classes: list[dict], max_side: int
) -> dict[str, Any]:
    """Write one image's layers and return its entry in the page's data."""
    name, place = str(item["name"]), quote(folder)  # a "#" or "%" means something in addresses
    layers: dict[str, dict] = {}
    size: tuple[int, int] | None = None
    for number, (layer_name, layer) in enumerate(item["layers"].items()):
        if layer is None:
            continue
        stem = f"{index:05d}_{number}"
        try:
            if size is not None and isinstance(layer, LabelLayer) and layer.semantic.shape != size:
                raise ValueError(f"is {layer.semantic.shape} pixels, the photograph {size}")
            drawn, safe = _draw(layer, size, classes)
        except (ValueError, IndexError, TypeError) as error:
            raise InputError(f"image {name!r}, layer {layer_name!r}: {error}") from error
        if size is None:
            size = drawn.shape[:2]
        kind = {LabelLayer: "labels", AnnotationLayer: "lines"}.get(type(layer))
        opaque = drawn.shape[2] == 3
        entry: dict[str, Any] = {"kind": kind or ("picture" if opaque else "overlay")}
        entry["src"] = f"{place}/{_save(work, stem, drawn, max_side)}"
        side = max(drawn.shape[:2])
        if opaque and side > 1.5 * THUMBNAIL:
            entry["thumb"] = f"{place}/{_save(work, stem + 't', drawn, THUMBNAIL)}"
        if safe is not None:
            entry["safe"] = f"{place}/{_save(work, stem + 's', safe, max_side)}"
        layers[str(layer_name)] = entry
    if size is None:
        raise InputError(f"image {name!r}: has no layer; expected at least the photograph")
    scores = {str(k): _number(v) for k, v in (item.get("scores") or {}).items()}
    return {
        "name": name,
        **({"id": item["id"]} if "id" in item else {}),
        "layers": layers,
        "scores": scores,
        "caption": str(item.get("caption") or ""),
        "classes": [str(c) for c in item.get("classes") or []],
        "width": size[1],
        "height": size[0],
    }


def _number(value: Any) -> float | None:
    """Return a finite float or None; JSON knows no NaN."""
    if value is None or not math.isfinite(float(value)):
        return None
    return round(float(value), 6)


def _draw(
    layer: Layer, size: tuple[int, int] | None, classes: list[dict]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return a layer as RGB or RGBA in the dataset's colours and, for labels, in safe ones."""
    if isinstance(layer, LabelLayer):
        both = [
            draw_labels(layer.semantic, layer.instance, classes=classes, palette=palette)
            for palette in ("dataset", "safe")
        ]
        return both[0], both[1]
    if isinstance(layer, AnnotationLayer):
        if size is None:
            raise ValueError("an annotation needs the photograph as the first layer")
        both = [
            draw_annotation(
                *size, layer.boxes, layer.class_ids, classes=classes, tags=layer.tags,
                crop_tags=layer.crop_tags, crowd=layer.crowd, scores=layer.scores,
                marks=layer.marks, palette=palette,
            )
            for palette in ("dataset", "safe")
        ]  # fmt: skip
        return both[0], both[1]
    if isinstance(layer, str | Path):
        return read_picture(layer), None
    array = np.asarray(layer)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (3, 4) or not array.size:
        raise ValueError(
            f"expected a uint8 array (H, W, 3 or 4), found {array.dtype} {array.shape}"
        )
    return array, None


def _save(work: Path, stem: str, array: np.ndarray, max_side: int) -> str:
    """Write a picture, scaled down to ``max_side``; return its file name."""
    side = max(array.shape[:2])
    if side > max_side:
        height, width = (max(1, round(v * max_side / side)) for v in array.shape[:2])
        array = cv2.resize(array, (width, height), interpolation=cv2.INTER_AREA)
    if array.shape[2] == 4:
        name, flat = stem + ".png", cv2.cvtColor(array, cv2.COLOR_RGBA2BGRA)
        options = [cv2.IMWRITE_PNG_COMPRESSION, 4]
    else:
        small = max(array.shape[:2]) <= 320
        name = stem + (".png" if small else ".jpg")
        flat = cv2.cvtColor(array, cv2.COLOR_RGB2BGR)
        options = [] if small else [cv2.IMWRITE_JPEG_QUALITY, 90]
    if not cv2.imwrite(str(work / name), flat, options):
        raise InputError(f"{work / name}: cannot be written; is the disk full?")
    return name


def _swatch(color: tuple[int, int, int], pattern: str) -> str:
    """Return a data URI of a small sample of a colour and a pattern."""
    tile = np.zeros((14, 22, 3), np.uint8)
    tile[:] = color[::-1]
    ink = (255, 255, 255) if sum(color) < 380 else (0, 0, 0)
    tile[pattern_mask(pattern, 14, 22, 7)] = ink
    return (
        "data:image/png;base64,"
        + base64.b64encode(cv2.imencode(".png", tile)[1].tobytes()).decode()
    )


def _template(name: str) -> str:
    return (resources.files("wsis_d2.report") / "template" / name).read_text("utf-8")


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text.lower()).strip("-") or "part"


def _page(
    title: str,
    subtitle: str,
    entries: Sequence[dict[str, Any]],
    classes: list[dict[str, Any]],
    tables: Sequence[dict[str, Any]],
    curves: Sequence[dict[str, Any]],
    bars: Sequence[dict[str, Any]],
    sort: str | None,
    ascending: bool,
    hidden: Sequence[str],
    footer: str,
    review: str,
) -> str:
    """Return the page's text."""
    layers: list[str] = []
    for entry in entries:
        layers += [name for name in entry["layers"] if name not in layers]
    layers.sort(key=lambda name: _ORDER.get(name, 3))
    scores: list[str] = []
    for entry in entries:
        scores += [name for name in entry["scores"] if name not in scores]
    present = {name for entry in entries for name in entry["classes"]}
    known = [c["name"] for c in classes if c["name"] in present]
    data = {
        "items": entries,
        "layers": layers,
        "base": layers[0] if layers else "",
        "hidden": list(hidden),
        "review": review,
        "scores": scores,
        "sort": sort if sort in scores else "",
        "ascending": bool(ascending),
        "item_classes": known + sorted(present - set(known)),
        "has_safe": any("safe" in x for e in entries for x in e["layers"].values()),
        "classes": [
            {
                "name": c["name"],
                "isthing": c["isthing"],
                "color": "rgb({}, {}, {})".format(*c["color"]),
                "safe": _swatch(*safe_style(index)),
            }
            for index, c in enumerate(classes)
        ],
        "ignore": _swatch(IGNORE_COLOR, IGNORE_PATTERN),
    }
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    sections, links = [], []
    parts = (
        ("Results", [_table(t) for t in tables], "tables"),
        ("Charts", [_bars(b) for b in bars] + [_curve(c) for c in curves], "charts"),
    )
    for name, pieces, style in parts:
        if pieces:
            slug = _slug(name)
            links.append((slug, name))
            sections.append(
                f'<section id="{slug}" aria-labelledby="{slug}-title">'
                f'<h2 id="{slug}-title">{name}</h2><div class="{style}">{"".join(pieces)}</div>'
                "</section>"
            )
    links.append(("images", f"Images ({len(entries)})"))
    fields = {
        "TITLE": escape(title),
        "SUBTITLE": f'<p class="subtitle muted">{escape(subtitle)}</p>' if subtitle else "",
        "NAV": "".join(f'<a href="#{slug}">{escape(name)}</a>' for slug, name in links),
        "SECTIONS": "\n".join(sections),
        "DEFS": CHART_DEFS,
        "CSS": _template("report.css"),
        "JS": _template("report.js"),
        "FOOTER": escape(footer),
        # "<" never appears in the data, so no text of a user can end the script element.
        "DATA": text.replace("<", "\\u003c").replace("\u2028", "\\u2028"),
    }
    chunks = _template("report.html").split("@@")
    return "".join(fields[c] if i % 2 else c for i, c in enumerate(chunks))


def _decimals(values: list[float]) -> int:
    """Return how many decimals a column of numbers needs, the same for all its rows."""
    if all(float(v).is_integer() for v in values):
        return 0
    largest = max(abs(v) for v in values)
    return 1 if largest >= 10 else 2 if largest >= 2 else 3


def _table(table: dict[str, Any]) -> str:
    """Return one table as HTML; numbers of a column are aligned."""
    is_number = [
        [isinstance(v, int | float | np.number) and not isinstance(v, bool) for v in row]
        for row in table["rows"]
    ]
    words = [
        any(isinstance(row[at], str) for row in table["rows"])
        for at in range(len(table["columns"]))
    ]
    head = "".join(
        f'<th scope="col"{" class=text" if word else ""}>{escape(str(name))}</th>'
        for name, word in zip(table["columns"], words, strict=True)
    )
    body = []
    for row, numeric in zip(table["rows"], is_number, strict=True):
        cells = [f'<th scope="row">{escape(str(row[0]))}</th>']
        for at, value in enumerate(row[1:], start=1):
            if not numeric[at]:
                text = "–" if value is None else str(value)
                style = "" if value is None else ' class="text"'
                cells.append(f"<td{style}>{escape(text)}</td>")
                continue
            column = [
                float(r[at])
                for r, known in zip(table["rows"], is_number, strict=True)
                if known[at] and math.isfinite(r[at])
            ]
            shown = f"{value:,.{_decimals(column)}f}" if math.isfinite(value) else "–"
            cells.append(f"<td>{shown}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    caption = f"<caption>{escape(table['title'])}</caption>" if table.get("title") else ""
    text = (
        f'<div class="table-box"><table>{caption}<thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>{_note(table)}</div>"
    )
    if table.get("title") and len(body) > _LONG_TABLE:
        summary = f"{escape(table['title'])} ({len(body)} rows)"
        text = f"<details><summary>{summary}</summary>{text}</details>"
    return text


def _note(part: dict[str, Any]) -> str:
    return f'<p class="note">{escape(part["note"])}</p>' if part.get("note") else ""


def _details(columns: list[str], rows: list[list[Any]]) -> str:
    body = _table({"columns": columns, "rows": rows})
    return f"<details><summary>numbers</summary>{body}</details>"


def _bars(chart: dict[str, Any]) -> str:
    """Return a bar chart with its numbers as a table that unfolds."""
    svg = bar_chart(
        chart["labels"], chart["series"], title=chart["title"], unit=chart.get("unit", "")
    )
    rows = [
        [label, *(_number(s["values"][i]) for s in chart["series"])]
        for i, label in enumerate(chart["labels"])
    ]
    columns = ["", *(s["name"] for s in chart["series"])]
    return f"<div>{svg}{_note(chart)}{_details(columns, rows)}</div>"


def _curve(chart: dict[str, Any]) -> str:
    """Return a line chart with its numbers as a table that unfolds (at most 200 rows)."""
    svg = line_chart(
        chart["series"],
        title=chart["title"],
        x_label=chart.get("x_label", ""),
        y_label=chart.get("y_label", ""),
        log_x=chart.get("log_x", False),
    )
    columns = {s["name"]: dict(zip(s["x"], s["y"], strict=True)) for s in chart["series"]}
    xs = sorted({x for line in columns.values() for x in line})
    step = max(1, len(xs) // 200)
    rows = [
        [format_number(x), *(_number(line.get(x)) for line in columns.values())] for x in xs[::step]
    ]
    names = [chart.get("x_label", "x"), *columns]
    return f"<div>{svg}{_note(chart)}{_details(names, rows)}</div>"
