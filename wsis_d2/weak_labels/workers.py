# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Map a labelling function in this process, in a pool of processes, or over a ray cluster.

What a function, its process or its machine does to one record costs that record alone.
"""

import contextlib
import dataclasses
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np

from wsis_d2.utils.errors import InputError, is_of_the_system, os_reason, printable
from wsis_d2.utils.processes import end_with_parent
from wsis_d2.weak_labels.store import LabelStore

logger = logging.getLogger(__name__)

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)
#: Importing wsis_d2 then registers nothing: no torch in processes that do not ask for it.
_LIGHT = {"WSIS_D2_NO_REGISTER": "1"}
_DIED = "its process died (out of memory, or a crash in native code)"


@dataclasses.dataclass
class Labels:
    """What a labelling function returns for one record; see :meth:`LabelStore.write`.

    Attributes:
        semantic: (H, W) uint8, contiguous class ids, 255 = ignore.
        instance: (H, W) int32, segment ids, 0 and -1 = none.
        segments: ``{"id", "category_id"}`` of each segment.
        counters: what happened, name to number.
    """

    semantic: np.ndarray
    instance: np.ndarray
    segments: list[dict]
    counters: dict


#: Made once in each worker process: a function without arguments that returns the labelling
#: function (record -> Labels). It must pickle: a module-level function or ``functools.partial``.
#: A function that is given several records together has a method ``batch`` too (records -> one
#: Labels each).
MakeWorker = Callable[[], Callable[[Mapping], Labels]]

#: (record, message) of each image as it ends; the message is None where labels were written.
Outcomes = Generator[tuple[dict, str | None], None, None]


class _Task:
    """The labelling function of one process, and what it does with a few records."""

    def __init__(self, make_worker: MakeWorker, store: LabelStore) -> None:
        _one_thread()
        self._label: Any = make_worker()
        self._store = store

    def __call__(self, records: list[dict]) -> list[str | None]:
        """Label and store records; return None, or why it failed, of each.

        Raises:
            OSError: the store cannot be written; what is computed for more images would be lost.
        """
        found: Iterable[Labels | None] = [None] * len(records)
        if len(records) > 1 and hasattr(self._label, "batch"):
            try:
                found = self._label.batch(records)
            except Exception:  # whose fault it was shows when each is tried alone
                logger.debug("images %r", [r["image_id"] for r in records], exc_info=True)
        return [self._one(r, labels) for r, labels in zip(records, found, strict=True)]

    def _one(self, record: dict, labels: Labels | None) -> str | None:
        try:
            labels = labels or self._label(record)
            self._store.write(
                record, labels.semantic, labels.instance, labels.segments, labels.counters
            )
        except Exception as error:
            if labels is not None and is_of_the_system(error):
                raise
            logger.debug("image %r", record["image_id"], exc_info=True)
            return describe_error(record, error)
        return None


def describe_error(record: Mapping, error: Exception) -> str:
    """Return one line that names the image's file and what went wrong with it."""
    if isinstance(error, OSError) and error.errno is not None:
        error = InputError(f"{error.filename or record.get('file_name')}: {os_reason(error)}")
    text = " ".join(str(error).split()) or type(error).__name__
    kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    name = str(record.get("file_name", record["image_id"]))
    return printable(text if name in text else f"{name}: {kind}{text}")


def map_here(make_worker: MakeWorker, groups: Iterable[list[dict]], store: LabelStore) -> Outcomes:
    """Yield (record, message) of groups that this process labels one after another."""
    task = None
    for group in groups:
        task = task or _Task(make_worker, store)
        yield from zip(group, task(group), strict=True)


_task: _Task | Exception | None = None


def _start_process(make_worker: MakeWorker, store: LabelStore) -> None:
    global _task
    end_with_parent()
    try:
        _task = _Task(make_worker, store)
    except Exception as error:  # raised from an initializer it would only say "broken pool"
        _task = error


def _is_ready() -> bool:
    return True


def _run_in_process(group: list[dict]) -> list[str | None]:
    if isinstance(_task, Exception):
        raise _task
    return _task(group)


