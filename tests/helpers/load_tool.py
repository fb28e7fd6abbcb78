# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Loads files of tools/ and datasets/, which are no packages."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def load_tool(name, folder="tools"):
    """Return a file of tools/ (or another folder) as a module."""
    spec = importlib.util.spec_from_file_location(f"tool_{name}", ROOT / folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
