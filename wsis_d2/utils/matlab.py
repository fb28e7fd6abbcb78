# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""MATLAB files up to version 7, read though they may be broken or hostile."""

import itertools
import math
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from wsis_d2.utils.errors import InputError, os_reason

MOST_BYTES = 512 << 20  # that a file may unpack to
_MATRIX, _COMPRESSED = 14, 15  # types of elements
_SPARSE, _LAST_WITH_SIDES = 5, 15  # classes of arrays
_DEEPEST = 50


def read_matlab(path: str | os.PathLike, names: Sequence[str], missing: str = "") -> dict[str, Any]:
    """Return variables of a MATLAB file, as :func:`scipy.io.loadmat` does.

    Args:
        path: the file.
        names: the variables.
        missing: what to say of a file that is not there.

    Raises:
        InputError: missing, broken, without one of the variables, or packed so that it would take
            more than 512 MB.
    """
    from scipy.io import loadmat

    try:
        _check_unpacked(Path(path))
        content = loadmat(path, variable_names=list(names))
        return {name: content[name] for name in names}
    except FileNotFoundError:
        raise InputError(f"{path}: {missing or 'no such file'}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {os_reason(error)}") from None
    except Exception as error:  # scipy's readers raise almost anything over a broken file
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{path}: no MATLAB file with {' and '.join(names)} ({reason})") from None


def _check_unpacked(path: Path) -> None:
    """Refuse a version 5 file that would take more memory than its content does.

    Raises:
        ValueError: its compressed parts unpack to too much, or an array says that it has more
            elements than bytes: scipy allocates before it looks.
    """
    with open(path, "rb") as file:
        header = file.read(128)
        order = {b"IM": "<", b"MI": ">"}.get(header[126:128])
        if order is None:  # version 4 packs nothing
            return
        left = MOST_BYTES
        while len(tag := file.read(8)) == 8:
            kind, count = struct.unpack(f"{order}II", tag)
            data = file.read(count)
            if kind == _COMPRESSED:
                data = zlib.decompressobj().decompress(data, left + 1)
                left -= len(data)
                if left <= 0:
                    raise ValueError(f"it unpacks to more than {MOST_BYTES >> 20} MB")
                _check_elements(memoryview(data), order, 0)
            elif kind == _MATRIX:
                _check_matrix(memoryview(data), order, 0)


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Yield type and content of the elements that follow one another."""
    at = 0
    while at + 8 <= len(data):
        kind, count = struct.unpack_from(f"{order}II", data, at)
        if kind >> 16:  # up to four bytes, in the tag itself
            yield kind & 0xFFFF, data[at + 4 : at + 4 + min(kind >> 16, 4)]
            at += 8
        else:
            yield kind, data[at + 8 : at + 8 + count]
            at += 8 + count + -count % 8


def _check_elements(data: memoryview, order: str, depth: int) -> None:
    for kind, content in _elements(data, order):
        if kind == _MATRIX:
            _check_matrix(content, order, depth)


def _check_matrix(data: memoryview, order: str, depth: int) -> None:
    """Check an array: its flags, its sides, its name, then what it holds, which may be arrays."""
    if depth > _DEEPEST:
        raise ValueError("it is nested too deeply")
    parts = [content for _, content in itertools.islice(_elements(data, order), 2)]
    if len(parts) == 2 and len(parts[0]) >= 4:
        kind = struct.unpack_from(f"{order}I", parts[0])[0] & 0xFF
        sides = struct.unpack(f"{order}{len(parts[1]) // 4}i", parts[1][: len(parts[1]) // 4 * 4])
        if kind <= _LAST_WITH_SIDES and kind != _SPARSE and math.prod(map(abs, sides)) > len(data):
            raise ValueError("an array says that it has more elements than it holds")
    _check_elements(data, order, depth + 1)
