# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""MATLAB files up to version 7, read though they may be broken or hostile."""

import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsis_d2.utils.errors import InputError

MOST_BYTES = 512 << 20  # that a file may unpack to
_COMPRESSED = 15


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
    except Exception as error:  # scipy's readers raise almost anything over a broken file
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{path}: no MATLAB file with {' and '.join(names)} ({reason})") from None


def _check_unpacked(path: Path) -> None:
    """Raise ValueError where the compressed elements of a version 5 file unpack to too much."""
    with open(path, "rb") as file:
        header = file.read(128)
        order = {b"IM": "<", b"MI": ">"}.get(header[126:128])
        if order is None:  # version 4 packs nothing
            return
        left = MOST_BYTES
        while len(tag := file.read(8)) == 8:
            kind, count = struct.unpack(f"{order}II", tag)
            after = file.tell() + count
            if kind == _COMPRESSED:
                left -= _unpacked(file.read(count), left)
            if left <= 0:
                raise ValueError(f"it unpacks to more than {MOST_BYTES >> 20} MB")
            file.seek(after)


def _unpacked(data: bytes, most: int) -> int:
    """Return how many bytes a zlib stream unpacks to; counting ends above ``most``."""
    stream, total = zlib.decompressobj(), 0
    while data and total <= most:
        total += len(stream.decompress(data, 1 << 20))
        data = stream.unconsumed_tail
    return total
