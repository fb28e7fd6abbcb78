# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Progress with an estimate of the time left: a bar on a terminal, log lines elsewhere."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def format_seconds(seconds: float) -> str:
    """Return ``seconds`` as ``h:mm:ss`` or ``m:ss``."""
    minutes, seconds = divmod(int(round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def progress(
    iterable: Iterable[Item],
    *,
    total: int | None = None,
    desc: str = "",
    unit: str = "image",
    log_seconds: float = 10.0,
) -> Iterator[Item]:
    """Yield from ``iterable`` and tell how far it is and how long it will take.

    Args:
        iterable: what to go through.
        total: number of items; None asks ``len(iterable)`` where it has one.
        desc: what is being done, shown first.
        unit: what one item is called.
        log_seconds: seconds between two lines where standard error is not a terminal.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    if sys.stderr.isatty():
        yield from tqdm(iterable, total=total, desc=desc, unit=unit, dynamic_ncols=True)
        return
    logger = logging.getLogger(__name__)
    start = last = time.monotonic()
    count = 0
    for item in iterable:
        yield item
        count += 1
        now = time.monotonic()
        if now - last >= log_seconds or count == total:
            last = now
            rate = count / max(now - start, 1e-9)
            left = f", {format_seconds((total - count) / rate)} left" if total else ""
            logger.info(
                "%s: %d%s %ss, %.2f/s, %s passed%s",
                desc, count, f"/{total}" if total else "", unit, rate,
                format_seconds(now - start), left,
            )  # fmt: skip
