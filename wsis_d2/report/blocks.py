# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Tables and charts of a report as HTML; each chart has its numbers as a table that unfolds."""

import math
from html import escape
from typing import Any

import numpy as np

from wsis_d2.report.charts import bar_chart, format_number, line_chart

# Tables with more rows are folded up at first.
_LONG_TABLE = 14


def table_block(table: dict[str, Any]) -> str:
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


def bars_block(chart: dict[str, Any]) -> str:
    """Return a bar chart with its numbers as a table that unfolds."""
    svg = bar_chart(
        chart["labels"], chart["series"], title=chart["title"], unit=chart.get("unit", "")
    )
    rows = [
        [label, *(finite(s["values"][i]) for s in chart["series"])]
        for i, label in enumerate(chart["labels"])
    ]
    columns = ["", *(s["name"] for s in chart["series"])]
    return f"<div>{svg}{_note(chart)}{_details(columns, rows)}</div>"


def curve_block(chart: dict[str, Any]) -> str:
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
        [format_number(x), *(finite(line.get(x)) for line in columns.values())] for x in xs[::step]
    ]
    names = [chart.get("x_label", "x"), *columns]
    return f"<div>{svg}{_note(chart)}{_details(names, rows)}</div>"


def finite(value: Any) -> float | None:
    """Return a finite float or None; JSON knows no NaN."""
    if value is None or not math.isfinite(float(value)):
        return None
    return round(float(value), 6)


def _decimals(values: list[float]) -> int:
    """Return how many decimals a column of numbers needs, the same for all its rows."""
    if all(float(v).is_integer() for v in values):
        return 0
    largest = max(abs(v) for v in values)
    return 1 if largest >= 10 else 2 if largest >= 2 else 3


def _note(part: dict[str, Any]) -> str:
    return f'<p class="note">{escape(part["note"])}</p>' if part.get("note") else ""


def _details(columns: list[str], rows: list[list[Any]]) -> str:
    body = table_block({"columns": columns, "rows": rows})
    return f"<details><summary>numbers</summary>{body}</details>"
