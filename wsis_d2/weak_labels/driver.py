# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Map one function over weak records into a label store: processes, GPUs, or ray over machines.

Every worker process runs one thread. A record whose function raises is named, counted and skipped;
so is one that kills its process (out of memory, a crash in native code) or never ends. What is
done is in the store at once, so a run may be stopped at any moment and goes on where it stopped.
The order of results never matters: labels depend on their record alone.
"""

import contextlib
import dataclasses
import itertools
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np

from wsis_d2.utils.errors import InputError, printable
from wsis_d2.utils.processes import end_with_parent
from wsis_d2.utils.progress import format_seconds, progress
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
_RECORD_FIELDS = (
    "file_name",
    "image_id",
    "height",
    "width",
    "image_tags",
    "crop_tags",
    "points",
    "scribbles",
    "unboxed",
    "supervision",
)
#: An image of photographs' size takes seconds.
IMAGE_SECONDS = 1800.0
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


@dataclasses.dataclass(frozen=True)
class LabelRun:
    """How a label command runs; the labels are the same in any way.

    Attributes:
        workers: processes; 1 runs in this one; None takes one a core, or 1 where the command's
            network runs on this machine's GPU. With ray: tasks at once, None takes one a CPU of
            the cluster, or a GPU where each task needs one.
        limit: only the first so many records.
        force: throw away labels that are there.
        dry_run: only say what would be done; nothing is written.
        ray_address: None uses this machine; "auto" or an address maps over a ray cluster, whose
            machines must see images and store under the same paths.
        image_seconds: a process that has an image for longer is ended, and the image tried once
            more and then left out. One process alone, and ray's, are not watched.
    """

    workers: int | None = None
    limit: int | None = None
    force: bool = False
    dry_run: bool = False
    ray_address: str | None = None
    image_seconds: float = IMAGE_SECONDS


@dataclasses.dataclass
class DriverResult:
    """How a run went.

    Attributes:
        made: images labelled now.
        kept: images whose labels were there already.
        failed: image id to message, of this run.
        seconds: wall time.
    """

    made: int
    kept: int
    failed: dict
    seconds: float

    @property
    def exit_status(self) -> int:
        """0, or 1 if an image failed."""
        return 1 if self.failed else 0


#: Made once in each worker process: a function without arguments that returns the labelling
#: function (record -> Labels). It must pickle: a module-level function or ``functools.partial``.
#: A function that is given several records together has a method ``batch`` too (records -> one
#: Labels each).
MakeWorker = Callable[[], Callable[[Mapping], Labels]]

#: (record, message) of each image as it ends; the message is None where labels were written.
Outcomes = Generator[tuple[dict, str | None], None, None]


def default_workers() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def plan(records: Sequence[Mapping], store: LabelStore, limit: int | None = None) -> list[dict]:
    """Return the records among the first ``limit`` whose labels are missing or stale, plain."""
    chosen = records if limit is None else records[:limit]
    return [plain_record(r) for r in chosen if not store.done(r["image_id"], r)]


def run(
    make_worker: MakeWorker,
    records: Sequence[Mapping],
    store: LabelStore,
    *,
    workers: int | None = None,
    limit: int | None = None,
    desc: str = "weak labels",
    ray_address: str | None = None,
    gpus: int = 0,
    image_seconds: float = IMAGE_SECONDS,
    batch: int = 1,
) -> DriverResult:
    """Label every record that has no current label in ``store``, then close the store.

    Args:
        make_worker: see :data:`MakeWorker`.
        records: weak records of the dataset.
        store: a writable store.
        workers, limit, ray_address, image_seconds: see :class:`LabelRun`.
        desc: what the progress line calls it.
        gpus: with ray, GPUs that each task needs; ``workers`` None then takes all of the cluster.
        batch: records that the labelling function is given together, where it has ``batch``.

    Returns:
        What happened; ``exit_status`` is meant for the tool.
    """
    start = time.monotonic()
    considered = len(records) if limit is None else min(limit, len(records))
    todo = plan(records, store, limit)
    groups = list(_groups(todo, batch))
    if ray_address is not None:
        outcomes: Outcomes = _map_ray(make_worker, groups, store, workers, ray_address, gpus)
    else:
        workers = default_workers() if workers is None else workers
        if workers < 1:
            raise InputError(f"--workers {workers}: at least 1 was expected")
        if workers == 1 or len(groups) < 2:
            outcomes = _map_here(make_worker, groups, store)
        else:
            outcomes = _map_pool(
                make_worker, groups, store, min(workers, len(groups)), image_seconds
            )
    failed = {}
    with contextlib.closing(outcomes):
        for record, message in progress(outcomes, total=len(todo), desc=desc):
            if message is not None:
                failed[record["image_id"]] = message
                store.write_failure(record, message)
                logger.error("image %r skipped: %s", record["image_id"], message)
    summary = store.finish()
    result = DriverResult(
        made=len(todo) - len(failed),
        kept=considered - len(todo),
        failed=failed,
        seconds=time.monotonic() - start,
    )
    _log_summary(result, summary, store, desc)
    return result


def run_share(
    make_worker: MakeWorker,
    records: Sequence[Mapping],
    store: LabelStore,
    rank: int,
    count: int,
    desc: str = "weak labels",
    batch: int = 1,
) -> None:
    """Label this process's share of the records, then what others have left; leave the store open.

    All of ``count`` processes end within one batch of each other, wherever a run was stopped and
    however unlike they are. One of them ends the store with :func:`run`, which also labels again
    what has failed.

    Args:
        make_worker: see :data:`MakeWorker`.
        records: all weak records of the dataset, the same in every process.
        store: opened to write in every process.
        rank: of this process, from 0.
        count: number of processes.
        desc: what the progress line calls it.
        batch: see :func:`run`.
    """
    own = records[rank::count]
    others = [r for k, r in enumerate(records) if k % count != rank][::-1]
    turn = rank * len(others) // count  # not all help at the same end
    failed = 0

    def missing() -> Iterator[dict]:
        for record in [*own, *others[turn:], *others[:turn]]:
            if not store.done(record["image_id"], record):
                yield plain_record(record)

    outcomes = _map_here(make_worker, _groups(missing(), batch), store)
    with contextlib.closing(outcomes):
        for record, message in progress(outcomes, total=len(own), desc=desc):
            if message is not None:
                failed += 1
                store.write_failure(record, message)
    if failed:
        logger.warning("%s: %d images failed in process %d", desc, failed, rank)


def report_plan(
    records: Sequence[Mapping],
    categories: list[dict],
    recipe: Mapping,
    output: str | os.PathLike,
    *,
    limit: int | None = None,
    force: bool = False,
) -> None:
    """Log what a run would do, for ``--dry-run``; writes nothing.

    Raises:
        InputError: the run would be refused, because ``output`` holds another recipe.
    """
    considered = len(records) if limit is None else min(limit, len(records))
    wanted = LabelStore.check_recipe(output, recipe, categories, force=force)
    there = os.path.exists(os.path.join(output, "manifest.json")) and not force
    todo = plan(records, LabelStore.open(output), limit) if there else records[:considered]
    boxes = sum(len(r.get("annotations", [])) for r in todo)
    logger.info(
        "dry run: %d of %d images to label, with %d boxes; recipe %s; output %s",
        len(todo), considered, boxes, wanted[:12], output,
    )  # fmt: skip
    for record in todo:
        if not os.path.exists(record["file_name"]):
            logger.error("  missing image: %s", record["file_name"])


def plain_record(record: Mapping) -> dict:
    """Return the weak fields of a record as plain numbers: workers need neither torch nor d2.

    Other fields, such as the path of a mask in a mixed dataset, do not pass.
    """
    plain = {name: record[name] for name in _RECORD_FIELDS if name in record}
    plain["annotations"] = [
        {
            "bbox": [float(v) for v in a["bbox"]],
            "bbox_mode": int(a.get("bbox_mode", 0)),
            "category_id": int(a["category_id"]),
            "iscrowd": int(a.get("iscrowd", 0)),
            **{key: a[key] for key in ("id", "points", "scribbles") if key in a},
        }
        for a in record.get("annotations", [])
    ]
    return plain


def _groups(records: Iterable[dict], size: int) -> Iterator[list[dict]]:
    """Yield the records in their order, so many at a time."""
    records = iter(records)
    while group := list(itertools.islice(records, size)):
        yield group


class _Task:
    """The labelling function of one process, and what it does with a few records."""

    def __init__(self, make_worker: MakeWorker, store: LabelStore) -> None:
        _one_thread()
        self._label: Any = make_worker()
        self._store = store

    def __call__(self, records: list[dict]) -> list[str | None]:
        """Label and store records; return None, or why it failed, of each."""
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
            logger.debug("image %r", record["image_id"], exc_info=True)
            return describe_error(record, error)
        return None


def describe_error(record: Mapping, error: Exception) -> str:
    """Return one line that names the image's file and what went wrong with it."""
    text = " ".join(str(error).split()) or type(error).__name__
    kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    name = str(record.get("file_name", record["image_id"]))
    return printable(text if name in text else f"{name}: {kind}{text}")


