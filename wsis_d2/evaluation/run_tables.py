# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Fill the paper's tables with our runs: find their results, average over seeds, write them."""

import csv
import io
import logging
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path, PurePath
from typing import Any

from wsis_d2.evaluation.paper_tables import CITYSCAPES, FIGURE_6, VOC, Cell, Table
from wsis_d2.evaluation.results import fs_percent, read_results_json
from wsis_d2.utils.errors import InputError, printable
from wsis_d2.utils.files import atomic_write, list_files

logger = logging.getLogger(__name__)

_SEED = re.compile(r"[-_.]?seed[-_]?\d+$")
_ROUND = re.compile(r"^semantic_(.+)_weak_round_(\d+)$")
_ROUND_FOLDER = re.compile(r"^round_(\d+)$")


@dataclass(frozen=True)
class Run:
    """One run of a results file.

    Attributes:
        name: its name there.
        recipe: see :func:`recipe_of`.
        family: ``voc``, ``cityscapes`` or "" by the evaluated set.
        numbers: ``{task: {metric: percent}}``.
        meta: its ``meta``.
    """

    name: str
    recipe: str
    family: str
    numbers: Mapping[str, Mapping[str, float | None]]
    meta: Mapping[str, Any]

    def get(self, task: str, metric: str) -> float | None:
        """Return a number, None where there is none."""
        value = self.numbers.get(task, {}).get(metric)
        return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class Value:
    """Mean and sample standard deviation over ``count`` runs (spread None for one)."""

    mean: float
    spread: float | None
    count: int

    def __str__(self) -> str:
        return self.among(1)

    def among(self, runs: int) -> str:
        """Return it as text, with the count unless it is the one of one run."""
        text = f"{self.mean:.1f}" + ("" if self.spread is None else f" ± {self.spread:.1f}")
        return text if self.count == runs == 1 else f"{text} ({self.count})"


def collect_runs(folders: Iterable[str]) -> list[Run]:
    """Return the runs of folders, or of results files themselves.

    A folder's own ``results.json`` counts, or, where it has none, those of folders below it.
    ``RECIPE=PATH`` says which recipe the runs of a path are; else their folder's name does. A copy
    of a run counts once; runs that a table would average as seeds and that have one seed are told.

    Raises:
        InputError: no results there, or a file that is none.
    """
    runs: list[Run] = []
    seen: set[Path] = set()
    found: dict[tuple, list[tuple[Mapping, Path]]] = {}
    for text in folders:
        named, _, rest = text.partition("=")
        recipe, path = (named, Path(rest)) if rest and not Path(text).exists() else (None, text)
        path = Path(path)
        files = [path] if path.is_file() else [path / "results.json"]
        if not files[0].is_file():
            files = [f for p in ("*", "*/*") for f in list_files(path, f"{p}/results.json")]
        if not files:
            raise InputError(
                f"{path}: no results.json in it or below it; expected the OUTPUT_DIR of"
                " tools/train_net.py, or a file that tools/evaluate_panoptic.py --output wrote"
            )
        for file in files:
            if file.resolve() in seen:
                continue
            seen.add(file.resolve())
            for name, content in read_results_json(file)["runs"].items():
                run = _run(name, content, recipe, file)
                twins = found.setdefault((*group_of(run), run.meta.get("seed")), [])
                other = next((path for twin, path in twins if twin == content), None)
                if other is not None:
                    told = "%s: run %s is a copy of that in %s; left out"
                    logger.warning(told, file, name, other)
                    continue
                if twins and str(run.meta.get("seed")).isdecimal():  # others are drawn, or unknown
                    logger.warning(
                        "%s: run %s on %s has the seed %s of that in %s; both count as runs of one "
                        "recipe; make a table of each where they are not",
                        file, name, run.meta.get("dataset"), run.meta["seed"], twins[0][1],
                    )  # fmt: skip
                twins.append((content, file))
                runs.append(run)
    return runs


def _run(name: str, run: Mapping[str, Any], recipe: str | None, file: Path) -> Run:
    meta = run["meta"]
    if recipe is None:
        config = PurePath(str(meta.get("config") or ""))
        if config.name == "config.yaml":
            recipe = recipe_of(config.parent)
        elif config.suffix in (".yaml", ".yml"):
            recipe = recipe_of(config.with_suffix(""))
        else:
            recipe = recipe_of(file.resolve().parent)
    dataset = str(meta.get("dataset", ""))
    family = next((f for f in (VOC, CITYSCAPES) if dataset.startswith(f)), "")
    numbers = {task: values for task, values in run.items() if task != "meta"}
    return Run(name, recipe, family, numbers, meta)


