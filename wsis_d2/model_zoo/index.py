# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The index of released models, ``model_zoo.json``, and where it is looked for.

::

    {"schema": 1, "models": {"Sample-Panoptic/instance_weak": {
        "checkpoint": {"file": "weights/instance_weak_1a2b3c4d.pth", "sha256": "...", "size": 1234,
                       "mirrors": ["https://elsewhere/instance_weak_1a2b3c4d.pth"]},
        "config":   {"file": "weights/instance_weak_1a2b3c4d.yaml", "sha256": "...", "size": 12},
        "metadata": {"file": "weights/instance_weak_1a2b3c4d.json", "sha256": "...", "size": 12},
        "card": "weights/instance_weak_1a2b3c4d.md",
        "metrics": {"panoptic_seg": {"PQ": 61.2}}, "recipe_hash": "...", "version": "0.1.0"}}}

``file`` is relative to the index. ``WSIS_D2_MODEL_ZOO`` names folders or URLs that hold an index,
separated by spaces; they are asked first, in order, and the one in the package last.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from wsis_d2.model_zoo.download import fetch_index, is_url
from wsis_d2.utils.errors import InputError, os_reason

ZOO_VARIABLE = "WSIS_D2_MODEL_ZOO"
INDEX_NAME = "model_zoo.json"
PACKAGE = Path(__file__).parent
SCHEMA = 1


class NotReleasedError(InputError, RuntimeError):
    """No trained model of that name is released (a RuntimeError, as in Detectron2's zoo)."""


@dataclass(frozen=True)
class Entry:
    """A released model and the place its index lies.

    Attributes:
        name: the model's id.
        base: folder or URL of the index.
        fields: what the index says.
    """

    name: str
    base: str
    fields: dict[str, Any]

    def addresses(self, part: str) -> list[str]:
        """Return paths or URLs of ``checkpoint``, ``config`` or ``metadata``, the best first."""
        found = self.fields[part]
        return [join(self.base, found["file"]), *found.get("mirrors", [])]


def join(base: str, name: str) -> str:
    """Return a file's path or URL below a folder or URL."""
    return f"{base.rstrip('/')}/{name}" if is_url(base) else str(Path(base) / name)


def model_name(config_path: str) -> str:
    """Return the id of a model: the config's path without its suffix.

    Raises:
        InputError: a path that leaves the configs.
    """
    name = str(config_path).replace(os.sep, "/")
    name = name[:-5] if name.endswith(".yaml") else name
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts:
        raise InputError(
            f"model {config_path!r}: expected a config's path below configs/, such as "
            "Sample-Panoptic/instance_weak"
        )
    return name


def places() -> list[str]:
    """Return the folders and URLs that hold an index, in the order they are asked."""
    return [*os.environ.get(ZOO_VARIABLE, "").split(), str(PACKAGE)]


def read_index(place: str) -> dict[str, dict[str, Any]]:
    """Return the models of the index in a folder or at a URL.

    Raises:
        InputError: missing, no JSON, another schema, or an entry that lacks a field or names a
            file outside the place.
    """
    address = join(place, INDEX_NAME)
    if is_url(place):
        return fetch_index(address, lambda text: _models(text, address))
    return _models(_read(Path(address)), address)


def _models(text: str, address: str) -> dict[str, dict[str, Any]]:
    """Check the text of an index."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{address}: no valid JSON ({str(error)[:100]})") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise InputError(f"{address}: expected the index of a model zoo, schema {SCHEMA}")
    models = content.get("models")
    if not isinstance(models, dict):
        raise InputError(f"{address}: 'models' is no object")
    for name, fields in models.items():
        for part in ("checkpoint", "config", "metadata"):
            _check(fields.get(part) if isinstance(fields, dict) else None, part, name, address)
    return models


def _check(found: Any, part: str, name: str, address: str) -> None:
    where = f"{address}: model {name}: {part}"
    if not isinstance(found, dict) or not all(
        isinstance(found.get(key), str) for key in ("file", "sha256")
    ):
        raise InputError(f"{where} has no 'file' and 'sha256'")
    path = PurePosixPath(found["file"])
    if path.is_absolute() or ".." in path.parts or "://" in found["file"]:
        raise InputError(f"{where}: file {found['file']!r:.200} leaves the zoo's folder")
    if len(found["sha256"]) != 64 or set(found["sha256"]) - set("0123456789abcdef"):
        raise InputError(f"{where}: sha256 {found['sha256']!r:.100} is no SHA-256")
    size = found.get("size", 0)
    if type(size) is not int or size < 0:
        raise InputError(f"{where}: size {size!r:.60}, expected a number of bytes")
    mirrors = found.get("mirrors", [])
    if not isinstance(mirrors, list) or not all(isinstance(m, str) and is_url(m) for m in mirrors):
        raise InputError(f"{where}: mirrors {mirrors!r:.200}, expected a list of URLs")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file; {ZOO_VARIABLE} must name folders or URLs with an index, made "
            "by tools/publish_model.py"
        ) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {os_reason(error)}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read ({error})") from None


def find_entry(config_path: str) -> Entry:
    """Return the release of a model.

    Raises:
        NotReleasedError: no index has it; says how to train it.
        InputError: an index cannot be read.
    """
    name = model_name(config_path)
    known: list[str] = []
    for place in places():
        models = read_index(place)
        if name in models:
            return Entry(name, place, models[name])
        known += models
    released = ", ".join(dict.fromkeys(known)) or "none"
    raise NotReleasedError(
        f"{name}: no trained model of that name is released (released: {released}); train it with: "
        f"tools/train_net.py --config-file configs/{name}.yaml, or name a zoo that has it in "
        f"{ZOO_VARIABLE}"
    )
