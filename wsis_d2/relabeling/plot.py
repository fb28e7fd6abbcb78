# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""IoU and PQ by round, drawn (the paper's figure 6) and as a table."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from wsis_d2.utils.files import atomic_write

#: Panels, as in figure 6: title, group of the model's results, key of results and label quality.
PANELS = (("IoU", "sem_seg", "mIoU"), ("PQ", "panoptic_seg", "PQ"))
PARTS = (("", "all"), ("_th", "things"), ("_st", "stuff"))


def format_rounds(history: Sequence[dict]) -> str:
    """Return a table with one line a round: IoU and PQ of the model, then of its training labels.

    Args:
        history: the ``rounds`` of ``rounds.json``.
    """
    datasets = sorted({name for entry in history for name in entry.get("labels", {})})
    header = ["round"]
    header += [f"{title} {part}" for title, _, _ in PANELS for _, part in PARTS]
    header += [f"labels {title}" for _ in datasets for title, _, _ in PANELS]
    lines = []
    for entry in history:
        line = [entry["round"]]
        for _, task, key in PANELS:
            line += [entry.get(task, {}).get(key + suffix) for suffix, _ in PARTS]
        for name in datasets:
            line += [entry.get("labels", {}).get(name, {}).get(key) for _, _, key in PANELS]
        lines.append(line)
    return tabulate(lines, header, tablefmt="github", floatfmt=".1f", missingval="-")


def plot_rounds(history: Sequence[dict], path: str | os.PathLike) -> None:
    """Draw IoU and PQ by round, of the models (all, things, stuff) and of the labels.

    Args:
        history: the ``rounds`` of ``rounds.json``; a round without a figure leaves a gap.
        path: PNG to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 4), layout="constrained")
    datasets = sorted({name for entry in history for name in entry.get("labels", {})})
    for axes, (title, task, key) in zip(panels, PANELS, strict=True):
        for (suffix, part), style in zip(PARTS, ("C0o-", "C1^-", "C2s-"), strict=True):
            points = [(e["round"], e.get(task, {}).get(key + suffix)) for e in history]
            _draw(axes, points, style, f"model, {part}")
        for number, name in enumerate(datasets, len(PARTS)):
            points = [(e["round"], e.get("labels", {}).get(name, {}).get(key)) for e in history]
            _draw(axes, points, f"C{number}o--", f"labels of {name}")
        axes.set_title(title)
        axes.set_xlabel("round")
        axes.set_ylabel("percent")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    lines, labels = panels[0].get_legend_handles_labels()
    if lines:  # below the panels, where it hides nothing; both have the same lines
        figure.legend(lines, labels, loc="outside lower center", ncols=4, fontsize="small")
    with atomic_write(Path(path)) as file:
        figure.savefig(file, format="png", dpi=150)
    pyplot.close(figure)


def _draw(axes: Any, points: Sequence[tuple[int, float | None]], style: str, label: str) -> None:
    known = [point for point in points if point[1] is not None]
    if known:
        axes.plot(*zip(*known, strict=True), style, label=label, markersize=4)
