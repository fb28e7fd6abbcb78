# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Every reader of files of others, by name.

``READERS[NAME](data)`` damages the sound file as ``data`` chooses and reads it. It raises what the
reader raises; only an InputError of one line is right.
"""

from collections.abc import Callable

from fuzz import array_readers, data_readers, import_readers, run_readers
from wsis_d2.utils.errors import InputError

READERS: dict[str, Callable[[bytes], None]] = {
    reader.__name__: reader
    for module in (data_readers, import_readers, array_readers, run_readers)
    for reader in module.READERS
}

#: Read by C code that a damaged file may end, so never in the process of the tests.
IN_C = ("mat_73",)


def one_line(error: InputError) -> None:
    """Assert that an error tells a user in one line of sane length what is wrong."""
    from wsis_d2.utils.cli import error_line

    line = error_line(error)
    assert line and line.isprintable(), f"{line!r}"
    assert len(line) < 1500, f"a line of {len(line)} characters: {line[:200]}"


def attempt(name: str, data: bytes) -> bool:
    """Read a damaged file; whether it was taken. AssertionError: it was refused in a wrong way."""
    try:
        READERS[name](data)
    except InputError as error:
        one_line(error)
        return False
    return True
