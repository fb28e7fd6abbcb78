# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Which picture an id stands for: files meet by image id, and ids are numbered anew at will."""

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
    def _ids(self) -> dict[str, set[str]]:
        """Name without folder and suffix to the ids that have it."""
        ids: dict[str, set[str]] = {}
        for image in self._images:
            if isinstance(image, Mapping) and isinstance(image.get("file_name"), str):
                ids.setdefault(picture_stem(image["file_name"]), set()).add(str(image.get("id")))
        return ids

    def check(self, image_id: int | str, file_name: Any, source: str) -> None:
        """Make sure that an id of another file means the same picture here.

        Names alone are compared, without folder and suffix; a name that is not here says nothing.

        Args:
            image_id: the id in the other file.
            file_name: the picture's name there; None: it has none.
            source: the other file, for messages.

        Raises:
            InputError: the name is here, under another id.
        """
        if not isinstance(file_name, str):
            return
        ids = self._ids.get(picture_stem(file_name), {str(image_id)})
        if str(image_id) not in ids:
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
