# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Fuzz one reader: guided by coverage where atheris is installed, else at random.

examples:
  PYTHONPATH=tests python tests/fuzz/run.py own_json --seconds 60
  PYTHONPATH=tests python tests/fuzz/run.py coco --input 4a00ff     # once, with a finding's bytes

A finding (a traceback, a line that is none, an endless read, memory above the limit) ends it with
the bytes that lead to it. The last line says how many cases were read and how much of the reader's
code they have reached.
"""

import argparse
import contextlib
import faulthandler
import importlib.util
import logging
import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

from fuzz.damage import random_choices
from fuzz.readers import READERS, attempt

MOST_MB = 1024  # beside what the process had before
MOST_SECONDS = 20  # of CPU for one file


class Coverage:
    """Lines of wsis_d2 that were reached, by the monitoring of Python 3.12 or a trace."""

    def __init__(self) -> None:
        self.lines: set[tuple[str, int]] = set()

    def start(self) -> None:
        if hasattr(sys, "monitoring"):
            events = sys.monitoring.events
            sys.monitoring.use_tool_id(sys.monitoring.COVERAGE_ID, "fuzz")
            sys.monitoring.register_callback(sys.monitoring.COVERAGE_ID, events.LINE, self._line)
            sys.monitoring.set_events(sys.monitoring.COVERAGE_ID, events.LINE)
        else:
            sys.settrace(self._call)

    def _line(self, code, line: int):
        if "wsis_d2" in code.co_filename:
            self.lines.add((code.co_filename, line))
        return sys.monitoring.DISABLE

    def _call(self, frame, event, argument):
        return self._trace if "/wsis_d2/" in frame.f_code.co_filename else None

    def _trace(self, frame, event, argument):
        if event == "line":
            self.lines.add((frame.f_code.co_filename, frame.f_lineno))
        return self._trace


def guarded(name: str, data: bytes) -> bool:
    """Read one damaged file; AssertionError where it takes too long or too much memory."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    try:
        taken = attempt(name, data)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    after = resource.getrusage(resource.RUSAGE_SELF)
    grown = (after.ru_maxrss - before.ru_maxrss) >> 10
    assert grown < MOST_MB, f"took {grown} MB"
    return taken


class TooLong(BaseException):
    """Nothing that reads files catches it."""


def too_long(number, frame) -> None:
    raise TooLong(f"{MOST_SECONDS} seconds of CPU for one file")


def at_random(name: str, seconds: float, seed: int) -> tuple[int, int, bytes | None]:
    """Read damaged files until the time is up; cases, those taken, and what led to a finding."""
    end, count, taken = time.process_time() + seconds, 0, 0
    while time.process_time() < end:
        data = random_choices(seed + count)
        count += 1
        try:
            taken += guarded(name, data)
        except (Exception, TooLong):
            traceback.print_exc()
            return count, taken, data
    return count, taken, None


def by_coverage(name: str, seconds: float) -> None:
    """As at_random, with atheris, which ends the process itself."""
    import atheris

    root = Path(importlib.util.find_spec("wsis_d2").origin).parent
    # numba cannot compile what atheris has changed; with a warm cache it need not, which hides it.
    compiled = [
        ".".join(("wsis_d2", *file.relative_to(root).with_suffix("").parts))
        for file in root.rglob("*.py")
        if re.search(r"import (numba|njit)", file.read_text())
    ]
    with atheris.instrument_imports(include=["wsis_d2"], exclude=compiled):
        attempt(name, b"")  # what it reads with is imported now
    folder = tempfile.mkdtemp(prefix="wsis_d2_fuzz_found_")

    def one(data: bytes) -> None:
        guarded(name, data)

    atheris.Setup(
        [sys.argv[0], f"-max_total_time={max(1, int(seconds))}", "-max_len=64",
         "-rss_limit_mb=8192", f"-artifact_prefix={folder}/", "-print_final_stats=1"],
        one,
    )  # fmt: skip
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("reader", choices=sorted(READERS))
    parser.add_argument("--seconds", type=float, default=60.0, help="of CPU (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="of the random choices")
    parser.add_argument("--input", help="hexadecimal bytes: read one file so damaged")
    parser.add_argument("--atheris", action="store_true", help="guided by coverage")
    args = parser.parse_args()
    faulthandler.enable()
    if os.access("/dev/shm", os.W_OK):
        # A file written over again is written to the disk at once: three times as slow.
        tempfile.tempdir = "/dev/shm"
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGPROF, too_long)
    if args.input is not None:
        print("taken" if guarded(args.reader, bytes.fromhex(args.input)) else "refused")
        return 0
    if args.atheris:
        by_coverage(args.reader, args.seconds)
    with contextlib.suppress(Exception):
        attempt(args.reader, b"")  # what is imported and built once
    coverage = Coverage()
    coverage.start()
    count, taken, found = at_random(args.reader, args.seconds, args.seed)
    print(f"{args.reader}: {count} cases, {taken} taken, {len(coverage.lines)} lines reached")
    if found is not None:
        print(f"finding: --input {found.hex()}")
    return 1 if found is not None else 0


if __name__ == "__main__":
    sys.exit(main())
