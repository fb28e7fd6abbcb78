# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Cores, processes that end with the one that started them, folders that one at a time writes."""

import contextlib
import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from wsis_d2.utils.errors import InputError, printable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"
RUNNER = "WSIS_D2_RUNNER"  # environment variable: the process whose jobs end with it
_POLL = 1.0
_PATIENCE = 20.0  # seconds for the workers of a process that was killed


def usable_cores() -> int:
    """Return the cores that this process may use: a container's share, not the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_with_parent() -> None:
    """Have this process, started by multiprocessing's "fork" or "spawn", end soon after its parent.

    One that is killed cannot tell its workers, and they would wait for work for ever.
    """
    # A parent that was killed while this process still started is no longer what getppid tells.
    started_by = multiprocessing.parent_process()
    _end_with(os.getppid() if started_by is None else started_by.pid)


def end_with_runner() -> None:
    """Have this process end soon after the one of :data:`RUNNER`, if that has started it.

    Jobs have a session of their own: a closed terminal or a kill reaches their runner alone.
    """
    runner = os.environ.pop(RUNNER, "")  # popped: what this process starts is no job of the runner
    if runner.isdecimal():
        _end_with(int(runner))


def _end_with(parent: int | None) -> None:
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def only_writer(folder: str | os.PathLike) -> Iterator[None]:
    """Hold a folder for this process alone; however the process ends, the folder is free again.

    Processes that it starts hold it too: the workers of one that was killed end soon after it,
    which is waited for.

    Raises:
        InputError: another process holds it.
    """
    path = Path(folder) / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        if fcntl is not None:
            _lock(file, folder)
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}".encode())
        file.flush()
        yield


def _lock(file: IO[bytes], folder: str | os.PathLike) -> None:
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = printable(file.read(200).decode(errors="replace")) or "unknown"
        except OSError:
            return  # a file system without locks
        if time.monotonic() > end or not _has_ended(holder):
            raise InputError(
                f"{folder}: another command writes there (process {holder}); wait for its end, or "
                "name another folder"
            )
        time.sleep(0.1)


def _has_ended(holder: str) -> bool:
    process, _, host = holder.partition(" on ")
    if host != socket.gethostname() or not process.isdecimal():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False
