# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Downloads with several mirrors, a cache, and SHA-256 of everything that is kept."""

import contextlib
import hashlib
import http.client
import logging
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from wsis_d2.utils.errors import InputError, is_of_the_system, os_reason, printable
from wsis_d2.utils.files import atomic_write, remove_dead_temporaries, sha256_file, write_bytes

CACHE_VARIABLE = "WSIS_D2_CACHE"
OFFLINE_VARIABLE = "WSIS_D2_OFFLINE"
TIMEOUT = 30
MAX_INDEX = 16 << 20
MAX_MODEL = 16 << 30
# A server may give a byte now and then for ever: after PATIENCE seconds it must keep this rate.
LEAST_RATE = 1024
PATIENCE = 60
#: What a download may end in.
FAILURES = (OSError, ValueError, http.client.HTTPException)

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return where downloads are kept: ``WSIS_D2_CACHE``, else ``~/.cache/wsis_d2``."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "wsis_d2"


def is_url(place: str) -> bool:
    """Return whether a place is a URL, not a path."""
    return place.split("://", 1)[0] in ("http", "https", "file") and "://" in place


def is_offline() -> bool:
    """Return whether ``WSIS_D2_OFFLINE=1`` forbids downloads."""
    return os.environ.get(OFFLINE_VARIABLE, "") == "1"


def fetch_file(addresses: Sequence[str], sha256: str, name: str, size: int | None = None) -> Path:
    """Return a local file with the wanted content; downloads it if it must.

    A path among the addresses is used in place. A download is tried address by address, checked,
    and kept in the cache under its hash; a file of another content is never kept or used.

    Args:
        addresses: paths and URLs, in the order to try.
        sha256: what the content must hash to.
        name: what is fetched, for messages; its last part names the cached file.
        size: of the content in bytes, where it is known: no more is downloaded.

    Raises:
        InputError: no address gives the wanted content; each one's failure is told.
    """
    problems = []
    for address in addresses:
        if not is_url(address):
            if not os.path.isfile(address):
                problems.append(f"{address}: no such file")
            elif sha256_file(address) != sha256:
                problems.append(f"{address}: its content is not the published one")
            else:
                return Path(address)
    urls = [a for a in addresses if is_url(a)]
    suffix = re.search(r"\.\w{1,12}$", re.split("[?#]", urls[0])[0]) if urls else None
    target = cache_folder() / "models" / f"{sha256}{suffix[0] if suffix else ''}"
    if target.is_file():
        if sha256_file(target) == sha256:
            return target
        problems.append(f"{target}: damaged, downloaded again")
    if urls and is_offline():
        raise InputError(
            f"{name}: not in the cache {target.parent}, and {OFFLINE_VARIABLE}=1 forbids "
            f"downloading {urls[0]}"
        )
    for url in urls:
        try:
            _download(url, target, sha256, MAX_MODEL if size is None else size)
        except FAILURES as error:
            if is_of_the_system(error) and error.filename is not None:
                raise InputError(
                    f"{error.filename}: {os_reason(error)}; {CACHE_VARIABLE} names the cache"
                ) from None
            reason = _reason(error)
            problems.append(f"{url}: {reason}")
            logger.warning("%s: %s", url, reason)
            continue
        return target
    raise InputError(f"{name}: cannot be fetched: {'; '.join(problems)}")


def _download(url: str, target: Path, sha256: str, most: int) -> None:
    """Download to a temporary file, check it, and rename it into place."""
    digest = hashlib.sha256()
    remove_dead_temporaries(target.parent)
    with atomic_write(target) as file:
        for data in _pieces(url, most):
            digest.update(data)
            file.write(data)
        found = digest.hexdigest()
        if found != sha256:
            raise ValueError(f"content has SHA-256 {found[:12]}…, expected {sha256[:12]}…")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but to no weaker protection and to no file."""

    def redirect_request(self, request, *others):
        new = others[-1]
        schemes = ("https",) if request.type == "https" else ("http", "https")
        if new.partition(":")[0].lower() not in schemes:
            raise urllib.error.URLError(f"it redirects to {new!r:.200}, which is not followed")
        return super().redirect_request(request, *others)


def _pieces(url: str, most: int) -> Iterator[bytes]:
    """Yield what a URL gives, as it comes.

    Raises:
        ValueError: it is more than ``most`` bytes, or comes too slowly to come to an end.
        OSError, http.client.HTTPException: as :mod:`urllib.request` has it.
    """
    begun, received = time.monotonic(), 0
    opener = urllib.request.build_opener(_Redirects)
    with opener.open(url, timeout=TIMEOUT) as reply:
        while data := reply.read1(1 << 16):
            received += len(data)
            if received > most:
                raise ValueError(f"gives more than the {most} bytes expected")
            if received < (time.monotonic() - begun - PATIENCE) * LEAST_RATE:
                raise ValueError(f"gives fewer than {LEAST_RATE} bytes a second")
            yield data


Found = TypeVar("Found")


def fetch_index(url: str, read: Callable[[str], Found]) -> Found:
    """Return what an index at a URL holds; the last one that could be read serves off line.

    Args:
        url: of the index.
        read: makes what is returned of its text; an InputError from it keeps the text from being
            kept: a network's log-in page must not take the place of an index.

    Raises:
        InputError: it cannot be downloaded and none was read before, or it is no index.
    """
    kept = cache_folder() / "indices" / f"{hashlib.sha256(url.encode()).hexdigest()[:24]}.json"
    problem = f"{OFFLINE_VARIABLE}=1"
    if not is_offline():
        try:
            text = b"".join(_pieces(url, MAX_INDEX)).decode("utf-8")
        except FAILURES as error:
            problem = _reason(error)
        else:
            found = read(text)
            with contextlib.suppress(OSError):  # a cache that cannot be written is no obstacle
                write_bytes(kept, text.encode())
            return found
    if kept.is_file():
        logger.warning("%s: %s; using the index read before", url, problem)
        return read(kept.read_text(encoding="utf-8"))
    raise InputError(f"{url}: cannot be read ({problem}), and no earlier copy is in the cache")


def _reason(error: Exception) -> str:
    told = error if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", None)
    return printable(str(told or error) or type(error).__name__)[:200]
