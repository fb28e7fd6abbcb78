# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Static HTML reports: one page and a folder of pictures beside it.

No server and no request that leaves the disk; pictures are loaded only near the view, so that
hundreds of images stay fluid.
"""

import base64
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from wsis_d2.report.blocks import bars_block, curve_block, table_block
from wsis_d2.report.charts import CHART_DEFS
from wsis_d2.report.pictures import write_item
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.files import remove_dead_temporaries
from wsis_d2.utils.processes import LOCK, only_writer
from wsis_d2.visualization.palette import IGNORE_COLOR, IGNORE_PATTERN, pattern_mask, safe_style

MARKER = ".wsis_d2_report"
PAGE = "page.html"  # while it waits for its pictures
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
    footer: str = "",
    review: str = "",
) -> Path:
    """Write a report; an existing report of the same name is replaced as a whole.

    Args:
        output_html: the page; its pictures lie beside it in ``<stem>_files/``.
        title: title of the page.
        items: the images, each ``{"name", "layers": {layer name: layer}, "scores": {name:
            number or None}, "caption", "classes": [names]}``; only name and layers are required.
            The first layer should be the photograph (``"image"``). A layer is the path of a
            picture, a uint8 array (H, W, 3) RGB (opaque) or (H, W, 4) RGBA (laid over the
            photograph), or a ``LabelLayer`` or ``AnnotationLayer`` of
            :mod:`wsis_d2.visualization.layers`. A generator is used up lazily, one image in memory
            at a time.
        classes: from :func:`wsis_d2.visualization.palette.class_list`; needed by LabelLayer and
            AnnotationLayer.
        subtitle: one or two sentences under the title.
        tables: ``{"title", "columns": [...], "rows": [[...]], "note"}`` each.
        curves: ``{"title", "x_label", "y_label", "series": [{"name", "x", "y"}], "note"}`` each.
        bars: ``{"title", "labels", "series": [{"name", "values"}], "unit", "note"}`` each.
        sort: score by which the images are ordered at first; "" keeps the given order.
        ascending: whether the lowest comes first.
        footer: plain text at the end of the page.
        review: recipe hash of the labels that are shown; given, images can be accepted, refused or
            marked for full annotation, and the verdicts exported
            (:mod:`wsis_d2.weak_labels.review`). Items then have ``"id"``, their image id.

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
    old = folder.with_name(f".{folder.name}.old")
    with only_writer(work):
        for left in work.iterdir():  # of a report that was killed
            if left.name != LOCK:
                left.unlink()
        if old.exists():
            shutil.rmtree(old)
        remove_dead_temporaries(output_html.parent)
        moved = False
        try:
            (work / MARKER).write_text("pictures of the report beside this folder\n")
            entries = [
                write_item(index, item, work, folder.name, list(classes))
                for index, item in enumerate(items)
            ]
            page = _page(
                title, subtitle, entries, list(classes), tables, curves, bars, sort, ascending,
                footer, review,
            )  # fmt: skip
            # Halves of characters, which JSON may hold, have no place in a file.
            (work / PAGE).write_bytes(page.encode("utf-8", "replace"))
            if folder.exists():
                os.replace(folder, old)
            os.replace(work, folder)
            moved = True
            os.replace(folder / PAGE, output_html)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            if moved:
                shutil.rmtree(folder, ignore_errors=True)
            if old.exists():  # what was there stays
                os.replace(old, folder)
            raise
        (folder / LOCK).unlink()
        if old.exists():
            shutil.rmtree(old)
    return output_html


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
        ("Results", [table_block(t) for t in tables], "tables"),
        ("Charts", [bars_block(b) for b in bars] + [curve_block(c) for c in curves], "charts"),
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
