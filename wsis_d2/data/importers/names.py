# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Names as people and tools write them: when two spellings mean one file or one class."""

import posixpath
import re
import unicodedata
from typing import Any
from urllib.parse import unquote

_LOCAL_FILE = re.compile(r"[?&]d=([^&]+)")  # Label Studio: /data/local-files/?d=photos/a.jpg
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://[^/]*/?")
_TRUE, _FALSE = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no", "", "none", "unspecified")


def fold(text: str) -> str:
    """A name without what spellings differ in: Unicode form, letter case, outer spaces."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text.strip()).casefold())


def path_variants(name: str) -> list[str]:
    """The relative paths that a written file name may mean, the literal one first.

    Back slashes are slashes; ``%20`` may stand for a space, ``?d=`` hold the path, and a URL's
    host and query are no part of it.
    """
    texts = [name]
    local = _LOCAL_FILE.search(name)
    if local:
        texts.append(local[1])
    elif _SCHEME.match(name):
        texts.append(re.split(r"[?#]", _SCHEME.sub("", name))[0])
    elif "?" in name:
        texts.append(name.split("?")[0])
    texts += [unquote(text) for text in texts]
    paths = [posixpath.normpath(text.replace("\\", "/")) for text in texts if text]
    return [path for path in dict.fromkeys(paths) if "\0" not in path]


def to_flag(value: Any) -> bool | None:
    """A yes or no as files write it (1, true, "1", "True"); absent is no; None: neither."""
    text = "" if value is None else str(value).strip().lower()
    return True if text in _TRUE else False if text in _FALSE else None
