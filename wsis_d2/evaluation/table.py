# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Results as plain text, one small table a task."""

from collections.abc import Mapping

from tabulate import tabulate

_GROUPS = (("all", ""), ("things", "_th"), ("stuff", "_st"))


def format_results(results: Mapping[str, Mapping[str, float]]) -> str:
    """Return tables of PQ, AP^r, IoU (all, things, stuff) and of every class.

    Args:
        results: ``{task: {metric: percent}}``.
    """
    summary = []
    for task, metrics in (
        ("panoptic_seg", ("PQ", "SQ", "DQ")),
        ("apr", [k for k in results.get("apr", {}) if k.startswith("APr") and _plain(k)]),
        ("sem_seg", ("mIoU", "mIoU_union")),
        ("segm", ("AP", "AP50", "AP75")),
    ):
        values = results.get(task, {})
        for metric in metrics:
            if metric in values:
                row = [_number(values.get(metric + suffix)) for _, suffix in _GROUPS]
                summary.append([metric, *row])
    parts = [tabulate(summary, headers=["percent", *(name for name, _ in _GROUPS)])]

    columns = (
        ("PQ", "panoptic_seg"), ("SQ", "panoptic_seg"), ("DQ", "panoptic_seg"),
        ("APr_vol", "apr"), ("IoU", "sem_seg"), ("IoU_union", "sem_seg"), ("AP", "segm"),
    )  # fmt: skip
    names = [k.removeprefix("PQ-") for k in results.get("panoptic_seg", {}) if k.startswith("PQ-")]
    rows = [
        [name, *(_number(results.get(task, {}).get(f"{m}-{name}")) for m, task in columns)]
        for name in names
    ]
    if rows:
        parts.append(tabulate(rows, headers=["class", *(metric for metric, _ in columns)]))
    return "\n\n".join(parts)


def _plain(key: str) -> bool:
    return "-" not in key and not key.endswith(("_th", "_st"))


def _number(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.2f}"