def map_pool(
    make_worker: MakeWorker,
    groups: list[list[dict]],
    store: LabelStore,
    workers: int,
    image_seconds: float,
) -> Outcomes:
    """Yield (record, message) as processes end them; survive processes that die or hang."""
    queue = groups[::-1]
    suspects: list[list[dict]] = []
    with _one_thread_environment():
        while queue or suspects:
            # After a crash nobody knows whose record it was: each suspect is tried alone.
            alone = bool(suspects)
            source = suspects if alone else queue
            pool = ProcessPoolExecutor(
                1 if alone else workers,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start_process,
                initargs=(make_worker, store),
            )
            running: dict = {}
            begun: dict = {}
            reason = _DIED
            try:
                window = 1 if alone else 2 * workers
                first = pool.submit(_is_ready)
                while source or running:
                    while source and len(running) < window:
                        future = pool.submit(_run_in_process, source[-1])
                        if alone:  # what loading takes is not the image's
                            wait([first])
                        running[future], begun[future] = source.pop(), time.monotonic()
                    ends = min(begun[f] + image_seconds * len(running[f]) for f in running)
                    patience = max(ends - time.monotonic(), 0.0)
                    ended, _ = wait(running, patience, return_when=FIRST_COMPLETED)
                    if not ended:
                        reason = f"it took longer than {image_seconds:g} seconds"
                        for process in list(pool._processes.values()):
                            process.kill()
                        ended, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in ended:
                        messages = future.result()
                        yield from zip(running.pop(future), messages, strict=True)
            except BrokenProcessPool:
                left = [record for group in running.values() for record in group]
                if alone:
                    if left:  # none, if it died between two records: that is nobody's fault
                        yield left[0], describe_error(left[0], RuntimeError(reason))
                else:
                    suspects = [[r] for r in left if not store.done(r["image_id"], r)]
                    for record in left:
                        if [record] not in suspects:
                            yield record, None
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


def map_ray(
    make_worker: MakeWorker,
    groups: list[list[dict]],
    store: LabelStore,
    workers: int | None,
    address: str,
    gpus: int,
) -> Outcomes:
    """Yield (record, message) as actors of a ray cluster end them; the same function is mapped."""
    try:
        import ray
    except ImportError:
        raise InputError(
            "--ray: the package ray is not installed; install it with: pip install 'wsis_d2[ray]'"
        ) from None
    if not ray.is_initialized():
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    if not groups:
        return
    resource, each = ("GPU", gpus) if gpus else ("CPU", 1)
    count = workers or int(ray.cluster_resources().get(resource, 0)) // each
    if count < 1:
        raise InputError(f"--ray {address}: the cluster has no free {resource}")
    environment = {"env_vars": dict.fromkeys(_THREAD_VARIABLES, "1") | _LIGHT}
    # SPREAD: one machine must not take all actors while others idle.
    options: dict[str, Any] = {"num_cpus": 1, "num_gpus": gpus, "scheduling_strategy": "SPREAD"}
    actor = ray.remote(**options, runtime_env=environment)(_Task)
    queue = groups[::-1]
    running = {}

    def submit(handle, group):
        running[handle.__call__.remote(group)] = (handle, group)

    handles = [actor.remote(make_worker, store) for _ in range(min(count, len(groups)))]
    try:
        for handle in handles:
            submit(handle, queue.pop())
        while running:
            (ready,), _ = ray.wait(list(running), num_returns=1)
            handle, group = running.pop(ready)
            try:
                messages = ray.get(ready)
            except ray.exceptions.RayActorError:
                handle = actor.remote(make_worker, store)
                handles.append(handle)
                if len(group) > 1:  # each is tried alone
                    queue += [[r] for r in group if not store.done(r["image_id"], r)]
                    group = [r for r in group if [r] not in queue]
                    messages = [None] * len(group)
                else:
                    messages = [describe_error(group[0], RuntimeError(_DIED))]
            if queue:
                submit(handle, queue.pop())
            yield from zip(group, messages, strict=True)
    finally:
        for handle in handles:
            ray.kill(handle)


def _one_thread() -> None:
    """Keep OpenCV, and torch where it is loaded, to one thread in this process."""
    import cv2

    cv2.setNumThreads(1)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@contextlib.contextmanager
def _one_thread_environment() -> Iterator[None]:
    """Start child processes with one thread each; restore the variables afterwards."""
    before = {name: os.environ.get(name) for name in (*_THREAD_VARIABLES, *_LIGHT)}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    os.environ.update(_LIGHT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
