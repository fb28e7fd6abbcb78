# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Line and bar charts as SVG text: no script, no font file, readable without colour.

Series differ by colour, by dash or hatch and by marker; each chart has a text alternative.
"""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

SERIES_COLORS = ("#0072b2", "#d55e00", "#009e73", "#a8568a", "#b27300", "#3a8fc2", "#555555")
DASHES = ("", "7 4", "2 3", "9 3 2 3", "12 4", "4 2", "1 4")
MARKERS = ("circle", "square", "diamond", "triangle")
_WIDTH, _HEIGHT = 560, 300  # CSS pixels; the height of bars follows from their number


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers that cover [low, high], about ``count`` of them.

    Args:
        low, high: finite, any order; equal ends are widened.
        count: wanted number of steps.
    """
    low, high = min(low, high), max(low, high)
    if high - low <= 1e-12 * max(1.0, abs(high)):
        low, high = low - 0.5 * max(1e-3, abs(low)), high + 0.5 * max(1e-3, abs(high))
    raw = (high - low) / max(1, count)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def format_number(value: float) -> str:
    """Return a short text of a number for axes and tables."""
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(value)
    if size >= 1e6 or 0 < size < 1e-3:
        return f"{value:.2g}"
    if size >= 1000:
        return f"{value:,.0f}"
    text = f"{value:.3f}" if size < 1 else f"{value:.2f}" if size < 10 else f"{value:.1f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _finite(xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]]:
    return [
        (float(x), float(y))
        for x, y in zip(xs, ys, strict=True)
        if x is not None and y is not None and math.isfinite(x) and math.isfinite(y)
    ]


def _marker(kind: str, x: float, y: float, color: str, text: str) -> str:
    shapes = {
        "circle": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.4"',
        "square": f'<rect x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6"',
        "diamond": f'<path d="M{x:.1f} {y - 4.4:.1f}l4.4 4.4-4.4 4.4-4.4-4.4z"',
        "triangle": f'<path d="M{x:.1f} {y - 4:.1f}l4 7h-8z"',
    }
    tag = shapes[kind][1:].split()[0]
    return f'{shapes[kind]} fill="{color}"><title>{escape(text)}</title></{tag}>'


