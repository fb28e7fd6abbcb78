# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Label pictures: the fast reader gives what Pillow gives, of whole files and of damaged ones."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from wsis_d2.data import panoptic_format
from wsis_d2.data.panoptic_format import read_panoptic_png, write_panoptic_png
from wsis_d2.structures.segments import picture_ids
from wsis_d2.utils.errors import InputError


@pytest.fixture
def with_fast_reader():
    if panoptic_format.fast_png is None:
        pytest.skip("kornia-rs is not installed")


def random_picture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    picture = np.zeros((height, width, 3), np.uint8)
    for _ in range(6):
        y, x = rng.integers(0, height), rng.integers(0, width)
        picture[y : y + height // 3 + 1, x : x + width // 3 + 1] = rng.integers(0, 256, 3)
    return picture


def outcome(path, fast):
    """What reading gives: a picture, or None where the file is refused."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(panoptic_format, "fast_png", fast)
        try:
            return panoptic_format.read_id_picture(path)
        except InputError as error:
            assert str(path) in str(error)
            return None


def test_ids_are_red_green_blue_in_base_256(tmp_path):
    ids = np.array([[0, 1, 255, 256], [65535, 65536, 70000, 256**3 - 1]], np.int32)
    write_panoptic_png(tmp_path / "a.png", ids)
    with Image.open(tmp_path / "a.png") as image:
        assert image.getpixel((2, 1)) == (70000 % 256, 70000 // 256 % 256, 70000 // 65536)
    np.testing.assert_array_equal(read_panoptic_png(tmp_path / "a.png"), ids)
    assert picture_ids(np.array([[7, 0, 0], [0, 1, 0]], np.uint8)).tolist() == [7, 256]


@pytest.mark.parametrize("damage", ["none", "truncated", "bit"])
def test_fast_reader_equals_pillow(tmp_path, with_fast_reader, damage):
    rng = np.random.default_rng(0)
    path = tmp_path / "a.png"
    refused = 0
    for trial in range(60):
        picture = random_picture(rng, *rng.integers(1, 80, size=2))
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG", compress_level=int(rng.integers(0, 10)))
        data = bytearray(buffer.getvalue())
        if damage == "truncated":
            data = data[: rng.integers(1, len(data))]
        elif damage == "bit":
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        fast, slow = outcome(path, panoptic_format.fast_png), outcome(path, None)
        if slow is None:
            refused += 1
            # A bit behind the pixels, at which only one of them looks, changes none.
            assert fast is None or (damage == "bit" and np.array_equal(fast, picture)), trial
            continue
        np.testing.assert_array_equal(fast, slow)
        if damage == "none":
            np.testing.assert_array_equal(fast, picture)
    assert (refused > 0) == (damage != "none")


def test_ids_of_16_bits_a_channel_are_refused(tmp_path):
    """Pillow keeps the upper 8, of which small ids have none: all of a truth would be void."""
    ids = np.full((2, 3, 3), 5, np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), ids)
    with pytest.raises(InputError, match="a.png: has 16 bits a channel.*save it with 8"):
        panoptic_format.read_id_picture(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["RGBA", "palette"])
def test_the_same_colours_in_other_kinds_are_the_same_ids(tmp_path, kind):
    picture = random_picture(np.random.default_rng(1), 20, 30)
    image = Image.fromarray(picture)
    if kind == "RGBA":
        image.putalpha(Image.fromarray((np.arange(600) % 256).astype(np.uint8).reshape(20, 30)))
    elif kind == "palette":  # as programs leave it that make PNGs smaller
        colors, index = np.unique(picture.reshape(-1, 3), axis=0, return_inverse=True)
        image = Image.fromarray(index.reshape(20, 30).astype(np.uint8), "P")
        image.putpalette(colors.ravel().tolist())
    image.save(tmp_path / "a.png", optimize=kind == "palette")
    np.testing.assert_array_equal(panoptic_format.read_id_picture(tmp_path / "a.png"), picture)


@pytest.mark.parametrize("mode", ["L", "I;16"])
def test_pictures_of_other_kinds_are_refused(tmp_path, mode):
    image = Image.fromarray(random_picture(np.random.default_rng(1), 20, 30)).convert("L")
    if mode == "I;16":
        image = Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30))
    image.save(tmp_path / "a.png")
    with pytest.raises(InputError, match=f"a.png: a picture of mode {mode}, expected RGB"):
        panoptic_format.read_id_picture(tmp_path / "a.png")
