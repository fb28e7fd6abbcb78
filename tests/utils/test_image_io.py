# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The reader of photographs: every orientation and kind, and what is refused by name."""

import shlex
import struct
import warnings

import cv2
import numpy as np
import pytest
from helpers.load_tool import load_tool
from helpers.pictures import save, turned
from PIL import Image

from wsis_d2.utils import image_io
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.image_io import explain_size, picture_size, read_picture, read_record


@pytest.fixture(scope="module")
def shown():
    """Smooth colours, each corner another, which JPEG keeps within a few steps."""
    y, x = np.mgrid[:36, :52]
    return np.stack([5 * y, 4 * x, 255 - 3 * y - 2 * x], axis=-1).astype(np.uint8)


LOSSLESS = {"png": {}, "tif": {}, "tiff": {"compression": "tiff_lzw"}, "webp": {"lossless": True}}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [*LOSSLESS, "jpg"])
def test_every_orientation(tmp_path, shown, suffix, orientation):
    path = tmp_path / f"a.{suffix}"
    save(path, shown, orientation, **LOSSLESS.get(suffix, {"quality": 95}))
    found = read_picture(path)
    assert found.dtype == np.uint8 and found.flags.c_contiguous and found.flags.writeable
    assert found.shape == shown.shape
    assert np.abs(found.astype(int) - shown).max() <= (0 if suffix in LOSSLESS else 12)
    assert picture_size(path) == picture_size(path, whole=False) == (52, 36)
    record = {"file_name": str(path), "width": 52, "height": 36}
    assert np.array_equal(read_record(record, "BGR"), found[..., ::-1])
    assert np.array_equal(load_tool("load_exported").read_picture(path), found)


def test_the_size_that_exif_turns_is_explained(tmp_path, shown):
    path = tmp_path / "a.jpg"
    save(path, shown, 6)
    record = {"file_name": str(path), "width": 36, "height": 52}
    with pytest.raises(InputError) as caught:
        read_record(record)
    message = str(caught.value)
    assert message.startswith(f"{path}: has 52 x 36 pixels, its annotation says 36 x 52")
    assert "EXIF orientation 6" in message and "exiftool" in message and "\n" not in message
    save(path, shown)
    assert explain_size(path, (52, 36), (36, 52)).endswith("width and height are exchanged")
    assert explain_size(path, (52, 36), (30, 30)).endswith("says 30 x 30")


def test_broken_exif_is_no_reason_to_fail(tmp_path, shown):
    Image.fromarray(shown).save(tmp_path / "a.jpg", quality=95, exif=b"Exif\0\0II*\0broken")
    assert read_picture(tmp_path / "a.jpg").shape == shown.shape
    save(tmp_path / "b.png", shown, 1)
    exif = Image.Exif()
    exif[0x0112] = 77  # no orientation of the standard
    Image.fromarray(shown).save(tmp_path / "b.png", exif=exif)
    assert np.array_equal(read_picture(tmp_path / "b.png"), shown)


def kinds(folder, shown):
    """Write pictures of all kinds; return {path: the pixels that they must give}."""
    picture = Image.fromarray(shown)
    grey = np.asarray(picture.convert("L"))
    palette = picture.quantize(16)
    alpha = Image.fromarray(np.dstack([shown, np.full(shown.shape[:2], 9, np.uint8)]))
    deep = (grey.astype(np.uint16) << 8) + 77
    flat = {
        "grey.png": (picture.convert("L"), {}),
        "grey.jpg": (picture.convert("L"), {}),
        "bits.png": (picture.convert("1"), {}),
        "greyalpha.png": (picture.convert("LA"), {}),
        "palette.png": (palette, {"transparency": bytes(range(16))}),
        "palette.gif": (palette, {}),
        "frames.gif": (palette, {"save_all": True, "append_images": [palette.rotate(180)]}),
        "pages.tif": (picture, {"save_all": True, "append_images": [picture.rotate(180)]}),
        "cmyk.tif": (picture.convert("CMYK"), {}),
        "cmyk.jpg": (picture.convert("CMYK"), {"quality": 95}),
        "progressive.jpg": (picture, {"progressive": True}),
        "a.webp": (picture, {}),
        "a.bmp": (picture, {}),
        "a.ppm": (picture, {}),
        "with spaces.JPG": (picture, {"format": "JPEG"}),
        "Käse & Brot #1 100% 'x' [2].jfif": (picture, {"format": "JPEG"}),
        "a png in truth.jpg": (picture, {"format": "PNG"}),
    }
    expected = {}
    for name, (image, options) in flat.items():
        image.save(folder / name, **options)
        with Image.open(folder / name) as again:  # what the library makes of it is the truth
            expected[folder / name] = np.asarray(again.convert("RGBA").convert("RGB"))
    alpha.save(folder / "alpha.png")  # what transparency hides is shown, as it is to Detectron2
    expected[folder / "alpha.png"] = shown
    packed = {"compression": "tiff_lzw"}
    for name, options in (
        ("deep.png", {}), ("deep.tif", {}), ("deep_lzw.tif", packed), ("deep.pgm", {}),
    ):  # fmt: skip
        Image.fromarray(deep).save(folder / name, **options)
        expected[folder / name] = np.repeat(grey[..., None], 3, axis=2)
    return expected


