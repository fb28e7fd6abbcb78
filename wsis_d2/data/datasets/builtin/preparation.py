# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""A public dataset in files of our own: its images converted, its splits written.

A command turns one official download into files of our own: ``weak_SPLIT.json`` (boxes and tags,
no mask and no path of one), ``panoptic_SPLIT.json`` with PNG files (COCO panoptic format),
``manifest_SPLIT.json`` (recipe, counts) and ``checksums_SPLIT.txt`` (``sha256sum -c`` reads it).
Every file is written under a temporary name and renamed. Finished images are noted in a journal,
so that a command that was killed continues where it stopped.
"""

import contextlib
import hashlib
import itertools
import json
import multiprocessing
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wsis_d2.data.datasets.builtin.segments import encode_panoptic, segment_entries
from wsis_d2.data.datasets.builtin.split_files import panoptic_content, weak_content
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.files import write_bytes
from wsis_d2.utils.processes import end_with_parent, only_writer
from wsis_d2.utils.progress import progress

VERSION = 1


@dataclass(frozen=True)
class ImageJob:
    """One image to convert.

    Attributes:
        image_id: unique name of the image in its dataset.
        sources: files that the result depends on; a change of size or time redoes the image.
        data: further arguments of the conversion, JSON values; a change redoes the image.
    """

    image_id: str | int
    sources: tuple[str, ...]
    data: Any = None


@dataclass
class Converted:
    """What one image became.

    Attributes:
        image: entry of ``images`` of both files (``id``, ``file_name``, ``height``, ``width``).
        tags: category ids of ``image_tags``.
        crop_tags: ``[{"box": [x, y, w, h], "tags": [ids]}]`` or None.
        annotations: ``{"bbox": [x, y, w, h], "category_id", "iscrowd"}``, boxes of the things.
        segment_ids: int (H, W), 0 is void; None where the dataset has no truth.
        segments: ``{"id", "category_id", "iscrowd"}`` of each value of ``segment_ids``.
        counts: whatever is worth adding up over the dataset.
    """

    image: dict[str, Any]
    tags: list[int]
    annotations: list[dict[str, Any]]
    crop_tags: list[dict[str, Any]] | None = None
    segment_ids: np.ndarray | None = None
    segments: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter = field(default_factory=Counter)


def _fingerprint(job: ImageJob) -> list[Any]:
    stats: list[Any] = []
    for path in job.sources:
        try:
            stat = os.stat(path)
        except FileNotFoundError:
            raise InputError(f"{path}: missing; unpack the official archive again") from None
        stats.append([stat.st_size, stat.st_mtime_ns])
    if job.data is not None:  # what an annotation file says of the image
        stats.append(hashlib.sha256(json.dumps(job.data).encode()).hexdigest()[:16])
    return stats


def _run_job(arguments: tuple[Callable[[ImageJob], Converted], ImageJob, Path]) -> dict[str, Any]:
    convert, job, panoptic = arguments
    result = convert(job)
    image = {**result.image, "image_tags": result.tags}
    if result.crop_tags is not None:
        image["crop_tags"] = result.crop_tags
    line: dict[str, Any] = {
        "id": job.image_id,
        "sources": _fingerprint(job),
        "image": image,
        "annotations": result.annotations,
        "counts": dict(result.counts),
    }
    if result.segment_ids is not None:
        data = encode_panoptic(result.segment_ids)
        name = f"{Path(result.image['file_name']).stem}.png"
        write_bytes(panoptic / name, data)
        line["segments"] = segment_entries(result.segment_ids, result.segments)
        line["png"] = [name, len(data), hashlib.sha256(data).hexdigest()]
    return line


class Preparation:
    """Converts a dataset's images and writes its splits."""

    def __init__(
        self,
        output: str | Path,
        *,
        categories: list[dict[str, Any]],
        recipe: dict[str, Any],
        command: str,
        workers: int = 1,
        force: bool = False,
    ) -> None:
        """
        Args:
            output: folder of the derived files.
            categories: category dicts of the JSON files.
            recipe: every option that changes the result; another recipe redoes the images.
            command: how the user calls this preparation, named in errors.
            workers: processes; 1 converts in this one.
            force: redo images that are done.
        """
        self.output = Path(output)
        self.categories = categories
        self.recipe = {"version": VERSION, **recipe}
        self.command = command
        self.workers = max(1, workers)
        self.force = force

    @property
    def recipe_hash(self) -> str:
        """First 12 hexadecimal digits of the recipe's SHA-256."""
        return hashlib.sha256(json.dumps(self.recipe, sort_keys=True).encode()).hexdigest()[:12]

    def convert(
        self,
        jobs: Sequence[ImageJob],
        convert: Callable[[ImageJob], Converted],
        *,
        folder: str,
        desc: str,
    ) -> dict[str | int, dict[str, Any]]:
        """Convert every image that is not done yet; return the journal's line of each image.

        Args:
            jobs: images, unique by id.
            convert: picklable function.
            folder: name of the folder of the panoptic PNG files.
            desc: shown by the progress.
        """
        journal = self.output / f".journal_{folder}.jsonl"
        header = {"recipe_hash": self.recipe_hash}
        panoptic = self.output / folder
        with only_writer(self.output), contextlib.ExitStack() as stack:
            done = {} if self.force else self._read_journal(journal, header)
            todo = [j for j in jobs if not self._is_done(done.get(j.image_id), j, panoptic)]
            write_bytes(journal, b"".join(map(_json_line, [header, *done.values()])))
            arguments = [(convert, job, panoptic) for job in todo]
            file = stack.enter_context(open(journal, "ab"))
            if self.workers > 1 and len(todo) > 1:
                # fork, where there is one: workers start at once, and nothing here uses threads
                methods = multiprocessing.get_all_start_methods()
                context = multiprocessing.get_context("fork" if "fork" in methods else None)
                workers = min(self.workers, len(todo))
                pool = ProcessPoolExecutor(workers, context, initializer=end_with_parent)
                stack.callback(pool.shutdown, cancel_futures=True)
                lines: Iterator[dict] = _as_they_end(pool, arguments, 4 * workers)
            else:
                lines = map(_run_job, arguments)
            for line in progress(lines, total=len(todo), desc=desc):
                file.write(_json_line(line))
                file.flush()
                done[line["id"]] = line
        return {job.image_id: done[job.image_id] for job in jobs}

    @staticmethod
    def _read_journal(path: Path, header: dict[str, Any]) -> dict[str | int, dict[str, Any]]:
        if not path.exists():
            return {}
        lines = []
        for line in path.read_bytes().split(b"\n"):
            checksum, _, text = line.partition(b" ")
            if checksum == _checksum(text):  # not the last line of a killed run, or of a bad disk
                lines.append(json.loads(text))
        if not lines or lines[0] != header:
            return {}
        return {line["id"]: line for line in lines[1:]}

    @staticmethod
    def _is_done(line: dict[str, Any] | None, job: ImageJob, panoptic: Path) -> bool:
        if line is None or line["sources"] != _fingerprint(job):
            return False
        if "png" not in line:
            return True
        path = panoptic / line["png"][0]
        return path.exists() and path.stat().st_size == line["png"][1]

    def write_split(
        self,
        split: str,
        lines: Sequence[dict[str, Any]],
        *,
        folder: str | None,
        kinds: Sequence[str] = ("weak", "panoptic"),
    ) -> dict[str, Any]:
        """Write the JSON files, checksums and manifest of one split; return the manifest.

        Args:
            split: name of the split.
            lines: journal lines of its images, in the order of the files.
            folder: folder of the PNG files; None where there is no truth.
            kinds: which files: "weak", "panoptic".
        """
        counts: Counter = Counter()
        for line in lines:
            counts.update(line["counts"])
        info = {"description": f"wsis_d2 {split}", "recipe": self.recipe}
        files = {}
        for kind in kinds:
            content = {"info": info, "categories": self.categories}
            content |= weak_content(lines) if kind == "weak" else panoptic_content(lines)
            files[f"{kind}_{split}.json"] = json.dumps(content, separators=(",", ":")).encode()
        sums = []
        for name, data in files.items():
            write_bytes(self.output / name, data)
            sums.append((name, hashlib.sha256(data).hexdigest()))
        if "panoptic" in kinds:
            sums += [(f"{folder}/{line['png'][0]}", line["png"][2]) for line in lines]
        text = "".join(f"{digest}  {name}\n" for name, digest in sums).encode()
        write_bytes(self.output / f"checksums_{split}.txt", text)
        manifest = {
            "recipe": self.recipe,
            "recipe_hash": self.recipe_hash,
            "command": self.command,
            "images": len(lines),
            "boxes": sum(len(line["annotations"]) for line in lines),
            "groups": sum(a["iscrowd"] for line in lines for a in line["annotations"]),
            "segments": sum(len(line.get("segments", ())) for line in lines),
            "counts": dict(sorted(counts.items())),
            "checksums_sha256": hashlib.sha256(text).hexdigest(),
        }
        write_bytes(self.output / f"manifest_{split}.json", json.dumps(manifest, indent=1).encode())
        return manifest


def _as_they_end(
    pool: ProcessPoolExecutor, arguments: list[tuple], most: int
) -> Iterator[dict[str, Any]]:
    """Yield the journal's lines of images as they are done, at most so many on their way.

    Raises:
        InputError: a process has died; :class:`multiprocessing.Pool` would wait for it for ever.
    """
    waiting = iter(arguments)
    running: set[Future] = set()
    try:
        while True:
            for job in itertools.islice(waiting, most - len(running)):
                running.add(pool.submit(_run_job, job))
            if not running:
                return
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                yield future.result()
    except BrokenProcessPool:
        raise InputError(
            "a process that converted images has died, usually for lack of memory; run the "
            "command again with fewer --workers to continue"
        ) from None


def _json_line(line: dict[str, Any]) -> bytes:
    text = json.dumps(line, separators=(",", ":")).encode()
    return _checksum(text) + b" " + text + b"\n"


def _checksum(text: bytes) -> bytes:
    return b"%08x" % zlib.crc32(text)
