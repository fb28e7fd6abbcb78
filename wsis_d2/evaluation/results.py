# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""``results.json``: the numbers of runs in one layout, written, read, merged and compared."""

import logging
import math
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wsis_d2.structures.annotation import SUPERVISIONS
from wsis_d2.utils.errors import InputError, check_choice
from wsis_d2.utils.files import check_writable
from wsis_d2.utils.json_io import read_json, write_json

logger = logging.getLogger(__name__)
SCHEMA = 1
_TWIN = re.compile(r"_(weak|full)$")  # twins have the same images
META_FIELDS = (
    "supervision", "dataset", "variant", "seed", "config", "commit", "device", "seconds",
)  # fmt: skip
# The numbers a weak and a full run are compared by (FS%).
RATIO_METRICS = (
    ("panoptic_seg", ("PQ", "PQ_th", "PQ_st", "SQ", "DQ")),
    ("apr", ("APr_vol", "APr_vol_th", "APr_vol_st")),
    ("sem_seg", ("mIoU", "mIoU_th", "mIoU_st")),
)


def make_meta(
    *,
    supervision: str,
    dataset: str,
    variant: str = "main",
    seed: int | None = None,
    config: str | None = None,
    commit: str | None = None,
    device: str = "cpu",
    seconds: float | None = None,
) -> dict[str, Any]:
    """Return a run's ``meta``.

    Args:
        supervision: ``weak``, ``full`` or ``mixed``.
        dataset: name of the evaluated dataset.
        variant: ``main`` or the name of the ablation.
        seed, config, commit, device, seconds: what the numbers came from; None where unknown.

    Raises:
        InputError: ``supervision`` is none of the three.
    """
    check_choice("meta.supervision", supervision, SUPERVISIONS)
    values = (supervision, dataset, variant, seed, config, commit, device, seconds)
    return dict(zip(META_FIELDS, values, strict=True))


def git_commit() -> str | None:
    """Return the commit of the checkout that this package is part of, None where it is of none."""
    here = Path(__file__)
    # Installed below a checkout of something else, in its .venv, it is no part of that one.
    for command in (("ls-files", "--error-unmatch", here.name), ("rev-parse", "HEAD")):
        try:
            done = subprocess.run(
                ["git", "-C", str(here.parent), *command],
                capture_output=True, text=True, timeout=10, check=True,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError):
            return None
    return done.stdout.strip()


def write_results_json(
    path: str | Path,
    name: str,
    results: Mapping[str, Mapping[str, float]],
    meta: Mapping[str, Any],
) -> dict[str, Any]:
    """Write one run into a results file, beside the runs that are there.

    Args:
        path: the file; made, or updated atomically.
        name: the run, e.g. ``weak``; a run of that name is replaced.
        results: ``{task: {metric: percent}}`` as evaluators return them; NaN becomes null.
        meta: see :func:`make_meta`.

    Returns:
        The file's whole content.

    Raises:
        InputError: the file that is there is no results file, or ``meta`` lacks a field.
    """
    lacking = [field for field in META_FIELDS if field not in meta]
    if lacking:
        raise InputError(f"meta of run {name!r} lacks {', '.join(lacking)}")
    path = Path(path)
    runs = read_results_json(path)["runs"] if path.exists() else {}
    run: dict[str, Any] = {task: dict(values) for task, values in results.items()}
    for task in ("panoptic_seg", "apr", "sem_seg"):
        run.setdefault(task, {})
    run["meta"] = dict(meta)
    runs[name] = run
    return _write(path, runs)


def check_results_file(path: str | Path) -> None:
    """Refuse a file that :func:`write_results_json` could not write, before anything is measured.

    Raises:
        InputError: the file that is there is no results file.
        OSError: it cannot be written.
    """
    check_writable(path)
    if Path(path).exists():
        read_results_json(path)


def merge_results_json(paths: Sequence[str | Path], output: str | Path) -> dict[str, Any]:
    """Join several results files into one.

    A later file replaces another run of the same name, and that is told.

    Raises:
        InputError: a file is missing or is no results file.
    """
    runs: dict[str, Any] = {}
    for path in paths:
        found = read_results_json(path)["runs"]
        for name in found:
            if name in runs and runs[name] != found[name]:
                logger.warning("%s: run %s replaces another of that name", path, name)
        runs.update(found)
    return _write(Path(output), runs)


def _write(path: Path, runs: dict[str, Any]) -> dict[str, Any]:
    content = {"schema": SCHEMA, "runs": runs, "ratios": full_supervision_ratios(runs)}
    write_json(path, content, indent=1)
    return read_results_json(path)


def read_results_json(path: str | Path) -> dict[str, Any]:
    """Return a results file's content.

    Raises:
        InputError: missing, no JSON, another schema, or a run without the three tasks and meta.
    """
    data = read_json(Path(path))
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise InputError(f"{path}: schema {found!r}, expected {SCHEMA} (a results.json)")
    runs = data.get("runs")
    if not isinstance(runs, dict):
        raise InputError(f"{path}: no 'runs' object")
    for name, run in runs.items():
        for part in ("panoptic_seg", "apr", "sem_seg", "meta"):
            if not isinstance(run, dict) or not isinstance(run.get(part), dict):
                raise InputError(f"{path}: run {name!r} has no {part!r} object")
        for task in (part for part in run if part != "meta"):
            for metric, value in run[task].items() if isinstance(run[task], dict) else ():
                if value is not None and (
                    isinstance(value, bool) or not isinstance(value, int | float)
                ):
                    raise InputError(
                        f"{path}: run {name!r}: {task} {metric} is {value!r:.60}, expected a number"
                    )
    return data


def full_supervision_ratios(runs: Mapping[str, Any]) -> dict[str, float]:
    """Return FS%, of each compared metric that the runs "weak" and "full" have (full not 0)."""
    if "weak" not in runs or "full" not in runs:
        return {}
    warn_of_other_sets({name: runs[name] for name in ("weak", "full")}, "FS% compares")
    ratios = {}
    for task, metrics in RATIO_METRICS:
        for metric in metrics:
            ratio = fs_percent(runs["weak"][task].get(metric), runs["full"][task].get(metric))
            if ratio is not None:
                ratios[metric] = ratio
    return ratios


def warn_of_other_sets(runs: Mapping[str, Any], what: str) -> None:
    """Warn where runs that are compared were not measured on the same images.

    Args:
        runs: name to a run of a results file.
        what: compares them, for the message.
    """
    first: dict[str, str] = {}  # set to a run on it
    for name, run in runs.items():
        first.setdefault(_TWIN.sub("", str(run["meta"].get("dataset"))), name)
    if len(first) > 1:
        told = " with ".join(f"run {name} on {dataset}" for dataset, name in first.items())
        logger.warning("%s %s", what, told)


def fs_percent(weak: float | None, full: float | None) -> float | None:
    """Return 100 weak / full, None where one is missing, not finite, or full is 0."""
    for value in (weak, full):
        if value is None or not math.isfinite(value):
            return None
    return 100.0 * weak / full if full else None


def copy_paste_rows(results: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return two comma-separated lines a task, names and values, for a spreadsheet.

    Metrics of single classes (with ``-`` in the name) are left out; NaN is an empty field.
    """
    rows = []
    for task, values in results.items():
        shown = {k: v for k, v in values.items() if "-" not in k}
        rows.append(f"copypaste: {task}: " + ",".join(shown))
        cells = ("" if v is None or v != v else f"{v:.4f}" for v in shown.values())
        rows.append(f"copypaste: {task}: " + ",".join(cells))
    return rows