def test_every_kind_is_the_same_for_all(tmp_path, shown):
    exported = load_tool("load_exported")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path, pixels in kinds(tmp_path, shown).items():
            found = read_picture(path)
            assert np.array_equal(found, pixels), path.name
            assert np.array_equal(exported.read_picture(path), found), path.name
            assert picture_size(path) == (52, 36)


def refusals(folder, shown):
    """Write files that are refused; return {path: a word of the reason}."""
    grey = np.asarray(Image.fromarray(shown).convert("L"))
    files = {}

    def write(name, reason, data=None, image=None, **options):
        files[folder / name] = reason
        if image is not None:
            Image.fromarray(image).save(folder / name, **options)
        else:
            (folder / name).write_bytes(data)

    write("float.tif", "floating-point", image=grey.astype(np.float32))
    write("whole.tif", "32-bit", image=grey.astype(np.int32))
    write("twelve.png", "black", image=grey.astype(np.uint16) * 16)
    for name in ("dark.png", "dark.tif"):  # colour, of which Pillow keeps the upper 8 bits alone
        cv2.imwrite(str(folder / name), shown.astype(np.uint16) * 16)
        files[folder / name] = "black"
    noise = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    for name, options in (("a.jpg", {}), ("p.jpg", {"progressive": True}), ("a.png", {}),
                          ("a.gif", {}), ("a.webp", {}), ("a.bmp", {}), ("a.tif", {}),
                          ("l.tif", {"compression": "tiff_lzw"}), ("a.ppm", {})):  # fmt: skip
        Image.fromarray(noise).save(folder / f"whole_{name}", **options)
        data = (folder / f"whole_{name}").read_bytes()
        (folder / f"whole_{name}").unlink()
        write(f"half_{name}", "", data[: len(data) // 2])
    write("half_a.jpg", "truncated", (data := jpeg_of(noise, folder))[: len(data) // 2])
    write("rest_zero.jpg", "end", data[: len(data) // 2] + bytes(len(data) // 2))
    write("no_end.jpg", "truncated", data[:-2])
    write("empty.jpg", "empty", b"")
    write("pointer.jpg", "git lfs pull", b"version https://git-lfs.github.com/spec/v1\noid x\n")
    write("page.jpg", "web page", b"\n<!DOCTYPE html><html><body>404</body></html>")
    write("phone.jpg", "HEIC", b"\0\0\0\x18ftypheic" + bytes(40))
    write("text.png", "no format", b"these are no pixels")
    return files


def jpeg_of(image, folder):
    Image.fromarray(image).save(folder / "x.jpg", quality=90)
    data = (folder / "x.jpg").read_bytes()
    (folder / "x.jpg").unlink()
    return data


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_colours_of_16_bits_are_their_upper_8(suffix, tmp_path, shown):
    cv2.imwrite(str(tmp_path / f"a.{suffix}"), shown[..., ::-1].astype(np.uint16) * 256 + 77)
    assert np.array_equal(read_picture(tmp_path / f"a.{suffix}"), shown)


def test_what_is_no_whole_picture_is_refused_by_name(tmp_path, shown):
    files = refusals(tmp_path, shown)
    files[tmp_path / "folder.png"] = ""
    (tmp_path / "folder.png").mkdir()
    files[tmp_path / "nothing.png"] = "no such file"
    for path, reason in files.items():
        for read in (read_picture, picture_size, lambda p: read_record({"file_name": p})):
            with pytest.raises(InputError) as caught:
                read(path)
            message = str(caught.value)
            assert message.startswith(f"{path}: ") and reason in message, message
            assert "\n" not in message and len(message) < len(str(path)) + 300


def test_a_thumbnail_inside_does_not_end_a_jpeg(tmp_path, shown):
    """The end marker of a small picture in EXIF is not the photograph's."""
    small = jpeg_of(shown[:8, :8], tmp_path)
    whole = jpeg_of(shown, tmp_path)
    segment = b"\xff\xe1" + (len(small) + 8).to_bytes(2, "big") + b"Exif\0\0" + small
    (tmp_path / "a.jpg").write_bytes(whole[:2] + segment + whole[2:])
    assert read_picture(tmp_path / "a.jpg").shape == shown.shape
    cut = whole[:2] + segment + whole[2 : len(whole) * 2 // 3]
    (tmp_path / "a.jpg").write_bytes(cut + bytes(len(whole)))
    with pytest.raises(InputError, match="truncated"):
        read_picture(tmp_path / "a.jpg")


def test_other_channels_are_refused(tmp_path, shown):
    save(tmp_path / "a.png", shown)
    with pytest.raises(InputError, match="INPUT.FORMAT is 'L'"):
        read_picture(tmp_path / "a.png", "L")


def test_turning_is_undone_by_the_standard():
    """The test's own table: orientation 6 stores the visual right side as row 0."""
    shown = np.array([[1, 2, 3], [4, 5, 6]])
    assert turned(shown, 6).tolist() == [[3, 6], [2, 5], [1, 4]]
    assert turned(shown, 3).tolist() == [[6, 5, 4], [3, 2, 1]]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_a_large_picture_read_in_bands_is_the_whole_one(tmp_path, monkeypatch, mode):
    deep = np.random.default_rng(0).integers(0, 65536, (23, 17), np.uint16)
    colors = np.random.default_rng(1).integers(0, 256, (23, 17, 3), np.uint8)
    image = Image.fromarray(deep) if mode == "I;16" else Image.fromarray(colors).convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path)
    monkeypatch.setattr(image_io, "_BAND", 40)  # two rows
    found = read_picture(path)
    wanted = deep[..., None] >> 8 if mode == "I;16" else np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(found, np.broadcast_to(wanted, (23, 17, 3)))


def test_postscript_is_not_handed_to_another_program(tmp_path):
    """Pillow knows it by its first bytes, whatever the file is called, and runs Ghostscript."""
    path = tmp_path / "a.jpg"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with Image.open(path) as image:
        assert image.format == "EPS"
    with pytest.raises(InputError, match="a.jpg: cannot be read as a picture .*no format"):
        read_picture(path)


@pytest.mark.parametrize("runs", [1, 2])
def test_run_lengths_of_a_bmp_that_fill_no_row_are_refused(tmp_path, runs):
    """Pillow fills what is missing pixel by pixel: half a minute for a file of a few bytes."""
    path = tmp_path / "a.bmp"
    _save_runs(path, 4, 2, runs, b"\4\0\0\0\2\x11\2\0\0\1" if runs == 2 else
               b"\4\0\0\0\2\1\2\0\0\1")  # fmt: skip
    picture = np.full((2, 4, 3), (10, 20, 30), np.uint8)
    picture[0, :2] = 200, 100, 50  # of rows from below
    np.testing.assert_array_equal(read_picture(path), picture)
    _save_runs(path, 150_000_000, 1, runs, b"\0\0\0\1")
    with pytest.raises(InputError, match="a.bmp: .*too few bytes for 150000000 x 1 pixels"):
        read_picture(path)


def _save_runs(path, width, height, runs, body):
    """A BMP of run lengths of 8 (1) or 4 (2) bits, of two colours."""
    colors = bytes([30, 20, 10, 0, 50, 100, 200, 0]) + bytes(4 * (254 if runs == 1 else 14))
    bits, start = 8 // runs, 54 + len(colors)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, runs, len(body), 0, 0, 0, 0)
    path.write_bytes(
        b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + header + colors + body
    )


def test_a_command_that_a_message_suggests_is_one_of_a_shell(tmp_path):
    path = tmp_path / "a'; touch ran; '.jpg"
    Image.new("RGB", (8, 4)).save(path, exif=_turned())
    message = image_io.explain_size(path, (4, 8), (8, 4))
    command = message.partition("exiftool ")[2]
    assert shlex.split(command) == ["-Orientation=", str(path)]


def _turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif
