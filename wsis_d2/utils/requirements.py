# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Errors for missing packages, with the command that installs them."""

import importlib.util
import re
from importlib import metadata
from types import ModuleType

from wsis_d2.utils.errors import InputError

MINIMUM = (0, 6)
INSTALL = "pip install ./packaging/detectron2"


def detectron2_version() -> str | None:
    """Return the version of the installed Detectron2, None where there is none."""
    if importlib.util.find_spec("detectron2") is None:
        return None
    try:
        return metadata.version("detectron2")
    except metadata.PackageNotFoundError:
        # A checkout on the path, without metadata.
        import detectron2

        return getattr(detectron2, "__version__", "0")


def check_detectron2() -> None:
    """Raise ImportError with the command that installs Detectron2, unless 0.6 or newer is there."""
    version = detectron2_version()
    if version is None:
        raise ImportError(
            f"wsis_d2 needs Detectron2 0.6 or newer and none is installed: run `{INSTALL}` in the "
            "checkout of wsis_d2 (or `make setup`)."
        )
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
    if numbers < MINIMUM:
        raise ImportError(
            f"wsis_d2 needs Detectron2 0.6 or newer, found {version}: run `pip uninstall -y "
            f"detectron2 && {INSTALL}` in the checkout of wsis_d2."
        )


def import_optional(module: str, extra: str) -> ModuleType:
    """Import a package of one of the extras.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name != package:
            raise
        raise InputError(
            f"the package {package} is not installed: pip install '.[{extra}]' in the checkout, or "
            f"pip install {package}"
        ) from None
