# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Damages a sound file as a string of bytes chooses, so that any fuzzer can drive it.

A fuzzer of bytes alone would spend its time on files that are no JSON, no XML or no PNG. Here it
chooses where in a sound file which value takes whose place; zero bytes change nothing more.
"""

import copy
import json
import random
import re
import struct
import zlib
from typing import Any

NASTY = (
    None, True, False, -1, 0, 1, 2**31, 2**63, 10**40, 1.5, -0.0, 1e308, -1e308, float("nan"),
    float("inf"), "", "0", "nan", "\0", "\ud800", "\n", "../../etc/passwd", "/etc/passwd",
    "C:\\a", "a" * 3000, "<script>alert(1)</script>", "\x1b]0;t\x07", "http://[::1", [], {}, [[]],
    [None], {"a": 1}, [0, 0, 0, 0], [1e9, 1e9, 1e9, 1e9], [[[[[[1]]]]]], "=1+1", "é\u202e",
)  # fmt: skip
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")
_WORDS = (
    b"", b"0", b"-1", b"nan", b"inf", b"1e308", b"99999999999999999999", b"\0", b"\xff\xfe",
    b"<", b">", b"&", b'"', b"'", b",", b";", b"\n", b"\r\n", b"{", b"[", b"}", b"]", b"&a *a",
    b"../../etc/passwd", b"\xed\xa0\x80", b"A" * 300, b"<!DOCTYPE a>", b"!!python/name:os.system",
)  # fmt: skip


class Choices:
    """Numbers from a string of bytes; 0 without end when it is used up."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    @property
    def left(self) -> bool:
        return self.at < len(self.data)

    def below(self, count: int) -> int:
        """A number from 0 to below ``count``."""
        size = 1 if count <= 256 else 2 if count <= 65536 else 4
        part = self.data[self.at : self.at + size]
        self.at += size
        return int.from_bytes(part, "big") % max(1, count)

    def of(self, values: Any) -> Any:
        return values[self.below(len(values))]


def damaged_json(value: Any, choices: Choices) -> Any:
    """Return a JSON value with some of its parts removed, repeated, exchanged or replaced."""
    root = [copy.deepcopy(value)]
    while choices.left:
        holder, key = _place(root, choices)
        kind = choices.below(8)
        if kind == 0 and holder is not root:
            del holder[key]
        elif kind == 1 and isinstance(holder, list) and holder is not root:
            holder.insert(key, copy.deepcopy(holder[key]))
        elif kind == 2:
            other, place = _place(root, choices)
            if other is not root and len(json.dumps(root, default=str)) < 1 << 16:
                holder[key] = copy.deepcopy(other[place])
        elif kind == 3 and isinstance(holder, dict):
            holder[str(choices.of(NASTY))] = holder.pop(key)
        else:
            holder[key] = copy.deepcopy(choices.of(NASTY))
    return root[0]


def _place(root: list, choices: Choices) -> tuple[Any, Any]:
    """Walk down from the root; return what holds the place and its key there."""
    holder, key = root, 0
    while isinstance(holder[key], list | dict) and holder[key] and choices.below(8):
        holder = holder[key]
        key = choices.of(sorted(holder, key=str)) if isinstance(holder, dict) else choices.below(
            len(holder))  # fmt: skip
    return holder, key


def damaged_text(data: bytes, choices: Choices) -> bytes:
    """Return a text with numbers and other parts replaced, moved, repeated or cut."""
    while choices.left and data:
        kind = choices.below(4)
        if kind == 0:
            numbers = list(_NUMBER.finditer(data))
            if numbers:
                start, end = choices.of(numbers).span()
                data = data[:start] + choices.of(_WORDS) + data[end:]
        elif kind == 1:
            at = choices.below(len(data))
            data = data[:at] + choices.of(_WORDS) + data[at:]
        else:
            data = damaged_bytes(data, choices, once=True)
    return data


def damaged_bytes(data: bytes, choices: Choices, once: bool = False) -> bytes:
    """Return bytes with some changed, cut out, repeated or cut off."""
    while choices.left and data:
        at = choices.below(len(data))
        kind = choices.below(6)
        if kind == 0:
            data = data[:at]
        elif kind == 1:
            data = data[:at] + data[at + 1 + choices.below(64) :]
        elif kind == 2 and len(data) < 1 << 16:
            data = data[:at] + data[at : at + 1 + choices.below(64)] + data[at:]
        elif kind == 3:
            value = struct.pack(
                choices.of((">I", "<I")), choices.of((0, 1, 2**31, 2**32 - 1, 65536))
            )
            data = data[:at] + value + data[at + 4 :]
        else:
            data = data[:at] + bytes([choices.below(256)]) + data[at + 1 :]
        if once:
            break
    return data


def damaged_png(data: bytes, choices: Choices) -> bytes:
    """Return a PNG whose chunks are damaged and whose checksums are right again."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    while choices.left:
        place, kind = choices.below(len(chunks)), choices.below(5)
        name, body = chunks[place]
        if kind == 0 and len(chunks) > 1:
            del chunks[place]
        elif kind == 1:
            chunks.insert(place, chunks[place])
        elif kind == 2 and name == b"IDAT":
            try:
                body = zlib.compress(damaged_bytes(zlib.decompress(body), choices, once=True))
            except zlib.error:
                body = b""
            chunks[place] = name, body
        elif kind == 3:
            chunks[place] = choices.of((b"tRNS", b"PLTE", b"zTXt", b"iCCP", b"eXIf")), body
        else:
            chunks[place] = name, damaged_bytes(body, choices, once=True)
    parts = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def random_choices(seed: int) -> bytes:
    """Bytes for :class:`Choices` where no fuzzer is at hand."""
    generator = random.Random(seed)
    return generator.randbytes(generator.randint(1, 40))
