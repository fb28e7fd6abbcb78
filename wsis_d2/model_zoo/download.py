# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Downloads with several mirrors, a cache, and SHA-256 of everything that is kept."""

import hashlib
import logging
import os
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from wsis_d2.utils.errors import InputError
from wsis_d2.utils.files import sha256_file

CACHE_VARIABLE = "WSIS_D2_CACHE"
OFFLINE_VARIABLE = "WSIS_D2_OFFLINE"
TIMEOUT = 30
MAX_INDEX = 16 << 20

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


def fetch_file(addresses: Sequence[str], sha256: str, name: str) -> Path:
    """Return a local file with the wanted content; downloads it if it must.

    A path among the addresses is used in place. A download is tried address by address, checked,
    and kept in the cache under its hash; a file of another content is never kept or used.

    Args:
        addresses: paths and URLs, in the order to try.
        sha256: what the content must hash to.
        name: what is fetched, for messages; its last part names the cached file.

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
    suffix = Path(urlsplit(urls[0]).path).suffix if urls else ""
    target = cache_folder() / "models" / f"{sha256}{suffix}"
    if target.is_file():
        if sha256_file(target) == sha256:
            return target
        problems.append(f"{target}: damaged, downloaded again")
    if urls and is_offline():
        raise InputError(
            f"{name}: not in the cache {target.parent}, and {OFFLINE_VARIABLE}=1 forbids to "
            f"download {urls[0]}"
        )
    for url in urls:
        try:
            _download(url, target, sha256)
        except (OSError, ValueError) as error:
            http = isinstance(error, urllib.error.HTTPError)
            reason = error if http else getattr(error, "reason", None) or error
            problems.append(f"{url}: {reason}")
            logger.warning("%s: %s", url, reason)
            continue
        return target
    raise InputError(f"{name}: cannot be fetched: {'; '.join(problems)}")


def _download(url: str, target: Path, sha256: str) -> None:
    """Download to a temporary file, check it, and rename it into place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".download.")
    try:
        with os.fdopen(handle, "wb") as file, urllib.request.urlopen(url, timeout=TIMEOUT) as reply:
            shutil.copyfileobj(reply, file, 1 << 20)
        found = sha256_file(temporary)
        if found != sha256:
            raise ValueError(f"content has SHA-256 {found[:12]}…, expected {sha256[:12]}…")
        os.replace(temporary, target)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def fetch_index(url: str) -> str:
    """Return the text of an index at a URL; the last one that was read serves off line.

    Raises:
        InputError: it cannot be downloaded and none was read before.
    """
    kept = cache_folder() / "indices" / f"{hashlib.sha256(url.encode()).hexdigest()[:24]}.json"
    problem = f"{OFFLINE_VARIABLE}=1"
    if not is_offline():
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as reply:
                data = reply.read(MAX_INDEX + 1)
            if len(data) > MAX_INDEX:
                raise InputError(f"{url}: larger than {MAX_INDEX >> 20} MiB, no index of models")
            text = data.decode("utf-8")
            kept.parent.mkdir(parents=True, exist_ok=True)
            temporary = kept.with_name(f".{kept.name}.{os.getpid()}")
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, kept)
            return text
        except (OSError, UnicodeDecodeError) as error:
            problem = str(getattr(error, "reason", None) or error)
    if kept.is_file():
        logger.warning("%s: %s; using the index read before", url, problem)
        return kept.read_text(encoding="utf-8")
    raise InputError(f"{url}: cannot be read ({problem}), and no earlier copy is in the cache")
