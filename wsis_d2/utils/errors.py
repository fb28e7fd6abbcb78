# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""InputError: the exception for mistakes in what a user gives."""

from collections.abc import Iterable


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
