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
# Types of elements, and those of numbers and text.
_INT32, _UINT32, _MATRIX, _COMPRESSED = 5, 6, 14, 15
_NUMBERS = {1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 16, 17, 18}
# Classes of arrays: cells, structures and objects hold arrays, the last two behind names.
_CELL, _STRUCTURE, _OBJECT, _SPARSE, _LAST_WITH_SIDES, _OPAQUE = 1, 2, 3, 5, 15, 17
_OF_ARRAYS = (_CELL, _STRUCTURE, _OBJECT)
_NAMES = {_STRUCTURE: 3, _OBJECT: 4}
_COMPLEX = 0x800  # a flag: a part of imaginary values follows
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
        _check_content(Path(path), names)
        content = loadmat(path, variable_names=list(names))
        return {name: content[name] for name in names}
    except FileNotFoundError:
        raise InputError(f"{path}: {missing or 'no such file'}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {os_reason(error)}") from None
    except Exception as error:  # scipy's readers raise almost anything over a broken file
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{path}: no MATLAB file with {' and '.join(names)} ({reason})") from None


def _check_content(path: Path, names: Sequence[str]) -> None:
    """Refuse a version 5 file that would take more memory than its content, or lead scipy astray.

    Raises:
        ValueError: its compressed parts unpack to too much, or one of the variables is no array
            that scipy reads safely.
    """
    with open(path, "rb") as file:
        header = file.read(128)
        if len(header) < 128 or 0 in header[:4]:  # version 4 packs nothing
            return
        order = "<" if header[126:128] == b"IM" else ">"
        left = MOST_BYTES
        while len(tag := file.read(8)) == 8:
            kind, count = struct.unpack(f"{order}II", tag)
            data = file.read(count)
            arrays = [(kind, memoryview(data))]
            if kind == _COMPRESSED:
                data = zlib.decompressobj().decompress(data, left + 1)
                left -= len(data)
                if left <= 0:
                    raise ValueError(f"it unpacks to more than {MOST_BYTES >> 20} MB")
                arrays = list(_elements(memoryview(data), order))
            for kind, content in arrays:
                if kind == _MATRIX and not _passed_over(content, order, names):
                    _check_matrix(content, order, 0)


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


def _passed_over(data: memoryview, order: str, names: Sequence[str]) -> bool:
    """Whether nobody asks for a variable: scipy reads no more than its name."""
    parts = [content for _, content in itertools.islice(_elements(data, order), 3)]
    if len(parts) < 3 or len(parts[0]) != 8:
        return False
    class_ = struct.unpack_from(f"{order}I", parts[0])[0] & 0xFF
    name = parts[1 if class_ == _OPAQUE else 2]  # an opaque one has no sides
    return bytes(name).decode("latin1") not in names


def _check_matrix(data: memoryview, order: str, depth: int) -> None:
    """Check an array: its flags, its sides, its name, then what it holds, which may be arrays.

    scipy takes memory for the sides before it looks for their values, and finds a type's width in
    a table whose end it does not know.
    """
    if depth > _DEEPEST:
        raise ValueError("it is nested too deeply")
    if not len(data):  # an empty cell
        return
    parts = list(_elements(data, order))
    kinds = [kind for kind, _ in parts]
    # Some programs write sides without a sign.
    sound = kinds[:2] in ([_UINT32, _INT32], [_UINT32, _UINT32])
    if not sound or len(parts) < 3 or len(parts[0][1]) != 8:
        raise ValueError("an array does not begin with its flags, sides and name")
    flags = struct.unpack_from(f"{order}I", parts[0][1])[0]
    class_ = flags & 0xFF
    width = len(parts[1][1]) // 4
    sides = struct.unpack(f"{order}{width}i", parts[1][1][: width * 4])
    if not 1 <= class_ <= _LAST_WITH_SIDES or min(sides, default=-1) < 0:
        raise ValueError("an array has an unknown class or impossible sides")
    if class_ != _SPARSE and math.prod(sides) > len(data):
        raise ValueError("an array says that it has more elements than it holds")
    names = _NAMES.get(class_, 1)  # elements of text: its own name, those of its fields
    held = parts[2 + names :]
    wanted = math.prod(sides) if class_ in _OF_ARRAYS else 1
    if class_ in (_STRUCTURE, _OBJECT) and len(parts) >= 2 + names:
        length, texts = parts[names][1], parts[1 + names][1]
        each = struct.unpack_from(f"{order}i", length)[0] if len(length) >= 4 else 0
        wanted *= len(texts) // each if each > 0 else 0
    elif class_ == _SPARSE:
        wanted = 3  # rows, columns, values
    if class_ not in _OF_ARRAYS and flags & _COMPLEX:
        wanted += 1
    if len(held) < wanted:  # scipy would read what follows the array
        raise ValueError(f"an array holds {len(held)} parts, expected {wanted}")
    if any(kind not in _NUMBERS for kind in kinds[2 : 2 + names]):
        raise ValueError("an array has a name that is no text")
    for kind, content in held:
        if kind not in ({_MATRIX} if class_ in _OF_ARRAYS else _NUMBERS):
            raise ValueError(f"an array holds values of type {kind}")
        if kind == _MATRIX:
            _check_matrix(content, order, depth + 1)
