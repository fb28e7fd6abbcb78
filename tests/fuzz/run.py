# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Fuzz one reader: guided by coverage where atheris is installed, else at random.

examples:
  PYTHONPATH=tests python tests/fuzz/run.py own_json --seconds 60
  PYTHONPATH=tests python tests/fuzz/run.py own_json --seconds 3600 --atheris --corpus /tmp/own_json
  PYTHONPATH=tests python tests/fuzz/run.py own_json --lines --corpus /tmp/own_json
  PYTHONPATH=tests python tests/fuzz/run.py coco --input 4a00ff     # once, with a finding's bytes

A finding (a traceback, a line that is none, an endless read, memory above the limit) ends it with
the bytes that lead to it. The last line says how many cases were read and how much of the reader's
code they have reached.
"""

import argparse
import collections
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
from types import CodeType, FrameType

from fuzz.damage import random_choices

MOST_MB = 1024  # beside what the process had before
MOST_SECONDS = 20  # of CPU for one file
FOLLOWED = ("wsis_d2", "PIL", "yaml", "fvcore", "yacs")  # whose code guides atheris


class Coverage:
    """Lines of wsis_d2 that were reached, by the monitoring of Python 3.12 or a trace."""

    def __init__(self) -> None:
        self.reached: dict[CodeType, set[int]] = collections.defaultdict(set)

    def start(self) -> None:
        if hasattr(sys, "monitoring"):
            events = sys.monitoring.events
            sys.monitoring.use_tool_id(sys.monitoring.COVERAGE_ID, "fuzz")
            sys.monitoring.register_callback(sys.monitoring.COVERAGE_ID, events.LINE, self._line)
            sys.monitoring.set_events(sys.monitoring.COVERAGE_ID, events.LINE)
        else:
            sys.settrace(self._call)

    def _line(self, code: CodeType, line: int) -> object:
        if "/wsis_d2/" in code.co_filename:
            self.reached[code].add(line)
        return sys.monitoring.DISABLE

    def _call(self, frame: FrameType, event: str, argument: object) -> object:
        return self._trace if "/wsis_d2/" in frame.f_code.co_filename else None

    def _trace(self, frame: FrameType, event: str, argument: object) -> object:
        if event == "line":
            self.reached[frame.f_code].add(frame.f_lineno)
        return self._trace

    def missed(self) -> dict[CodeType, list[int]]:
        """The lines that were not reached, of each function that was entered."""
        lines = {
            code: {n for *_, n in code.co_lines() if n} - {code.co_firstlineno}
            for code in self.reached
            if code.co_name != "<module>"
        }
        return {code: sorted(lines[code] - self.reached[code]) for code in lines}

    def __str__(self) -> str:
        missed = self.missed()
        left = sum(map(len, missed.values()))
        lines = sum(len(self.reached[code] - {code.co_firstlineno}) for code in missed)
        return f"{lines} of {lines + left} lines of {len(missed)} functions reached"


def guarded(name: str, data: bytes) -> bool:
    """Read one damaged file; AssertionError where it takes too long or too much memory."""
    from fuzz.readers import attempt

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


def by_coverage(name: str, seconds: float, seed: int, corpus: Path | None) -> None:
    """As at_random, with atheris, which ends the process itself."""
    import atheris

    root = Path(importlib.util.find_spec("wsis_d2").origin).parent
    # numba cannot compile what atheris has changed; with a warm cache it need not, which hides it.
    compiled = [
        ".".join(("wsis_d2", *file.relative_to(root).with_suffix("").parts))
        for file in root.rglob("*.py")
        if re.search(r"import (numba|njit)", file.read_text())
    ]
    # Only what is imported from here on tells atheris where it was: nothing may be imported before.
    early = sorted(m for m in sys.modules if m.partition(".")[0] in FOLLOWED)
    assert not early, f"imported before they could be followed: {early}"
    with atheris.instrument_imports(include=list(FOLLOWED), exclude=compiled):
        from fuzz.files import base
        from fuzz.readers import READERS, attempt

        if name not in READERS:
            sys.exit(f"{name}: no reader, expected one of {', '.join(READERS)}")
        attempt(name, b"")  # what it reads with is imported now
    found = tempfile.mkdtemp(prefix="wsis_d2_fuzz_found_")
    corpus = corpus or base() / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for k in range(200):  # from nothing, long inputs would be found late
        (corpus / f"random_{k}").write_bytes(random_choices(k))

    def one(data: bytes) -> None:
        guarded(name, data)

    atheris.Setup(
        [sys.argv[0], str(corpus), f"-max_total_time={max(1, int(seconds))}", f"-seed={seed + 1}",
         "-max_len=64",
         "-len_control=0", "-timeout=60", "-rss_limit_mb=8192", f"-artifact_prefix={found}/",
         "-print_final_stats=1"],
        one,
    )  # fmt: skip
    atheris.Fuzz()


def read_corpus(name: str, corpus: Path) -> None:
    """Read what a fuzzer kept, and print how much of the code it reaches and what it does not."""
    coverage = Coverage()
    coverage.start()
    files = sorted(corpus.iterdir())
    taken = sum(guarded(name, file.read_bytes()) for file in files)
    print(f"{name}: {len(files)} cases kept, {taken} taken, {coverage}")
    for code, lines in coverage.missed().items():
        if lines:
            print(f"  {code.co_filename}: {code.co_qualname}: {lines}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("reader", help="a name of fuzz.readers.READERS")
    parser.add_argument("--seconds", type=float, default=60.0, help="of CPU (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="of the random choices")
    parser.add_argument("--input", help="hexadecimal bytes: read one file so damaged")
    parser.add_argument("--atheris", action="store_true", help="guided by coverage")
    parser.add_argument("--corpus", type=Path, help="folder of the cases that atheris keeps")
    parser.add_argument("--lines", action="store_true", help="lines that --corpus does not reach")
    args = parser.parse_args()
    if args.lines and args.corpus is None:
        parser.error("--lines needs --corpus")
    if args.corpus is not None and not (args.lines or args.atheris):
        parser.error("--corpus needs --atheris or --lines")
    faulthandler.enable()
    if "TMPDIR" not in os.environ and os.access("/dev/shm", os.W_OK):
        # A file written over again is written to the disk at once: three times as slow.
        tempfile.tempdir = "/dev/shm"
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGPROF, too_long)
    if args.atheris:
        by_coverage(args.reader, args.seconds, args.seed, args.corpus)
    from fuzz.readers import READERS, attempt

    if args.reader not in READERS:
        parser.error(f"{args.reader}: no reader, expected one of {', '.join(READERS)}")
    if args.input is not None:
        print("taken" if guarded(args.reader, bytes.fromhex(args.input)) else "refused")
        return 0
    with contextlib.suppress(Exception):
        attempt(args.reader, b"")  # what is imported and built once
    if args.lines:
        read_corpus(args.reader, args.corpus)
        return 0
    coverage = Coverage()
    coverage.start()
    count, taken, found = at_random(args.reader, args.seconds, args.seed)
    print(f"{args.reader}: {count} cases, {taken} taken, {coverage}")
    if found is not None:
        print(f"finding: --input {found.hex()}")
    return 1 if found is not None else 0


if __name__ == "__main__":
    sys.exit(main())
