# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Files that are whole or not there: written under a temporary name, then renamed."""

import contextlib
import errno
import fnmatch
import hashlib
import itertools
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_counter = itertools.count()
OF_ROOT = "lost+found"  # at the root of a file system, readable by its owner alone


@contextlib.contextmanager
def atomic_write(
    path: Path, temporary_folder: Path | None = None, replace: bool = True
) -> Iterator[BinaryIO]:
    """Open ``path`` for writing so that it appears whole, by a rename, when the block ends.

    Args:
        path: the file to write; a file that is there is replaced.
        temporary_folder: where the temporary file lies (same file system); None: beside ``path``.
            Its name tells host and process, so :func:`remove_dead_temporaries` can judge it.
        replace: off, a file that is there stays.

    Raises:
        FileExistsError: ``replace`` is off and ``path`` is there, from another process perhaps.
    """
    path = Path(path)
    folder = Path(temporary_folder) if temporary_folder is not None else path.parent
    name = f"{socket.gethostname()}~{os.getpid()}~{next(_counter)}.tmp"
    temporary = folder / (name if temporary_folder is not None else f".{name}")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with open(temporary, "wb") as file:
            yield file
        if replace:
            os.replace(temporary, path)
        else:
            _claim(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            # A write that fails does not name its file, and the user knows no temporary one.
            error.filename, error.filename2 = str(path), None
        raise


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Write a file so that it is whole or not there."""
    with atomic_write(Path(path)) as file:
        file.write(data)


class _Checked(Exception):
    """Nothing is to be written."""


def check_writable(path: str | os.PathLike) -> None:
    """Raise what writing a file would end in, before something is computed for it.

    Raises:
        OSError: its folder cannot be made or written, or it is a folder itself.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder, expected a file to write", str(path))
    with contextlib.suppress(_Checked), atomic_write(path):
        raise _Checked


def _claim(temporary: Path, path: Path) -> None:
    """Rename ``temporary`` to ``path``, unless that is taken."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links: the next best
        if path.exists():
            raise FileExistsError(f"{path}: is there") from None
        os.replace(temporary, path)
    else:
        temporary.unlink()


def list_files(folder: str | os.PathLike, pattern: str) -> list[Path]:
    """Return the files below a folder that match a pattern, sorted, as :meth:`Path.glob` does.

    That passes over folders that cannot be read in silence, as if they were empty.

    Args:
        folder: one that is not there holds no files.
        pattern: parts as of :mod:`fnmatch`, ``**`` for any depth; links to folders are followed
            where a part names them, not by ``**``.

    Raises:
        OSError: a folder cannot be read.
    """
    first, _, rest = pattern.partition("/")
    try:
        with os.scandir(os.fspath(folder)) as found:
            entries = list(found)
    except (FileNotFoundError, NotADirectoryError):
        return []
    if first != "**":
        entries = [e for e in entries if fnmatch.fnmatchcase(e.name, first)]
        if not rest:
            return sorted(Path(e.path) for e in entries if e.is_file())
        return sorted(file for e in entries if e.is_dir() for file in list_files(e.path, rest))
    below = [e for e in entries if e.is_dir() and not e.is_symlink() and e.name != OF_ROOT]
    files = [file for e in below for file in list_files(e.path, pattern)]
    return sorted(list_files(folder, rest) + files)


def remove_dead_temporaries(folder: Path) -> None:
    """Delete what processes of this machine that are gone have left in ``folder``."""
    if not folder.is_dir():
        return
    for path in folder.glob("*.tmp"):
        host, _, rest = path.name.lstrip(".").partition("~")
        pid = rest.partition("~")[0]
        if host == socket.gethostname() and pid.isdigit() and not _alive(int(pid)):
            path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def sha256_file(path: str | os.PathLike) -> str:
    """Return a file's SHA-256, hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


def file_stamp(path: str | os.PathLike) -> tuple[int, ...]:
    """Return what changes where a file does, for caches; () where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
