# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""JSON files: read though they may be missing, cut off or hostile, and written whole."""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from wsis_d2.utils.errors import InputError, os_reason
from wsis_d2.utils.files import write_bytes


def read_json(
    path: str | os.PathLike, object_hook: Callable[[dict], Any] | None = None, missing: str = ""
) -> Any:
    """Return a JSON file's content.

    Args:
        path: the file.
        object_hook: called with each object as it is read, returns what takes its place.
        missing: what to say of a file that is not there, e.g. what makes it.

    Raises:
        InputError: not there, not readable, truncated, no JSON, nested too deeply, or with a
            number of more digits than Python reads; the file is named.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            return json.load(file, object_hook=object_hook)
    except FileNotFoundError:
        raise InputError(f"{path}: {missing or 'no such file'}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {os_reason(error)}") from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InputError(
            f"{path}: no valid JSON, or cut off ({reason.splitlines()[0]}); export or copy it again"
        ) from None


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested objects by their keys, joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def write_json(path: str | os.PathLike, content: Any, indent: int | None = None) -> None:
    """Write JSON atomically; NaN becomes null, as JSON has no NaN."""
    text = json.dumps(_plain(content), indent=indent, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value
