# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""A PNG of a few bytes that claims to be enormous is refused by every reader of labels."""

import struct
import zlib

import pytest
from PIL import Image

from wsis_d2.data.datasets.builtin.segments import image_size
from wsis_d2.data.panoptic_format import read_panoptic_png
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.image_io import picture_size, read_label_png, read_picture


def chunk(kind: bytes, data: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + check


@pytest.mark.parametrize(
    "reader", [read_panoptic_png, read_label_png, image_size, picture_size, read_picture]
)
@pytest.mark.parametrize("size", [(60000, 60000), (16, 6160396)])  # above Pillow's limit, below
def test_a_bomb_is_one_named_error(tmp_path, reader, size):
    colour = 0 if reader is read_label_png else 2
    header = struct.pack(">IIBBBBB", *size, 8, colour, 0, 0, 0)
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )  # fmt: skip
    if reader is image_size and size == (16, 6160396):
        assert reader(bomb) == size[::-1]  # the header alone: nothing is taken for its pixels
        return
    with pytest.raises(InputError, match="bomb.png"):
        reader(bomb)


@pytest.mark.parametrize("reader", [read_panoptic_png, read_label_png, read_picture])
def test_what_shrinks_most_is_taken(tmp_path, reader):
    mode = "L" if reader is read_label_png else "RGB"
    Image.new(mode, (6000, 4000)).save(tmp_path / "black.png", compress_level=9)
    assert reader(tmp_path / "black.png").shape[:2] == (4000, 6000)
