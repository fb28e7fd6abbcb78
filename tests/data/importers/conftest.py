# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Two photographs that importers find."""

import pytest
from helpers.annotation_writers import draw_pictures


@pytest.fixture
def photos(tmp_path):
    return draw_pictures(tmp_path / "photos", "a.png", "b.png")
