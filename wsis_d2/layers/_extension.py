# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Loads the compiled operators and says what is wrong where they cannot be used.

Importing wsis_d2 never fails for want of them; using an operator does, with one of three errors.
"""

import importlib.util
import json
import warnings
from functools import lru_cache
from pathlib import Path

import torch

_PACKAGE = Path(__file__).resolve().parents[1]
_REBUILD = "`pip install --no-build-isolation --force-reinstall --no-deps -e .`"


class ExtensionError(ImportError):
    """The compiled operators cannot be used; the message says why and what to do."""


class ExtensionNotBuiltError(ExtensionError):
    """There is no compiled library."""


class ExtensionMismatchError(ExtensionError):
    """The compiled library was built for another torch."""


class ExtensionWithoutCudaError(ExtensionError):
    """The compiled library has no CUDA part."""


def build_info() -> dict:
    """What the library was built for: keys torch, cuda, architectures, python; {} if unknown."""
    try:
        return json.loads((_PACKAGE / "_build_info.json").read_text())
    except (OSError, ValueError):
        return {}


def library_path() -> Path | None:
    """The compiled library's file, or None where there is none."""
    spec = importlib.util.find_spec("wsis_d2._C")
    return Path(spec.origin) if spec and spec.origin else None


@lru_cache(maxsize=1)
def _load() -> ExtensionError | None:
    """Load the library once; return what went wrong, or None."""
    path = library_path()
    if path is None:
        return ExtensionNotBuiltError(
            "wsis_d2's operators are not built (WSIS_D2_NO_EXTENSION=1, or an unfinished build): "
            f"run {_REBUILD} in the checkout, or use backend='exact' on small images."
        )
    built_for = build_info().get("torch", "another version")
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return ExtensionMismatchError(
            f"wsis_d2's operators were built for torch {built_for} and this is torch "
            f"{torch.__version__}: run {_REBUILD} in the checkout. ({error})"
        )
    if built_for != torch.__version__:
        warnings.warn(
            f"wsis_d2's operators were built for torch {built_for}, this is {torch.__version__}; "
            f"if it fails, run {_REBUILD}",
            stacklevel=3,
        )
    return None


def extension_error() -> ExtensionError | None:
    """Why the operators cannot be used, or None if they can."""
    return _load()


def require_extension(device: torch.device | None = None) -> None:
    """Make sure that ``torch.ops.wsis_d2`` can be used on ``device``.

    Raises:
        ExtensionNotBuiltError, ExtensionMismatchError: see the classes.
        ExtensionWithoutCudaError: ``device`` is a GPU and this build has no CUDA part.
    """
    error = _load()
    if error is not None:
        raise error
    if device is not None and device.type == "cuda" and not build_info().get("cuda"):
        raise ExtensionWithoutCudaError(
            "wsis_d2's operators were built without CUDA and the tensors are on a GPU: "
            f"run FORCE_CUDA=1 {_REBUILD} where nvcc is installed, or move the tensors to the CPU."
        )
