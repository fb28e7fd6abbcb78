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
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from wsis_d2.utils.errors import InputError
from wsis_d2.utils.processes import usable_cores
from wsis_d2.utils.progress import format_seconds, progress
from wsis_d2.weak_labels.store import LabelStore
from wsis_d2.weak_labels.store_manifest import check_recipe
from wsis_d2.weak_labels.workers import MakeWorker, Outcomes, map_here, map_pool, map_ray

logger = logging.getLogger(__name__)

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
    "made_of",
)
#: An image of photographs' size takes seconds.
IMAGE_SECONDS = 1800.0


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
        outcomes: Outcomes = map_ray(make_worker, groups, store, workers, ray_address, gpus)
    else:
        workers = usable_cores() if workers is None else workers
        if workers < 1:
            raise InputError(f"--workers {workers}: at least 1 was expected")
        if workers == 1 or len(groups) < 2:
            outcomes = map_here(make_worker, groups, store)
        else:
            outcomes = map_pool(
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

    outcomes = map_here(make_worker, _groups(missing(), batch), store)
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
    run: LabelRun,
) -> None:
    """Log what a run would do, for ``--dry-run``; writes nothing.

    Raises:
        InputError: the run would be refused, because ``output`` holds another recipe.
    """
    considered = len(records) if run.limit is None else min(run.limit, len(records))
    wanted = check_recipe(output, recipe, categories, force=run.force)
    there = os.path.exists(os.path.join(output, "manifest.json")) and not run.force
    todo = plan(records, LabelStore.open(output), run.limit) if there else records[:considered]
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
