# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""What every test starts with."""

import logging
import sys

import pytest

_NAMES = ("", "detectron2", "fvcore", "wsis_d2")


@pytest.fixture(autouse=True)
def _no_log_handlers_of_other_tests():
    """A tool's set-up adds handlers, whose captured stream is closed when its test has ended."""
    before = {name: list(logging.getLogger(name).handlers) for name in _NAMES}
    yield
    for name, handlers in before.items():
        logger = logging.getLogger(name)
        for handler in [h for h in logger.handlers if h not in handlers]:
            logger.removeHandler(handler)
            handler.close()
        logger.propagate = True
    if "detectron2.utils.logger" in sys.modules:
        sys.modules["detectron2.utils.logger"].setup_logger.cache_clear()
