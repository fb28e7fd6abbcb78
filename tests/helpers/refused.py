# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""A system that refuses to open, rename or make files: no permission, no space, a failing drive.

Permission bits do not stop a test that runs as root; errors out of an audit hook stop any.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

_KINDS = {"os.rename": "rename", "os.mkdir": "mkdir", "os.listdir": "list", "os.scandir": "list"}
_refuses: Callable[[str, str], int] | None = None


def _hook(event: str, arguments: tuple) -> None:
    if _refuses is None or (event != "open" and event not in _KINDS):
        return
    path = arguments[0]
    if not isinstance(path, str | bytes | os.PathLike):
        return  # a descriptor that is open already
    kind = _KINDS.get(event)
    if event == "open":
        flags = arguments[2] if isinstance(arguments[2], int) else 0
        kind = "write" if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) else "read"
    if code := _refuses(str(kind), os.fsdecode(path)):
        raise OSError(code, os.strerror(code), path)


sys.addaudithook(_hook)  # for ever, and idle but in a block of refused()


@contextlib.contextmanager
def refused(
    code: int, kinds: str, where: object = "", begin: int = 0, times: int = sys.maxsize
) -> Iterator[list[tuple[str, str]]]:
    """Refuse, with an errno, what is asked of paths that contain a text, from a time on.

    Args:
        code: the errno; 0 refuses nothing.
        kinds: some of "read write rename mkdir list".
        where: the text.
        begin: how many of them pass before.
        times: how many are refused then.

    Yields:
        (kind, path) of what was asked for, as it comes.
    """
    global _refuses
    asked: list[tuple[str, str]] = []

    def refuses(kind: str, path: str) -> int:
        if kind not in kinds.split() or str(where) not in path:
            return 0
        asked.append((kind, path))
        return code if begin < len(asked) <= begin + times else 0

    _refuses = refuses
    try:
        yield asked
    finally:
        _refuses = None
