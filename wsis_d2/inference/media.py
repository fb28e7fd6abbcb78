# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Pictures and videos that a user names: files, folders, globs."""

import glob
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from wsis_d2.utils.errors import InputError
from wsis_d2.utils.image_io import PICTURE_SUFFIXES

logger = logging.getLogger(__name__)

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
_MEDIA = PICTURE_SUFFIXES + VIDEOS


def find_media(inputs: Sequence[str]) -> list[Path]:
    """Return the pictures and videos that files, folders and globs name, each once, in order.

    A relative and an absolute path of one file are the same; a link is a file of its own. A folder
    gives the pictures and videos that lie directly in it.

    Raises:
        InputError: something is missing, matches nothing, or is neither picture nor video.
    """
    found: dict[str, Path] = {}

    def add(paths: Sequence[Path]) -> None:
        for path in paths:
            found.setdefault(os.path.abspath(path), path)

    for text in inputs:
        path = Path(text)
        if path.is_dir():
            inside = sorted(
                p
                for p in path.iterdir()  # not the "._photo.jpg" that some systems put beside it
                if p.suffix.lower() in _MEDIA and not p.name.startswith(".") and p.is_file()
            )
            if not inside:
                raise InputError(f"{text}: no picture or video in this folder")
            _tell_left_out(path)
            add(inside)
        elif path.is_file():
            if path.suffix.lower() not in _MEDIA:
                raise InputError(
                    f"{text}: expected a picture ({', '.join(PICTURE_SUFFIXES)}) or a video "
                    f"({', '.join(VIDEOS)})"
                )
            add([path])
        else:
            matched = sorted(Path(p) for p in glob.glob(text, recursive=True))
            matched = [p for p in matched if p.suffix.lower() in _MEDIA and p.is_file()]
            if not matched:
                what = "matches no picture or video" if glob.has_magic(text) else "no such file"
                raise InputError(f"{text}: {what}")
            add(matched)
    return list(found.values())


def _tell_left_out(folder: Path) -> None:
    """Tell of the files of a folder that are neither picture nor video, such as HEIC."""
    others = Counter(
        p.suffix.lower() or p.name
        for p in folder.iterdir()
        if p.suffix.lower() not in _MEDIA and not p.name.startswith(".") and p.is_file()
    )
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
        logger.warning("%s: left out what is neither picture nor video here: %s", folder, kinds)


def picture_names(paths: Sequence[Path]) -> dict[Path, str]:
    """Return what each picture is called in results: its name without folder and suffix.

    Pictures that would be called alike keep their suffix, and the folders below the one that holds
    them all.
    """
    alike: dict[str, list[Path]] = {}
    for path in paths:
        alike.setdefault(path.stem, []).append(path)
    names = {}
    for stem, group in alike.items():
        full = [Path(os.path.abspath(path)) for path in group]
        root = os.path.commonpath([path.parent for path in full])
        for path, whole in zip(group, full, strict=True):
            names[path] = stem if len(group) == 1 else whole.relative_to(root).as_posix()
    return names


def is_video(path: Path) -> bool:
    """Return whether a file is a video, by its suffix."""
    return path.suffix.lower() in VIDEOS


class VideoFrames:
    """The frames of a video, one in memory at a time.

    Args:
        path: the file.

    Raises:
        InputError: it cannot be opened or holds no frame.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        capture = cv2.VideoCapture(str(path))
        opened = capture.isOpened() and capture.read()[0]
        self.rate = capture.get(cv2.CAP_PROP_FPS) if opened else 0.0
        self.count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if opened else 0
        capture.release()
        if not opened:
            raise InputError(f"{path}: cannot be read as a video")
        if not 0.1 <= self.rate <= 1000:
            self.rate = 25.0

    def __len__(self) -> int:
        return max(0, self.count)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield frames, uint8 (H, W, 3) RGB."""
        capture = cv2.VideoCapture(str(self.path))
        try:
            while True:
                good, frame = capture.read()
                if not good:
                    return
                yield np.ascontiguousarray(frame[..., ::-1])
        finally:
            capture.release()


class VideoWriter:
    """Writes RGB frames to an MP4; the file appears under its name when it is closed well."""

    def __init__(self, path: Path, rate: float) -> None:
        self.path, self.rate = path, rate
        self.temporary = path.with_name(f".{path.stem}.part{path.suffix}")
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)
        self._count = 0

    def write(self, frame: np.ndarray) -> None:
        """Add a frame, uint8 (H, W, 3) RGB; all of one size, odd sides lose a pixel."""
        height, width = (s // 2 * 2 for s in frame.shape[:2])
        frame = frame[:height, :width]
        if self._writer is None:
            self._size = (width, height)
            self.temporary.write_bytes(b"")  # OpenCV does not tell what the system refuses
            code = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self.temporary), code, self.rate, self._size)
            if not self._writer.isOpened():
                raise InputError(f"{self.path}: this OpenCV cannot write MP4 videos")
        if (width, height) != self._size:
            frame = cv2.resize(frame, self._size)
        self._writer.write(np.ascontiguousarray(frame[..., ::-1]))
        self._count += 1

    def close(self, keep: bool = True) -> None:
        """End the file; ``keep`` False throws it away.

        Raises:
            InputError: it could not be written whole, as on a full disk.
        """
        if self._writer is None:
            return
        self._writer.release()
        if keep:
            written = cv2.VideoCapture(str(self.temporary))
            whole = int(written.get(cv2.CAP_PROP_FRAME_COUNT)) == self._count
            written.release()
            if whole:
                self.temporary.replace(self.path)
                return
        self.temporary.unlink(missing_ok=True)
        if keep:
            raise InputError(f"{self.path}: could not be written whole; is there space left?")
