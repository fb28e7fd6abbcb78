# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Where damaged files are put, and what all sound ones tell of."""

import functools
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from fuzz.damage import Choices, damaged_json

CLASSES = ["cow", "dog"]
CATEGORIES = [
    {"id": 3, "name": "cow", "isthing": 1, "color": [255, 0, 0]},
    {"id": 5, "name": "sky", "isthing": 0, "color": [0, 0, 255]},
]
SIZE = (12, 16)  # height, width
TRUTH = {"a.png": (16, 12, [("cow", 1, 2, 8, 6)]), "b.png": (16, 12, [("dog", 3, 3, 5, 5)])}


@functools.cache
def base() -> Path:
    """A folder with two pictures in images/; it is removed when the process ends."""
    import atexit

    folder = Path(tempfile.mkdtemp(prefix="wsis_d2_fuzz_"))
    owner = os.getpid()
    atexit.register(lambda: os.getpid() == owner and shutil.rmtree(folder, ignore_errors=True))
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for name in TRUTH:
        Image.fromarray(rng.integers(0, 255, (*SIZE, 3), np.uint8)).save(folder / "images" / name)
    return folder


def put(name: str, content: bytes) -> Path:
    path = base() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def put_json(name: str, value: object, choices: Choices) -> Path:
    return put(name, json.dumps(damaged_json(value, choices)).encode())
