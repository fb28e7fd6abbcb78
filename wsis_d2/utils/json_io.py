# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Reading JSON files that may be missing, cut off or hostile."""

import json
import os
from collections.abc import Callable
from typing import Any

from wsis_d2.utils.errors import InputError


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
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InputError(
            f"{path}: no valid JSON, or cut off ({reason.splitlines()[0]}); export or copy it again"
        ) from None
