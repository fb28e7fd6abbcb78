# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Runs commands that depend on each other side by side, with an ETA; what is done stays done."""

import functools
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wsis_d2.utils.errors import InputError
from wsis_d2.utils.files import file_stamp, sha256_file, write_bytes
from wsis_d2.utils.processes import RUNNER, only_writer
from wsis_d2.utils.progress import format_seconds
from wsis_d2.utils.yaml_io import with_bases

_LOG_SECONDS = 15.0  # between two progress lines
_TAIL = 4000  # bytes of a log that are looked at


@dataclass(frozen=True)
class Job:
    """One command.

    Attributes:
        name: what it is called; also its log's name.
        command: the arguments, the program first.
        needs: names of the jobs that must have ended well before.
        minutes: how long it takes about, for the ETA alone.
        files: what its result depends on beside the command and the configs that this names; their
            content counts, and they need not be there.
    """

    name: str
    command: Sequence[str]
    needs: Sequence[str] = field(default_factory=tuple)
    minutes: float = 1.0
    files: Sequence[str | os.PathLike] = field(default_factory=tuple)


def run_jobs(
    jobs: Sequence[Job],
    folder: str | os.PathLike,
    *,
    workers: int,
    environment: dict[str, str] | None = None,
    say: Callable[[str], None] = lambda line: print(line, flush=True),
) -> float:
    """Run ``jobs``, at most ``workers`` at once, each as early as its needs allow.

    A job that ended well leaves ``folder/NAME.done`` with its command; run again, it is skipped
    while its command, its files and its needs are unchanged. Output goes to ``folder/NAME.log``.
    However this process ends, the jobs that are tools of this project end too.

    Args:
        jobs: in order of preference.
        folder: where logs and stamps lie.
        workers: processes at once.
        environment: variables set for every job, beside the present ones.
        say: takes the progress lines.

    Returns:
        seconds that the jobs took together, of this and of earlier runs.

    Raises:
        InputError: fewer than one process; or a job failed: names it, its log and the log's last
            lines. Jobs that still run are stopped first.
    """
    _check(jobs)
    if workers < 1:
        raise InputError(f"--workers {workers}: at least 1 was expected")
    with only_writer(folder):
        return _run_jobs(jobs, Path(folder), workers, environment, say)


def _run_jobs(
    jobs: Sequence[Job],
    folder: Path,
    workers: int,
    environment: dict[str, str] | None,
    say: Callable[[str], None],
) -> float:
    waiting = {job.name: job for job in jobs}
    done: dict[str, float] = {}
    for job in jobs:
        seconds = _seconds_if_done(job, folder)
        if seconds is not None and all(need in done for need in job.needs):
            done[job.name] = seconds
            del waiting[job.name]
    if done:
        say(f"already done: {', '.join(done)}")
    running: dict[str, tuple[subprocess.Popen, float]] = {}
    stamps: dict[str, dict] = {}
    start = last = time.monotonic()
    handler = signal.signal(signal.SIGTERM, _terminate)
    try:
        while waiting or running:
            for job in list(waiting.values()):
                if len(running) >= workers or any(need not in done for need in job.needs):
                    continue
                (folder / f"{job.name}.done").unlink(missing_ok=True)
                stamps[job.name] = _stamp_of(job)  # of the files as it finds them
                running[job.name] = (_start(job, folder, environment), time.monotonic())
                del waiting[job.name]
                say(f"started {job.name} (log: {folder / job.name}.log)")
            time.sleep(0.1)
            for name, (process, began) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name]
                job = next(job for job in jobs if job.name == name)
                if process.returncode:
                    for line in _tail(folder / f"{name}.log").strip().splitlines()[-12:]:
                        say(f"    {line}")
                    raise InputError(_failure(job, folder, process.returncode))
                done[name] = time.monotonic() - began
                stamp = json.dumps({**stamps[name], "seconds": done[name]})
                write_bytes(folder / f"{name}.done", stamp.encode())
                say(f"done {name} in {format_seconds(done[name])} ({len(done)}/{len(jobs)})")
            now = time.monotonic()
            if running and now - last >= _LOG_SECONDS:
                last = now
                say(_progress(jobs, done, running, folder, workers, now, now - start))
    finally:
        _stop(running)
        signal.signal(signal.SIGTERM, handler)
    return sum(done.values())


