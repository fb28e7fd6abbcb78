# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Where the entries of a COCO file stand, so that a worker reads those of its image alone.

Addition, not in the paper.
"""

import array
import functools
import json
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from wsis_d2.structures.pictures import PictureNames
from wsis_d2.utils.errors import InputError, os_reason

_DECODER = json.JSONDecoder()
_CHUNK = 1 << 20
_SPACE = " \t\r\n"


class CocoIndex:
    """The entries of a COCO result file, or of an object's ``annotations``, by image.

    The file is read through once, a piece at a time; kept are 12 bytes an entry. Offsets count
    bytes, as the text is looked at as Latin-1, in which each byte is one character.

    Attributes:
        path: the file.
        is_object: whether the file is an object with a list ``annotations``, not a list.
        pictures: what an object's ``images`` call its image ids.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        """Read the file through.

        Raises:
            ValueError, KeyError, TypeError, OSError: it is no such file.
        """
        self.path = os.fspath(path)
        places: dict[Any, tuple[array.array, array.array]] = {}
        with open(self.path, "rb") as file:
            text = _Text(file)
            self.is_object = text.peek() == "{"
            images = text.enter_list_of("annotations", also="images") if self.is_object else None
            for start, end, entry in text.entries():
                image_id = entry["image_id"]
                if isinstance(image_id, str) and not image_id.isascii():
                    image_id = json.loads(text.text_of(start, end).encode("latin-1"))["image_id"]
                entry["segmentation"]
                starts, lengths = places.setdefault(
                    id_text(image_id), (array.array("Q"), array.array("L"))
                )
                starts.append(start)
                lengths.append(end - start)
            if self.is_object and images is None:
                images = text.value_behind("images")
        self.pictures = PictureNames(
            [
                {"id": id_text(image.get("id")), "file_name": image.get("file_name")}
                for image in (images if isinstance(images, list) else ())
                if isinstance(image, dict)
            ],
            self.path,
        )
        self._places = {
            key: (np.array(starts, np.uint64), np.array(lengths, np.uint32))
            for key, (starts, lengths) in places.items()
        }

    def entries(self, image_id: int | str) -> list[dict] | None:
        """Return the entries of one image in the file's order, None where it has none."""
        key = id_text(image_id)
        if key not in self._places:
            return None
        found = []
        with open(self.path, "rb") as file:
            for start, length in zip(*self._places[key], strict=True):
                file.seek(int(start))
                found.append(json.loads(file.read(int(length))))
        return found


def id_text(value: Any) -> str:
    """Return an id as text: some tools write 7 as "7" or 7.0."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


@functools.lru_cache(maxsize=1)
def coco_index(path: str, key: str, stamp: tuple[int, ...] = ()) -> CocoIndex:
    """Return the index of a file, made once in a process while ``stamp``, its file_stamp, is one.

    Raises:
        InputError: the file that ``key`` names is no COCO file with masks.
    """
    try:
        return CocoIndex(path)
    except OSError as error:
        raise InputError(f"{key} {path}: cannot be read: {os_reason(error)}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{key} {path}: no COCO result file with masks ({error!r:.200})") from None


class _Text:
    """JSON text read a piece at a time."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._text, self._at, self._offset = "", 0, 0  # offset: of the piece in the file
        self._more()
        if self._text.startswith("\xef\xbb\xbf"):
            self._at = 3

    def peek(self) -> str:
        """Return the next character that is no space; stand on it."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                raise ValueError("the file is cut off")

    def text_of(self, start: int, end: int) -> str:
        """Return what was read last, by its bytes."""
        return self._text[start - self._offset : end - self._offset]

    def enter_list_of(self, key: str, also: str) -> Any:
        """Go on to the list that an object has under ``key``; return what ``also`` is before it."""
        found = None
        self._expect("{")
        while True:
            name = self._value()[2]
            self._expect(":")
            if name == key:
                return found
            start, end, _ = self._value()
            if name == also:
                found = json.loads(self.text_of(start, end).encode("latin-1"))
            if self.peek() == "}":
                raise KeyError(key)
            self._expect(",")

    def value_behind(self, key: str) -> Any:
        """Return what an object has under ``key`` behind the list that was read, else None."""
        found = None
        self._expect("]")
        while self.peek() == ",":
            self._expect(",")
            name = self._value()[2]
            self._expect(":")
            start, end, _ = self._value()
            if name == key:
                found = json.loads(self.text_of(start, end).encode("latin-1"))
        return found

    def entries(self) -> Iterator[tuple[int, int, Any]]:
        """Yield the values of a list with the bytes at which each starts and ends."""
        self._expect("[")
        if self.peek() == "]":
            return
        while True:
            yield self._value()
            if self.peek() == "]":
                return
            self._expect(",")

    def _expect(self, character: str) -> None:
        if self.peek() != character:
            raise ValueError(
                f"{self._text[self._at]!r} at byte {self._offset + self._at}, expected {character}"
            )
        self._at += 1

    def _value(self) -> tuple[int, int, Any]:
        self.peek()
        if self._at > _CHUNK:  # what is behind is needed no more
            self._text, self._offset, self._at = (
                self._text[self._at :], self._offset + self._at, 0
            )  # fmt: skip
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
                # A number at the end of a piece may go on in the next one.
                if end < len(self._text) or not self._more():
                    break
            except json.JSONDecodeError:
                if not self._more():
                    raise
        start, self._at = self._at, end
        return self._offset + start, self._offset + end, value

    def _more(self) -> bool:
        """Read on, as much again as is held, so that a long value costs its length twice."""
        read = self._file.read(max(_CHUNK, len(self._text)))
        self._text += read.decode("latin-1")
        return bool(read)