def line_chart(
    series: Sequence[dict[str, Any]],
    *,
    title: str,
    x_label: str = "",
    y_label: str = "",
    log_x: bool = False,
) -> str:
    """Return a line chart as an SVG element.

    Args:
        series: ``{"name", "x": [...], "y": [...], "labels": optional text a point}`` each; points
            that are None or not finite are left out.
        title: what is shown; also the text alternative's start.
        x_label, y_label: names of the axes with units.
        log_x: whether x is logarithmic; points at 0 or below are then left out.
    """
    width, height = _WIDTH, _HEIGHT
    points = [_finite(s["x"], s["y"]) for s in series]
    if log_x:
        points = [[p for p in line if p[0] > 0] for line in points]
    everything = [p for line in points for p in line]
    if not everything:
        return f'<p class="empty">{escape(title)}: no finite values to draw.</p>'
    to_x = math.log10 if log_x else (lambda v: v)
    xs = [to_x(p[0]) for p in everything]
    ys = [p[1] for p in everything]
    y_ticks = nice_ticks(min(ys), max(ys))
    if log_x:
        ticks = [(float(k), 10.0**k) for k in range(math.floor(min(xs)), math.ceil(max(xs)) + 1)]
    else:
        ticks = [(t, t) for t in nice_ticks(min(xs), max(xs), 6)]
    x_low, x_high = min(min(xs), ticks[0][0]), max(max(xs), ticks[-1][0])
    if x_high - x_low < 1e-12:
        x_low, x_high = x_low - 0.5, x_high + 0.5
    left, right, top, bottom = 58, 14, 12, 44

    def px(value: float) -> float:
        return left + (value - x_low) / (x_high - x_low) * (width - left - right)

    def py(value: float) -> float:
        span = y_ticks[-1] - y_ticks[0]
        return height - bottom - (value - y_ticks[0]) / span * (height - top - bottom)

    parts = []
    for tick in y_ticks:
        parts.append(f'<path class="grid" d="M{left} {py(tick):.1f}H{width - right}"/>')
        parts.append(
            f'<text x="{left - 7}" y="{py(tick) + 4:.1f}" text-anchor="end">'
            f"{format_number(tick)}</text>"
        )
    for place, tick in ticks:
        parts.append(f'<path class="grid" d="M{px(place):.1f} {top}V{height - bottom}"/>')
        parts.append(
            f'<text x="{px(place):.1f}" y="{height - bottom + 17}" text-anchor="middle">'
            f"{format_number(tick)}</text>"
        )
    for index, (entry, line) in enumerate(zip(series, points, strict=True)):
        color = SERIES_COLORS[index % len(SERIES_COLORS)]
        dash = DASHES[index % len(DASHES)]
        path = "L".join(f"{px(to_x(x)):.1f} {py(y):.1f}" for x, y in line)
        if len(line) > 1:
            parts.append(
                f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="2" '
                f'stroke-linejoin="round" stroke-dasharray="{dash}"/>'
            )
        every = max(1, len(line) // 12)
        labels = entry.get("labels") or []
        for at, (x, y) in enumerate(line):
            if at % every and at != len(line) - 1:
                continue
            text = labels[at] if at < len(labels) else ""
            text = f"{entry['name']} {text} ({format_number(x)}, {format_number(y)})"
            parts.append(_marker(MARKERS[index % 4], px(to_x(x)), py(y), color, text))
    parts.append(
        f'<text class="axis" x="{(left + width - right) / 2:.0f}" y="{height - 6}" '
        f'text-anchor="middle">{escape(x_label)}</text>'
        f'<text class="axis" text-anchor="middle" '
        f'transform="translate(13 {(top + height - bottom) / 2:.0f}) rotate(-90)">'
        f"{escape(y_label)}</text>"
    )
    ends = "; ".join(
        f"{s['name']} from {format_number(line[0][1])} to {format_number(line[-1][1])}"
        for s, line in zip(series, points, strict=True)
        if line
    )
    return _frame("\n".join(parts), title, f"{title}. {x_label}. {ends}", width, height, series)


def bar_chart(
    labels: Sequence[str],
    series: Sequence[dict[str, Any]],
    *,
    title: str,
    unit: str = "",
) -> str:
    """Return a horizontal bar chart as an SVG element, one group a label, one bar a series.

    Args:
        labels: name of each group.
        series: ``{"name", "values": [...]}`` each, one value a label; None or NaN draws "–".
        title: what is shown.
        unit: written after each value.
    """
    values = [v for s in series for v in s["values"] if v is not None and math.isfinite(v)]
    if not values:
        return f'<p class="empty">{escape(title)}: no finite values to draw.</p>'
    low, high, width = min(0.0, *values), max(0.0, *values), _WIDTH
    high = high if high > low else low + 1
    longest = max(len(str(label)) for label in labels)
    left, right, bar = int(min(190, 16 + 6.6 * longest)), 62, 15 if len(series) < 3 else 11
    group = bar * len(series) + 9
    height = group * len(labels) + 12
    span = width - left - right
    parts = []
    zero = left + (0 - low) / (high - low) * span
    for row, label in enumerate(labels):
        y = 6 + row * group
        text = str(label) if len(str(label)) <= 27 else str(label)[:26] + "…"
        parts.append(
            f'<text x="{left - 8}" y="{y + bar * len(series) / 2 + 4:.1f}" text-anchor="end">'
            f"{escape(text)}</text>"
        )
        for index, entry in enumerate(series):
            value = entry["values"][row]
            known = value is not None and math.isfinite(value)
            color = SERIES_COLORS[index % len(SERIES_COLORS)]
            end = left + ((value if known else 0) - low) / (high - low) * span
            top = y + index * bar
            shown = format_number(value) + unit if known else "–"
            name = escape(f"{label}, {entry['name']}: {shown}")
            x, w = min(zero, end), max(1.0, abs(end - zero)) if known else 0
            parts.append(
                f'<rect x="{x:.1f}" y="{top}" width="{w:.1f}" height="{bar - 2}" '
                f'rx="2" fill="{color}">'
                f"<title>{name}</title></rect>"
            )
            if index and known:
                parts.append(
                    f'<rect x="{x:.1f}" y="{top}" width="{w:.1f}" height="{bar - 2}" rx="2" '
                    f'fill="url(#hatch{index % 2})" pointer-events="none"/>'
                )
            parts.append(
                f'<text class="value" x="{max(end, zero) + 5:.1f}" y="{top + bar - 4}">'
                f"{escape(shown)}</text>"
            )
    parts.append(f'<path class="zero" d="M{zero:.1f} 2V{height - 4}"/>')
    text = "; ".join(
        f"{s['name']}: mean {format_number(sum(finite) / len(finite))}"
        for s in series
        if (finite := [v for v in s["values"] if v is not None and math.isfinite(v)])
    )
    return _frame("\n".join(parts), title, f"{title}. {text}", width, height, series, bars=True)


def _frame(
    body: str,
    title: str,
    alternative: str,
    width: int,
    height: int,
    series: Sequence[dict[str, Any]],
    bars: bool = False,
) -> str:
    """Wrap a chart's marks in ``<figure>``, ``<svg>`` and a legend."""
    legend = []
    for index, entry in enumerate(series):
        color = SERIES_COLORS[index % len(SERIES_COLORS)]
        if bars:
            hatch = f'<rect width="26" height="12" fill="url(#hatch{index % 2})"/>' if index else ""
            mark = f'<rect width="26" height="12" rx="2" fill="{color}"/>{hatch}'
        else:
            mark = (
                f'<path d="M0 6H26" stroke="{color}" stroke-width="2" '
                f'stroke-dasharray="{DASHES[index % len(DASHES)]}"/>'
                + _marker(MARKERS[index % 4], 13, 6, color, entry["name"])
            )
        legend.append(
            f'<span class="key"><svg width="26" height="12" aria-hidden="true">{mark}</svg>'
            f"{escape(str(entry['name']))}</span>"
        )
    shown = f'<div class="legend">{"".join(legend)}</div>' if len(series) > 1 else ""
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>{shown}'
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(alternative)}" '
        f'style="max-width:{width}px">{body}</svg></figure>'
    )


# Patterns shared by all bar charts of a page; put once into the document.
CHART_DEFS = (
    '<svg width="0" height="0" aria-hidden="true" style="position:absolute"><defs>'
    '<pattern id="hatch1" width="6" height="6" patternUnits="userSpaceOnUse" '
    'patternTransform="rotate(45)"><path d="M0 0V6" stroke="#fff" stroke-width="2.5" '
    'stroke-opacity=".65"/></pattern>'
    '<pattern id="hatch0" width="6" height="6" patternUnits="userSpaceOnUse">'
    '<circle cx="3" cy="3" r="1.5" fill="#fff" fill-opacity=".75"/></pattern></defs></svg>'
)
