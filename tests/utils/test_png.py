# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""A PNG is whole, or it is refused: every single bit counts."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from wsis_d2.data import panoptic_format
from wsis_d2.data.datasets.builtin.segments import read_labels
from wsis_d2.data.panoptic_format import read_panoptic_png, write_panoptic_png
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.image_io import read_label_png, read_picture
from wsis_d2.utils.png import check_png


def label_map():
    labels = np.zeros((30, 41), np.uint8)
    labels[4:17, 6:22], labels[20:, 25:] = 3, 7
    return labels


def png(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def test_no_flipped_bit_makes_another_label_map(tmp_path):
    """Pillow reads every fourth of these files as another map."""
    path = tmp_path / "a.png"
    sound = png(Image.fromarray(label_map()))
    path.write_bytes(sound)
    np.testing.assert_array_equal(read_label_png(path), label_map())
    for bit in range(8 * len(sound)):
        broken = bytearray(sound)
        broken[bit // 8] ^= 1 << bit % 8
        path.write_bytes(broken)
        with pytest.raises(InputError, match=r"a\.png: "):
            read_label_png(path)


@pytest.mark.parametrize("fast", [True, False])
def test_no_flipped_bit_makes_other_segments(tmp_path, monkeypatch, fast):
    path = tmp_path / "a.png"
    ids = label_map() * np.int32(70_001)
    write_panoptic_png(path, ids)
    sound = path.read_bytes()
    if not fast:
        monkeypatch.setattr(panoptic_format, "fast_png", None)
    for bit in range(0, 8 * len(sound), 3):
        broken = bytearray(sound)
        broken[bit // 8] ^= 1 << bit % 8
        path.write_bytes(broken)
        try:
            found = read_panoptic_png(path)
        except InputError as error:
            assert "a.png: " in str(error)
        else:  # a bit behind the pixels
            np.testing.assert_array_equal(found, ids)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "I;16"])
def test_what_pillow_writes_is_whole(tmp_path, mode):
    image = Image.fromarray(label_map())
    image = (
        Image.fromarray(label_map().astype(np.uint16)) if mode == "I;16" else image.convert(mode)
    )
    for bits in (1, 2, 4, 8) if mode == "P" else (None,):
        content = png(image, **({"bits": bits} if bits else {}))
        (tmp_path / "a.png").write_bytes(content)
        check_png(tmp_path / "a.png")
        (tmp_path / "a.png").write_bytes(content[:-1])
        with pytest.raises(ValueError, match="cut off"):
            check_png(tmp_path / "a.png")


def parts_of(content):
    at = 8
    while at < len(content):
        (length,) = struct.unpack_from(">I", content, at)
        yield content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        at += 12 + length


def joined(parts):
    made = b"\x89PNG\r\n\x1a\n"
    for name, body in parts:
        made += struct.pack(">I", len(body)) + name + body
        made += struct.pack(">I", zlib.crc32(name + body))
    return made


def test_an_interlaced_picture_and_pixels_in_many_parts_are_whole(tmp_path):
    """Interlaced by hand, pass by pass; Pillow reads the same pixels from it."""
    labels = label_map()
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
              (1, 0, 2, 1))  # fmt: skip
    rows = b"".join(
        b"\0" + row.tobytes() for y, x, down, right in passes for row in labels[y::down, x::right]
    )
    packed = zlib.compress(rows)
    header = struct.pack(">IIBBBBB", 41, 30, 8, 0, 0, 0, 1)
    data = [(b"IDAT", packed[k : k + 7]) for k in range(0, len(packed), 7)]
    path = tmp_path / "a.png"
    path.write_bytes(joined([(b"IHDR", header), *data, (b"IEND", b"")]))
    np.testing.assert_array_equal(read_label_png(path), labels)
    shorter = zlib.compress(rows[:-1])
    path.write_bytes(joined([(b"IHDR", header), (b"IDAT", shorter), (b"IEND", b"")]))
    with pytest.raises(InputError, match=rf"take {len(rows)} bytes, it holds {len(rows) - 1}"):
        read_label_png(path)


@pytest.mark.parametrize("read", [read_picture, read_label_png])
def test_rows_that_are_missing_are_no_zeros(tmp_path, read):
    """The file is sound but for its last rows, whose pixels Pillow takes for zeros."""
    parts = dict(parts_of(png(Image.fromarray(label_map() + 1))))
    rows = zlib.decompress(parts[b"IDAT"])
    path = tmp_path / "a.png"
    path.write_bytes(joined([*{**parts, b"IDAT": zlib.compress(rows[: 20 * 42])}.items()]))
    assert cv2.imread(str(path), cv2.IMREAD_UNCHANGED) is None  # libpng refuses it too
    with pytest.raises(InputError, match=r"a\.png: .*take 1260 bytes, it holds 840"):
        read(path)


def test_two_headers_are_refused_before_memory_is_taken(tmp_path):
    parts = list(parts_of(png(Image.fromarray(label_map()))))
    huge = struct.pack(">II", 16, 6_000_000) + parts[0][1][8:]
    path = tmp_path / "a.png"
    path.write_bytes(joined([parts[0], (b"IHDR", huge), *parts[1:]]))
    with pytest.raises(InputError, match="two headers"):
        read_label_png(path)
    path.write_bytes(joined([(b"IHDR", huge), *parts[1:]]))
    with pytest.raises(InputError, match="take 102000000 bytes, it holds 1260|cannot be read"):
        read_label_png(path)


def test_grey_of_few_bits_is_refused(tmp_path):
    """Pillow scales it: class 1 of 4 bits comes out as 17. A palette's indices stay as they are."""
    labels = np.array([[0, 1, 2, 3]] * 2, np.uint8)
    path = tmp_path / "a.png"
    for bits, packed in ((2, b"\0\x1b"), (4, b"\0\x01\x23")):
        for color, read in ((0, read_label_png), (0, lambda p: read_labels(p, "x")), (3, None)):
            header = struct.pack(">IIBBBBB", 4, 2, bits, color, 0, 0, 0)
            parts = [(b"IHDR", header), (b"PLTE", bytes(12)), (b"IDAT", zlib.compress(2 * packed))]
            path.write_bytes(
                joined([p for p in [*parts, (b"IEND", b"")] if color or p[0] != b"PLTE"])
            )
            if read is None:
                np.testing.assert_array_equal(read_label_png(path), labels)
                continue
            with pytest.raises(InputError, match=f"a.png: has {bits} bits a channel.*with 8"):
                read(path)
