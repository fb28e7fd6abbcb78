# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""What the commands that prepare the public datasets take and print."""

import argparse
import os
from pathlib import Path
from typing import Any

from wsis_d2.utils.errors import InputError
from wsis_d2.utils.processes import usable_cores


def command_parser(description: str, examples: str, tags: bool = False) -> argparse.ArgumentParser:
    """Return a parser with the options that every preparation command has.

    Args:
        description: the command's docstring.
        examples: calls of it, shown last.
        tags: also which classes ``image_tags`` name.
    """
    parser = argparse.ArgumentParser(
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root = os.environ.get("DETECTRON2_DATASETS", "datasets")
    parser.add_argument("--root", type=Path, default=Path(root), help="where the data sets lie")
    if tags:
        parser.add_argument(
            "--tags", choices=("stuff", "all"), default="stuff", help="classes that tags name"
        )
    parser.add_argument("--workers", type=int, default=usable_cores())
    parser.add_argument("--force", action="store_true", help="redo images that are done")
    parser.add_argument("--check", action="store_true", help="check the files, write nothing")
    parser.add_argument(
        "--allow-partial", action="store_true", help="allow other counts than the official ones"
    )
    return parser


def expect_count(name: str, found: int, expected: int, *, partial: bool, hint: str) -> None:
    """Raise unless a list has the length of the official release.

    Args:
        name: what was counted.
        found, expected: numbers of images.
        partial: the user said that the tree is incomplete on purpose.
        hint: what to do about it.
    """
    if found != expected and not partial:
        raise InputError(
            f"{name}: found {found} images, the official release gives {expected}; {hint}, or add "
            "--allow-partial if the tree is incomplete on purpose"
        )


def print_manifest(split: str, manifest: dict[str, Any]) -> None:
    """Print one split's counts."""
    counts = ", ".join(f"{key} {value}" for key, value in manifest["counts"].items())
    print(
        f"{split}: {manifest['images']} images, {manifest['boxes']} boxes "
        f"({manifest['groups']} groups), {manifest['segments']} segments"
        + (f"; {counts}" if counts else "")
    )
