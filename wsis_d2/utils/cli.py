# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""What every command-line tool shares: how it ends when its input is bad or it is interrupted."""

import argparse
import errno
import os
import re
import sys
import threading
from collections.abc import Callable, Sequence

from wsis_d2.utils.errors import InputError, os_reason, printable
from wsis_d2.utils.processes import end_with_runner

_LONGEST_LINE = 1200


def positive(text: str) -> int:
    """Read an option's whole number of at least 1, for ``add_argument(type=...)``."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: at least 1 was expected")
    return value


def error_line(error: BaseException) -> str | None:
    """Return the one line that tells a user what to correct, or None: the error is a bug.

    An :class:`InputError` says it; where a data loader's process has put its traceback around it,
    the line is found in there. So does what the system refused: a file, space, a process.
    """
    if isinstance(error, InputError):
        text = str(error).strip()
        if "Traceback (most recent call last)" in text:
            text = text.rpartition("InputError: ")[2]
        return _of_sane_length(printable(text)) or "bad input"
    if isinstance(error, MemoryError):
        error = OSError(errno.ENOMEM, str(error) or os.strerror(errno.ENOMEM))
    if isinstance(error, OSError) and error.errno is None:  # a data loader tells its text alone
        told = re.search(r"^\w+: \[Errno (\d+)\] ([^:\n]+)(?:: '(.+)')?$", str(error), re.M)
        if told:
            error = OSError(int(told[1]), told[2], told[3])
    if isinstance(error, OSError) and error.errno is not None:
        if error.filename is None:  # a write that failed
            return printable(os_reason(error))
        name = error.filename if isinstance(error.filename, int) else os.fsdecode(error.filename)
        return printable(f"{name}: {os_reason(error)}")
    return None


def _told_thread(failure: threading.ExceptHookArgs) -> None:
    """Tell what ended a thread, such as the one that writes for TensorBoard."""
    line = error_line(failure.exc_value) if failure.exc_value is not None else None
    if line is None:
        threading.__excepthook__(failure)
    else:
        print(f"warning: {line}", file=sys.stderr)


def _of_sane_length(line: str) -> str:
    """A line that shows a value of somebody's file, which may be of any length."""
    if len(line) <= _LONGEST_LINE:
        return line
    return f"{line[: _LONGEST_LINE * 2 // 3]} ... {line[-_LONGEST_LINE // 3 :]}"


def main_with_errors(
    main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None
) -> None:
    """Run ``main(argv)`` and leave the process with an exit status that scripts can trust.

    Args:
        main: the tool; returns its exit status, None meaning 0.
        argv: the arguments without the program's name; None reads ``sys.argv``.

    Exit status: what ``main`` returned; 2 for an :class:`InputError` or an unreadable file (one
    line on standard error); 130 when interrupted. Other exceptions are bugs and keep their
    traceback.
    """
    threading.excepthook = _told_thread
    end_with_runner()
    try:
        status = main(argv)
    except (InputError, OSError, MemoryError) as error:
        line = error_line(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        status = 130
    # A closed pipe (`tool | head`) must not turn success into a traceback at exit.
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status or 0)