def recipe_of(folder: PurePath) -> str:
    """Return which recipe's run a folder is: its name without a seed at the end.

    ``output/voc/panoptic_R_101_weak_seed2`` is of ``panoptic_R_101_weak``; a round's folder is of
    the paper's round, ``semantic_R_101_weak/round_0`` of ``semantic_R_101_weak_round_0``.
    """
    number = _ROUND_FOLDER.match(folder.name)
    if number:
        return f"{_SEED.sub('', folder.parent.name)}_round_{int(number[1])}"
    return _SEED.sub("", folder.name)


def average(runs: Iterable[Run], task: str, metric: str) -> Value | None:
    """Return mean and spread of a metric over the runs that have it, None for none."""
    values = [v for v in (run.get(task, metric) for run in runs) if v is not None]
    if not values:
        return None
    spread = statistics.stdev(values) if len(values) > 1 else None
    return Value(statistics.fmean(values), spread, len(values))


def _mean(value: Value | None) -> float | None:
    return None if value is None else value.mean


def our_value(cell: Cell, family: str, runs: Sequence[Run]) -> Value | None:
    """Return what our runs measured for a cell, None where nothing was run."""
    if cell.percent_of is not None:
        weak, full = (our_value(part, family, runs) for part in cell.percent_of)
        ratio = fs_percent(_mean(weak), _mean(full))
        if ratio is None or weak is None or full is None:
            return None
        return Value(ratio, None, min(weak.count, full.count))
    for recipe in cell.recipes:
        mine = [
            run for run in runs
            if run.family == family and run.recipe == recipe and _belongs(run)
        ]  # fmt: skip
        value = average(mine, cell.task, cell.metric)
        if value is not None:
            return value
    return None


def _belongs(run: Run) -> bool:
    """Tell whether a run is its recipe's own: on a val set, not an ablation of it."""
    variant = str(run.meta.get("variant") or "main")
    own = variant == "main" or run.recipe.endswith(variant)
    return own and "_val" in str(run.meta.get("dataset"))


