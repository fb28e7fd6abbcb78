# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""numba's compiler with a cache that only saves time: without it, code is compiled again.

numba itself refuses to import a function where neither the package's folder nor the user's cache
can be written (an installation of root's, a container without a home folder), and fails a call
where a file of the cache cannot be read or written, as on a full home folder.
"""

import logging
from collections.abc import Callable
from typing import Any

import numba
from numba.core.caching import FunctionCache

logger = logging.getLogger(__name__)


class _OptionalCache(FunctionCache):
    def load_overload(self, *args: Any) -> Any:
        try:
            return super().load_overload(*args)
        except Exception as error:  # a pickle that is cut off raises almost anything
            logger.debug("%s: %s", self.cache_path, error)
            return None

    def save_overload(self, *args: Any) -> None:
        try:
            super().save_overload(*args)
        except Exception as error:  # it reads the index first
            logger.debug("%s: %s", self.cache_path, error)


def njit(**options: Any) -> Callable[[Callable], Callable]:
    """Compile a function as ``numba.njit(**options)`` does, kept between processes if possible."""

    def decorate(function: Callable) -> Callable:
        compiled = numba.njit(**options)(function)
        try:
            compiled._cache = _OptionalCache(function)
        except RuntimeError as error:  # numba found no folder
            logger.debug("%s", error)
        return compiled

    return decorate
