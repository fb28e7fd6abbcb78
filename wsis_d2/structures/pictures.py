# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Which picture an image id stands for: files are matched by id, and many tools renumber ids."""

import unicodedata
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from wsis_d2.utils.errors import InputError
from wsis_d2.utils.image_io import PICTURE_SUFFIXES


class PictureNames:
    """The pictures that a file names by id.

    Args:
        images: ``id`` and ``file_name`` each, as in COCO; entries without a name are passed over.
        source: the file, for messages.
    """

    def __init__(self, images: Iterable[Any], source: str) -> None:
        self._images = images
        self._source = source

    @cached_property
    def _entries(self) -> dict[str, list[tuple[str, str]]]:
        """Name without folder and suffix to (name, id) of the images that have it."""
        entries: dict[str, list[tuple[str, str]]] = {}
        for image in self._images:
            if isinstance(image, Mapping) and isinstance(image.get("file_name"), str):
                name = image["file_name"]
                entries.setdefault(picture_stem(name), []).append((name, str(image.get("id"))))
        return entries

    def ids(self, file_name: str) -> set[str]:
        """Return the ids here of pictures of a name.

        Of several of one name in different folders those count that share most folders with it; of
        those, the one of its suffix where there is one.
        """
        named = self._entries.get(picture_stem(file_name), [])
        if len(named) > 1:
            shared = [shared_folders(name, file_name) for name, _ in named]
            named = [entry for entry, n in zip(named, shared, strict=True) if n == max(shared)]
            own = PurePosixPath(file_name).suffix
            named = [entry for entry in named if PurePosixPath(entry[0]).suffix == own] or named
        return {image_id for _, image_id in named}

    def check(self, image_id: int | str, file_name: Any, source: str) -> None:
        """Make sure that an id of another file means the same picture here.

        Names are compared without suffix, and without folders where only one picture here has the
        name; a name that is not here says nothing.

        Args:
            image_id: the id in the other file.
            file_name: the picture's name there; None: it has none.
            source: the other file, for messages.

        Raises:
            InputError: the name is here, under another id.
        """
        if not isinstance(file_name, str):
            return
        ids = self.ids(file_name)
        if ids and str(image_id) not in ids:
            raise InputError(
                f"{source}: image id {image_id} is {PurePosixPath(file_name).name}, whose id in "
                f"{self._source} is {min(ids)}; files used together must number their images alike"
            )


def picture_stem(file_name: str) -> str:
    """Return a picture's name without folder and suffix; spellings of one name are one."""
    name = file_name.replace("\\", "/").rpartition("/")[2]
    stem, dot, suffix = name.rpartition(".")
    if dot and f".{suffix.lower()}" in PICTURE_SUFFIXES:
        name = stem
    return unicodedata.normalize("NFC", name)


def shared_folders(first: str, second: str) -> int:
    """Return how many of the last folders of two paths are the same."""
    count = 0
    for a, b in zip(_folders(first), _folders(second), strict=False):
        if a != b:
            break
        count += 1
    return count


def _folders(file_name: str) -> list[str]:
    """Return the folders of a path, the last first."""
    return unicodedata.normalize("NFC", file_name).replace("\\", "/").split("/")[-2::-1]
