# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""InputError: the exception for mistakes in what a user gives."""

import errno
from collections.abc import Iterable
from typing import TypeGuard

_OTHER_PLACE = "let this user read and write there, or name another place"
_DRIVE = "check the disk or network drive"
_SPACE = "free some space there"
_FILES = "allow more open files: ulimit -n 4096"
_MEMORY = "use fewer --workers, or end other processes"
_HELP = {
    errno.EACCES: _OTHER_PLACE,
    errno.EPERM: _OTHER_PLACE,
    errno.EROFS: "mount it writable, or name another place",
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: _SPACE,
    errno.EIO: _DRIVE,
    errno.ESTALE: _DRIVE,
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
    errno.ENOMEM: _MEMORY,
    errno.EAGAIN: _MEMORY,
}


class InputError(ValueError):
    """Input that cannot be used: a file, a record, an argument or a config key.

    The message names the thing at fault, what was found, what was expected and, where there is
    one, the command that corrects it. Tools print it as one line and exit with status 2
    (:func:`wsis_d2.utils.cli.main_with_errors`).
    """


def printable(text: str) -> str:
    """Return a text as one line that a terminal shows as it is.

    Names come from files of others: line ends, what moves a terminal's cursor or turns the
    direction of writing, and halves of characters become escapes.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Refuse a value that is none of the known ones.

    Args:
        name: the option, argument or config key, as the user writes it.

    Raises:
        InputError: ``NAME is VALUE, expected one of A, B``.
    """
    known = list(choices)
    if value not in known:
        raise InputError(f"{name} is {value!r}, expected one of {', '.join(map(str, known))}")


def os_reason(error: OSError) -> str:
    """Return what the system refused and what helps, for the end of a message."""
    help_ = _HELP.get(error.errno or 0)
    reason = error.strerror or str(error)
    return f"{reason}; {help_}, then run the same command again" if help_ else reason


def is_of_the_system(error: BaseException) -> TypeGuard[OSError]:
    """Whether the system refused something that has nothing to do with an image or a record.

    No permission, no space, a failing drive: what comes next would fail in the same way.
    """
    return isinstance(error, OSError) and error.errno in _HELP
