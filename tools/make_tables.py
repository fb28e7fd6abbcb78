#!/usr/bin/env python
# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Write the paper's tables 1 to 6 and figure 6 with our results next to the paper's."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

# Files alone are read: models and data sets, and with them torch, need not be loaded.
if __name__ == "__main__":
    os.environ.setdefault("WSIS_D2_NO_REGISTER", "1")

from wsis_d2.evaluation.paper_tables import FIGURE_6, paper_tables
from wsis_d2.evaluation.run_tables import (
    collect_runs,
    csv_text,
    draw_figure_6,
    figure_6,
    markdown_table,
    runs_table,
    table_csv,
    table_markdown,
)
from wsis_d2.utils.cli import main_with_errors
from wsis_d2.utils.files import atomic_write

EXAMPLES = """examples:
  # all runs of the recipes on VOC and Cityscapes (each folder holds a results.json)
  tools/make_tables.py output/voc output/cityscapes --output output/tables
  # three seeds of one recipe: folders ending in _seedN count as one row, with mean and spread
  tools/make_tables.py output/voc/panoptic_R_101_weak_seed1 output/voc/panoptic_R_101_weak_seed2
  # a run whose folder has another name
  tools/make_tables.py panoptic_R_101_weak=runs/mine
  # the paper's numbers alone
  tools/make_tables.py --output output/tables

A row is filled by the run whose folder has the recipe's name, as OUTPUT_DIR in configs/ sets it.
What was not run stays blank. Other runs are in a table of their own.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="*", metavar="RUN_DIR", help="folder or results.json, or RECIPE=PATH"
    )
    parser.add_argument("--output", type=Path, default=Path("output/tables"), help="folder")
    parser.add_argument(
        "--backbone", default="R_101", choices=("R_101", "R_50", "R_18"), help="whose recipes"
    )
    args = parser.parse_args(argv)
    runs = collect_runs(args.runs)
    texts = {}
    page = ["# The paper's tables, and what was measured here\n"]
    for table in paper_tables(args.backbone):
        texts[f"{table.name}.csv"] = table_csv(table, runs)
        page.append(table_markdown(table, runs))
    points = figure_6(runs, args.backbone)
    rows = [
        [p.panel, p.line, p.round, f"{p.value.mean:.4f}", p.value.spread or "", p.value.count]
        for p in points
    ]
    texts["figure_6.csv"] = csv_text(["panel", "line", "round", "mean", "std", "runs"], rows)
    page.append("## Figure 6: rounds of labels on Cityscapes val\n\n![Figure 6](figure_6.png)\n")
    page.append(_figure_table(points))
    if runs:
        header, lines = runs_table(runs)
        texts["runs.csv"] = csv_text(header, lines)
        page.append("## All runs\n\n" + markdown_table(header, lines))
    page.append(
        "Things are ranked by the score of their detection (paper 4.3; table 5's things are those"
        " of table 6's first row), stuff by mean confidence. Tables 2 and 5 are repeated"
        " with things ranked by mean confidence, as in the authors' code for VOC. Numbers are"
        " percent; blank is not run or not reported; ± is the sample standard"
        " deviation over the number of runs in brackets.\n"
    )
    texts["tables.md"] = "\n".join(page)
    for name, text in texts.items():
        with atomic_write(args.output / name) as file:
            file.write(text.encode())
    draw_figure_6(points, args.output / "figure_6.png")
    print(f"{len(runs)} runs; wrote {args.output / 'tables.md'}, {len(texts) - 1} CSV files"
          f" and {args.output / 'figure_6.png'}")  # fmt: skip


def _figure_table(points) -> str:
    numbers = range(1 + max([5, *(p.round for p in points)]))
    header = ["Line", *(f"round {number}" for number in numbers), "paper's last"]
    rows = []
    for panel, lines in FIGURE_6:
        for line, _, _, paper in lines:
            mine = {p.round: str(p.value) for p in points if (p.panel, p.line) == (panel, line)}
            cells = [mine.get(number, "") for number in numbers]
            rows.append([f"{panel}: {line}", *cells, f"{paper:.1f}"])
    return markdown_table(header, rows)


if __name__ == "__main__":
    main_with_errors(main)
