# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""What an import has dropped or changed, and why."""

import re

from wsis_d2.utils.errors import InputError, printable


class ImportLog:
    """What was dropped or changed, and why.

    Args:
        keep_going: turn errors of single records and files into drops.
    """

    def __init__(self, keep_going: bool = False) -> None:
        self.keep_going = keep_going
        self.dropped: list[dict[str, str]] = []
        self.changed: list[dict[str, str]] = []
        self.notes: list[str] = []

    def drop(self, what: str, where: str, why: str) -> None:
        """Note that ``what`` ("box", "image", "tag", "file") of ``where`` was left out."""
        self.dropped.append({"what": what, "where": where, "why": why})

    def change(self, what: str, where: str, why: str) -> None:
        """Note that ``what`` of ``where`` was taken in another form."""
        self.changed.append({"what": what, "where": where, "why": why})

    def bad(self, what: str, where: str, why: str) -> None:
        """Raise InputError, or drop where going on was asked for."""
        if not self.keep_going:
            raise InputError(f"{where}: {why}; correct it, or drop such records with --keep-going")
        self.drop(what, where, why)

    def lines(self) -> list[str]:
        """The report as text: notes, then each reason once, with its number and some examples."""
        changed = self._grouped("changed", self.changed)
        lines = [*self.notes, *self._grouped("dropped", self.dropped), *changed]
        return [printable(line) for line in lines]

    def reasons(self) -> str:
        """Why records were dropped, in one line: first what happened to files and images."""
        groups = self._grouped("dropped", self.dropped, examples=2)
        groups.sort(key=lambda line: not re.match(r"dropped \d+ x (file|image)", line))
        return "; ".join(groups[:4])

    @staticmethod
    def _grouped(label: str, entries: list[dict[str, str]], examples: int = 3) -> list[str]:
        groups: dict[tuple[str, str], list[str]] = {}
        for entry in entries:
            groups.setdefault((entry["what"], entry["why"]), []).append(entry["where"])
        result = []
        for (what, why), places in sorted(groups.items(), key=lambda g: -len(g[1])):
            shown = ", ".join(places[:examples]) + (", ..." if len(places) > examples else "")
            result.append(f"{label} {len(places)} x {what}: {why} ({shown})")
        return result
