# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Where the optional reference data lies: a folder ``shared/data`` beside the checkout."""

import os
from pathlib import Path

import pytest

_DEFAULT = Path(__file__).resolve().parents[3] / "shared" / "data"


def shared_data(name: str) -> Path:
    """Return the folder of one reference data set, or skip the calling test with the reason.

    ``WSIS_D2_SHARED_DATA`` names another folder than ``../shared/data``.
    """
    folder = Path(os.environ.get("WSIS_D2_SHARED_DATA", _DEFAULT)) / name
    if not folder.is_dir():
        pytest.skip(f"reference data not there: {name} (set WSIS_D2_SHARED_DATA)")
    return folder