def _map_here(make_worker: MakeWorker, groups: Iterable[list[dict]], store: LabelStore) -> Outcomes:
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


def _map_pool(
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
                        reason = f"it was not done after {image_seconds:g} seconds"
                        for process in list(pool._processes.values()):
                            process.kill()
                        ended, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in ended:
                        messages = future.result()
                        yield from zip(running.pop(future), messages, strict=True)
            except BrokenProcessPool:
                left = [record for group in running.values() for record in group]
                if alone:
                    yield left[0], describe_error(left[0], RuntimeError(reason))
                else:
                    suspects = [[r] for r in left if not store.done(r["image_id"], r)]
                    for record in left:
                        if [record] not in suspects:
                            yield record, None
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


def _map_ray(
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


def _log_summary(result: DriverResult, summary: dict, store: LabelStore, desc: str) -> None:
    logger.info(
        "%s: %d made, %d kept from before, %d failed, in %s; %s holds %d images",
        desc,
        result.made,
        result.kept,
        len(result.failed),
        format_seconds(result.seconds),
        store.path,
        summary["images"],
    )
    for name, value in sorted(summary["counters"].items()):
        logger.info("  %-28s %s", name, f"{value:,}" if isinstance(value, int) else value)
    for image_id, message in result.failed.items():
        logger.error("  failed: image %r: %s", image_id, message)
