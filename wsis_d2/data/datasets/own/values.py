# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Values of annotation files: what is a number, and how a value stands in a message."""

import json
from typing import Any


def is_number(value: Any) -> bool:
    """Whether ``value`` is an int or float of sane size (bool is not; NaN is a float)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return not isinstance(value, int) or abs(value) < 2**53


def shorten(value: Any, limit: int = 80) -> str:
    """A value for an error message: one line, not endless."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