def table_markdown(table: Table, runs: Sequence[Run]) -> str:
    """Return a table in Markdown, the paper's number and ours side by side."""
    header = ["Method"]
    for column in table.columns:
        header += [f"{column}, paper", "here"]
    rows = []
    for label, cells in table.rows:
        row = [label]
        for cell in cells:
            value = our_value(cell, table.family, runs)
            row += ["" if cell.paper is None else f"{cell.paper:.1f}", str(value or "")]
        rows.append(row)
    name = table.name.partition("_by_")[0].replace("_", " ", 1).replace("_", ".")
    return f"## {name.capitalize()}: {table.title}\n\n" + markdown_table(header, rows)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, numbers to the right."""
    lines = ["| " + " | ".join(header) + " |"]
    lines.append("|---|" + "--:|" * (len(header) - 1))
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return escape(printable(text), quote=False).replace("|", "\\|")


def table_csv(table: Table, runs: Sequence[Run]) -> str:
    """Return a table as CSV: method, and for each column paper, mean, spread and runs."""
    header = ["method"]
    for column in table.columns:
        header += [f"{column} paper", f"{column} mean", f"{column} std", f"{column} runs"]
    rows = []
    for label, cells in table.rows:
        row: list[Any] = [label]
        for cell in cells:
            value = our_value(cell, table.family, runs)
            row.append("" if cell.paper is None else cell.paper)
            row += _value_fields(value)
        rows.append(row)
    return csv_text(header, rows)


def _value_fields(value: Value | None) -> list[Any]:
    if value is None:
        return ["", "", ""]
    spread = "" if value.spread is None else f"{value.spread:.4f}"
    return [f"{value.mean:.4f}", spread, value.count]


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return CSV text; names of others that a spreadsheet would compute stay texts."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([_as_text(cell) for cell in row] for row in (header, *rows))
    return text.getvalue()


def _as_text(cell: Any) -> Any:
    if not isinstance(cell, str) or not cell.startswith(("=", "+", "-", "@", "\t", "\r")):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


RUN_METRICS = (
    ("IoU", "sem_seg", "mIoU"), ("AP^r vol", "apr", "APr_vol"),
    ("PQ", "panoptic_seg", "PQ"), ("PQ th", "panoptic_seg", "PQ_th"),
    ("PQ st", "panoptic_seg", "PQ_st"),
)  # fmt: skip


def group_of(run: Run) -> tuple[str, str, str, str]:
    """Return what runs share that differ in their seeds: (dataset, name, variant, recipe).

    The recipe is "" off the paper's sets.
    """
    recipe = run.recipe if run.family else ""
    return str(run.meta.get("dataset")), run.name, str(run.meta.get("variant")), recipe


def group_runs(runs: Sequence[Run]) -> dict[tuple[str, str, str, str], list[Run]]:
    """Return runs by :func:`group_of`."""
    groups: dict[tuple[str, str, str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault(group_of(run), []).append(run)
    return groups


def runs_table(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of all runs: mean and spread over seeds, and FS% of weak by full."""
    header = ["dataset", "run", "variant", "recipe", "seeds", *(title for title, *_ in RUN_METRICS)]
    groups = group_runs(runs)
    rows = []
    for key, members in groups.items():
        dataset, name, variant, _ = key
        seeds = sorted({str(run.meta.get("seed")) for run in members})
        values = [average(members, task, metric) for _, task, metric in RUN_METRICS]
        texts = ["" if v is None else v.among(len(members)) for v in values]
        rows.append([*key, " ".join(seeds), *texts])
    for (dataset, name, variant, recipe), members in groups.items():
        full = [
            run for key, other in groups.items() for run in other
            if key[0] == dataset and key[1] == "full" and key[2] == variant
        ]  # fmt: skip
        if name != "weak" or recipe or not full:
            continue
        ratios = []
        for _, task, metric in RUN_METRICS:
            first, second = average(members, task, metric), average(full, task, metric)
            ratio = fs_percent(_mean(first), _mean(second))
            ratios.append("" if ratio is None else f"{ratio:.1f}")
        rows.append([dataset, "FS%", variant, "", "", *ratios])
    return header, rows


@dataclass(frozen=True)
class RoundPoint:
    """One value of figure 6: panel and line, the round whose labels were trained on, ours."""

    panel: str
    line: str
    round: int
    value: Value


def figure_6(runs: Sequence[Run], backbone: str = "R_101") -> list[RoundPoint]:
    """Return figure 6's points.

    Args:
        runs: those of the recipes ``semantic_<backbone>_weak_round_K`` on Cityscapes val count, of
            single rounds or of tools/train_iterative.py; ablations do not.
        backbone: whose recipes count.
    """
    by_round: dict[int, list[Run]] = {}
    for run in runs:
        found = _ROUND.match(run.recipe)
        if found and found[1] == backbone and run.family == CITYSCAPES and _belongs(run):
            by_round.setdefault(int(found[2]), []).append(run)
    points = []
    for panel, lines in FIGURE_6:
        for line, task, metric, _ in lines:
            for number in sorted(by_round):
                value = average(by_round[number], task, metric)
                if value is not None:
                    points.append(RoundPoint(panel, line, number, value))
    return points


def draw_figure_6(points: Sequence[RoundPoint], path: Path) -> None:
    """Draw figure 6 as PNG: ours by round, the paper's last value as a dashed line."""
    from matplotlib.figure import Figure

    last = max([5, *(p.round for p in points)])
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, (panel, lines) in zip(figure.subplots(1, 2), FIGURE_6, strict=True):
        for color, (line, _, _, paper) in enumerate(lines):
            mine = [p for p in points if p.panel == panel and p.line == line]
            axes.errorbar(
                [p.round for p in mine], [p.value.mean for p in mine],
                [p.value.spread or 0.0 for p in mine],
                marker="o", capsize=3, color=f"C{color}", label=f"{line}, here",
            )  # fmt: skip
            axes.axhline(paper, color=f"C{color}", ls="--", lw=1, label=f"{line}, paper's last")
        axes.set(
            title=panel, xlabel="round of the labels", ylabel="percent", xlim=(-0.3, last + 0.3)
        )
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150)
