# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Whether a PNG is whole: Pillow stops at the last row, before the checksums behind it."""

import os
import struct
import zlib
from pathlib import Path

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a colour type
# First row and column, and steps, of the passes of an interlaced picture.
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
          (1, 0, 2, 1))  # fmt: skip
_STEP = 1 << 20  # bytes unpacked at a time


def check_png(path: str | os.PathLike) -> None:
    """Raise where a PNG's checksums or the amount of its pixels are wrong.

    One flipped bit of a label map is otherwise another map, and rows that are missing are zeros.
    Memory stays small whatever the header says.

    Raises:
        ValueError: what is wrong.
        OSError: the file cannot be read.
    """
    data = memoryview(Path(path).read_bytes())
    if bytes(data[:8]) != _SIGNATURE:
        raise ValueError("it does not begin as a PNG does")
    at, unpacked = 8, 0
    wanted: int | None = None
    unpacker = zlib.decompressobj()
    while True:
        if at + 12 > len(data):
            raise ValueError("it is cut off")
        (length,) = struct.unpack_from(">I", data, at)
        name, content = bytes(data[at + 4 : at + 8]), data[at + 8 : at + 8 + length]
        if at + 12 + length > len(data):
            raise ValueError("it is cut off")
        (checksum,) = struct.unpack_from(">I", data, at + 8 + length)
        if zlib.crc32(data[at + 4 : at + 8 + length]) != checksum:
            raise ValueError(f"the checksum of its part {name.decode('latin1')!r} is wrong")
        at += 12 + length
        if name == b"IHDR":
            if wanted is not None:  # Pillow believes the last
                raise ValueError("it has two headers")
            wanted = _bytes_of_rows(content)
        elif name == b"IDAT" and wanted is not None:
            while content and not unpacker.eof and unpacked <= wanted:
                try:
                    unpacked += len(unpacker.decompress(content, _STEP))
                except zlib.error as error:
                    raise ValueError(f"its pixels cannot be unpacked ({error})") from None
                content = memoryview(unpacker.unconsumed_tail)
        elif name == b"IEND":
            break
    if wanted is None or unpacked < wanted or (unpacked == wanted and not unpacker.eof):
        raise ValueError(f"its pixels take {wanted} bytes, it holds {unpacked}")


def _bytes_of_rows(header: memoryview) -> int:
    """The bytes that a picture unpacks to: each row begins with its filter."""
    if len(header) < 13:
        raise ValueError("its header is cut off")
    width, height, depth, color, _, _, interlaced = struct.unpack(">IIBBBBB", header[:13])
    if color not in _CHANNELS:
        raise ValueError(f"it has an unknown colour type, {color}")
    bits = _CHANNELS[color] * depth
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    total = 0
    for top, left, down, right in passes:
        rows, columns = -(-(height - top) // down), -(-(width - left) // right)
        if rows > 0 and columns > 0:
            total += rows * (1 + -(-columns * bits // 8))
    return total