def _terminate(number: int, frame: object) -> None:
    """End as by an interruption, so that the jobs are stopped too."""
    sys.exit(128 + number)


def _check(jobs: Sequence[Job]) -> None:
    names = [job.name for job in jobs]
    for job in jobs:
        unknown = [need for need in job.needs if need not in names]
        if unknown or names.count(job.name) > 1:
            raise ValueError(f"job {job.name}: needs unknown {unknown} or is listed twice")
        late = [need for need in job.needs if names.index(need) > names.index(job.name)]
        if late:
            raise ValueError(f"job {job.name} is listed before what it needs: {late}")


def _seconds_if_done(job: Job, folder: Path) -> float | None:
    try:
        stamp = json.loads((folder / f"{job.name}.done").read_text())
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(stamp, dict):
        return None
    now = _stamp_of(job)
    if any(stamp.get(key, now["files"]) != value for key, value in now.items()):
        return None  # one of an older version has no "files", and tells nothing of them
    return stamp["seconds"] if isinstance(stamp.get("seconds"), int | float) else None


def _stamp_of(job: Job) -> dict:
    """Return what a job's result depends on: its command, and a hash of its files' content.

    Of configs what they say counts, not their comments.
    """
    configs = [
        part for part in job.command if part.endswith((".yaml", ".yml")) and os.path.isfile(part)
    ]
    told = [_digest(os.fspath(file), file_stamp(file)) for file in job.files]
    told += [repr(with_bases(config)) for config in configs]
    digest = hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]
    return {"command": list(job.command), "files": digest}


@functools.cache
def _digest(path: str, stamp: tuple[int, ...]) -> str:
    """Return the hash of a file that many jobs name; "" where there is none."""
    return sha256_file(path) if stamp else ""


def _start(job: Job, folder: Path, environment: dict[str, str] | None) -> subprocess.Popen:
    with open(folder / f"{job.name}.log", "wb") as log:
        return subprocess.Popen(
            list(job.command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {}), RUNNER: str(os.getpid())},
            start_new_session=sys.platform != "win32",
        )


def _stop(running: dict[str, tuple[subprocess.Popen, float]]) -> None:
    for process, _ in running.values():
        if process.poll() is None:
            # The whole group: a job's own workers must not outlive it.
            os.killpg(process.pid, signal.SIGTERM)
    for process, _ in running.values():
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _tail(file: Path) -> str:
    try:
        with open(file, "rb") as stream:
            stream.seek(max(0, file.stat().st_size - _TAIL))
            return stream.read().decode(errors="replace")
    except OSError:
        return ""


def _failure(job: Job, folder: Path, status: int) -> str:
    log = folder / f"{job.name}.log"
    last = (_tail(log).strip().splitlines() or ["nothing"])[-1]
    return (
        f"{job.name} ended with status {status}: {last.strip()[-300:]} (details: {log}); correct "
        "the cause, then run the same command again to continue"
    )


def _progress(
    jobs: Sequence[Job],
    done: Mapping[str, float],
    running: Mapping[str, tuple[subprocess.Popen, float]],
    folder: Path,
    workers: int,
    now: float,
    passed: float,
) -> str:
    """One line: what runs and how far it is, what has passed, what is left."""
    parts, left = [], 0.0
    for job in jobs:
        if job.name in done:
            continue
        seconds = job.minutes * 60
        if job.name in running:
            spent = now - running[job.name][1]
            eta = re.findall(
                r"eta: (?:(\d+) days?, )?(\d+):(\d\d):(\d\d)", _tail(folder / f"{job.name}.log")
            )
            if eta:
                days, hours, minutes, rest = (int(v or 0) for v in eta[-1])
                own = float(days * 86400 + hours * 3600 + minutes * 60 + rest)
                parts.append(f"{job.name} ({format_seconds(own)} left)")
            else:
                own = max(seconds - spent, 5.0)
                parts.append(job.name)
            left += own
        else:
            left += seconds
    return (
        f"[{len(done)}/{len(jobs)}] {format_seconds(passed)} passed, about "
        f"{format_seconds(left / min(workers, len(jobs)))} left; running: {', '.join(parts)}"
    )
