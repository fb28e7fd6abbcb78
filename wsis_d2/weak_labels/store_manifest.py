# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The manifest of a label store: whether a folder is one, and of which recipe."""

import os
from collections.abc import Mapping
from pathlib import Path

from wsis_d2.utils.errors import InputError
from wsis_d2.utils.json_io import read_json
from wsis_d2.weak_labels.recipe import as_json, recipe_differences, recipe_hash

SCHEMA = 1
# What makes a store, for messages.
COMMAND = "tools/make_weak_labels.py {boxes,tags,merge,all} ... --output STORE"


def check_recipe(
    path: str | os.PathLike, recipe: Mapping, categories: list[dict], force: bool = False
) -> str:
    """Return the recipe's hash, if a store of it can begin or go on at ``path``.

    Args:
        path: the folder; nothing is written.
        recipe, categories: as for :meth:`wsis_d2.weak_labels.store.LabelStore.create`.
        force: labels that are there may be thrown away.

    Raises:
        InputError: ``path`` holds another recipe and ``force`` is off, or is a folder with files
            but no store, or a file.
    """
    path = Path(path)
    recipe, categories = as_json(recipe, categories)
    wanted = recipe_hash(recipe, categories)
    if path.exists() and not path.is_dir():
        raise InputError(f"--output {path}: is a file, a folder was expected")
    if (path / "manifest.json").exists():
        held = read_manifest(path)
        if held["recipe_hash"] != wanted and not force:
            changed = ", ".join(recipe_differences(held, recipe, categories)) or "unknown"
            raise InputError(
                f"{path}: holds labels of recipe {held['recipe_hash'][:12]}, asked for was "
                f"recipe {wanted[:12]} (different: {changed}); name another --output, or add "
                "--force to throw the old labels away"
            )
    elif path.is_dir() and any(file.name != ".tmp" for file in path.iterdir()):
        raise InputError(
            f"--output {path}: a folder with files in it that is no label store "
            "(no manifest.json); name a new or an empty folder"
        )
    return wanted


def read_manifest(path: Path) -> dict:
    """Return the manifest of a store.

    Raises:
        InputError: there is no store at ``path``, or it is of another schema.
    """
    file = path / "manifest.json"
    if not file.is_file():
        raise InputError(f"{path}: no label store (no manifest.json); make one with: {COMMAND}")
    manifest = read_json(file)
    try:
        schema = manifest["schema"]
        if not isinstance(manifest["recipe"], dict) or not isinstance(manifest["recipe_hash"], str):
            raise TypeError("recipe or recipe_hash")
        manifest["categories"]
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(f"{file}: not the manifest of a label store ({error!r})") from None
    if schema != SCHEMA:
        raise InputError(f"{file}: schema {schema}, this version reads {SCHEMA}; make it again")
    return manifest
