# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""YAML files from anywhere: read as plain values, refused where aliases expand without end."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from wsis_d2.utils.errors import InputError

# A config of Detectron2 with every key has about a thousand.
_MOST_VALUES = 100_000


def parse_yaml(
    text: str,
    source: str | os.PathLike,
    loader: type = yaml.SafeLoader,
    unread: Collection[str] = (),
) -> Any:
    """Return the value of a YAML text; nothing in it is run.

    Args:
        text: the text.
        source: the file, for messages.
        loader: ``yaml.SafeLoader``, or ``yaml.BaseLoader``, which leaves all scalars texts.
        unread: keys that the caller passes over, which may be there twice.

    Raises:
        InputError: no YAML, objects beside plain values, nested too deeply, a key twice in one
            mapping, or aliases that name more than 100 000 values: ten lines may name a thousand
            million.
    """
    try:
        reader = loader(text)
        node = reader.get_single_node()
        if node is None:
            return None
        if _unfolded(node, {}) > _MOST_VALUES:
            raise InputError(f"{source}: its aliases (*name) unfold to too many values")
        if (twice := _key_twice(node, unread)) is not None:
            raise InputError(
                f"{source}: line {twice.start_mark.line + 1}: {twice.value} is there twice in one "
                "place, and the first would not count; join the two"
            )
        return reader.construct_document(node)
    except InputError:
        raise
    except RecursionError:
        raise InputError(f"{source}: is nested too deeply, or contains itself") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{source}: no valid YAML ({reason})") from None


def _unfolded(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many values a node has where each alias is written out."""
    if id(node) not in known:
        known[id(node)] = _MOST_VALUES + 1  # of a node that holds itself
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in parts for part in pair]
        known[id(node)] = 1 + sum(_unfolded(part, known) for part in parts)
    return known[id(node)]


def _key_twice(node: yaml.Node, unread: Collection[str]) -> yaml.ScalarNode | None:
    """Return a key that a mapping has before and that is read, None where there is none."""
    if not isinstance(node, yaml.CollectionNode):
        return None
    seen = set()
    for part in node.value:
        key, value = part if isinstance(node, yaml.MappingNode) else (None, part)
        # Of several "<<" all are merged.
        if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
            if key.value in seen and key.value not in unread:
                return key
            seen.add(key.value)
        if (found := _key_twice(value, unread)) is not None:
            return found
    return None


def check_config_file(path: str, *, bases: bool = True, above: Collection[str] = ()) -> None:
    """Refuse a config file that Detectron2's reader would not come to an end with.

    Args:
        path: the file, and through ``_BASE_`` those it is based on.
        bases: whether it may be based on others; a released model's may not name files or URLs.
        above: files that are based on it.

    Raises:
        InputError: as :func:`parse_yaml`, no mapping, or a ``_BASE_`` that leads back to itself.
    """
    from detectron2.utils.file_io import PathManager

    try:
        with PathManager.open(path, "r") as file:
            content = parse_yaml(file.read(), path)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no text ({error.reason})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds {type(content).__name__}, expected keys and values")
    names = content.get("_BASE_", [])
    names = names if isinstance(names, list) else [names]
    if names and not bases:
        raise InputError(f"{path}: has a _BASE_, expected a complete config")
    for name in names:
        if not isinstance(name, str):
            raise InputError(f"{path}: _BASE_ is {name!r:.60}, expected a file's name")
        base = os.path.expanduser(name)
        if not base.startswith(("/", "https://", "http://")):
            base = os.path.join(os.path.dirname(path), base)
        if os.path.normpath(base) in (*map(os.path.normpath, above), os.path.normpath(path)):
            raise InputError(f"{path}: _BASE_ {name} leads back to itself")
        if "://" not in base and not os.path.isfile(base):
            raise InputError(f"{path}: _BASE_ {name}: no such file")
        check_config_file(base, above=(*above, path))


def with_bases(path: str | os.PathLike) -> list[Any]:
    """Return what a config file and those that it is based on say.

    What is wrong with them their reader tells.

    Raises:
        InputError: as :func:`parse_yaml`.
    """
    files, contents = [Path(path)], []
    for file in files:
        text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
        content = parse_yaml(text, file)
        contents.append(content)
        bases = content.get("_BASE_", []) if isinstance(content, dict) else []
        for base in bases if isinstance(bases, list) else [bases]:
            other = file.parent / Path(str(base)).expanduser()
            if other.resolve() not in [known.resolve() for known in files]:
                files.append(other)
    return contents
