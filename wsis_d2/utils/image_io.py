# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The one reader of photographs: import, labels, training, prediction and pages see these pixels.

Pixels are those a viewer shows: turned as EXIF says, 8 bits a channel, without transparency. A
file that cannot give them whole is refused in one line, the same everywhere.
"""

import contextlib
import errno
import os
import shlex
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from wsis_d2.utils.errors import InputError, check_choice, os_reason
from wsis_d2.utils.png import check_png

if TYPE_CHECKING:
    import torch

#: Suffixes by which a folder's photographs are found; what a file is, its content tells.
PICTURE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm",
    ".pgm",
)  # fmt: skip
# Pillow knows more, among them PostScript, for which it runs another program.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
_ORIENTATION = 0x0112
# Orientation of EXIF -> what turns (H, W, 3) as viewers show it.
_TURNS = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a[::-1].transpose(1, 0, 2),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a[:, ::-1].transpose(1, 0, 2),
}
_SIDEWAYS = (5, 6, 7, 8)
# A 16-bit picture that uses less of its range holds 12 bits or fewer, and would come out black.
_LEAST_OF_16_BITS = 4096
_BAND = 1 << 22  # pixels
_SAVE_8_BITS = "save it with 8 bits a channel"
_DARK = (
    "uses less than a sixteenth of the levels of its 16 bits and would be black; stretch its "
    f"levels and {_SAVE_8_BITS}"
)
# What lies under a picture's name instead of one, by how it begins.
_NO_PICTURES = (
    (b"version https://git-lfs", "is a Git LFS pointer: run git lfs pull"),
    (b"<!doctype", "is a web page, so its download failed"),
    (b"<html", "is a web page, so its download failed"),
    (b"%pdf", "is a PDF"),
)
_HEIC = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")


def read_picture(path: str | Path, image_format: str = "RGB") -> np.ndarray:
    """Return a photograph's pixels.

    EXIF orientation is applied. Grey, palette and CMYK become colour, transparency is dropped,
    16 bits become their upper 8, of several frames the first counts.

    Args:
        path: the file.
        image_format: order of the channels, "RGB" or "BGR".

    Returns:
        uint8 (H, W, 3).

    Raises:
        InputError: the file is missing, no picture, not whole, larger than Pillow's limit against
            decompression bombs (179 megapixels), or of 32-bit or floating-point pixels, whose
            black and white nothing states.
    """
    check_choice("INPUT.FORMAT", image_format, ("RGB", "BGR"))
    pixels = _read(path)
    return pixels if image_format == "RGB" else np.array(pixels[..., ::-1], order="C")


def read_record(record: Mapping, image_format: str = "RGB") -> np.ndarray:
    """Return the pixels of a record's photograph, see :func:`read_picture`.

    Args:
        record: ``file_name``, and ``height`` and ``width`` where it knows them.
        image_format: order of the channels, "RGB" or "BGR".

    Raises:
        InputError: the file cannot be read, or its size is not the record's.
    """
    path = record["file_name"]
    image = read_picture(path, image_format)
    height, width = image.shape[:2]
    wanted = (int(record.get("width", width)), int(record.get("height", height)))
    if (width, height) != wanted:
        raise InputError(f"{path}: {explain_size(path, (width, height), wanted)}")
    return image


def picture_size(path: str | Path, whole: bool = True) -> tuple[int, int]:
    """Return (width, height) of a photograph as :func:`read_picture` gives it.

    Args:
        path: the file.
        whole: decode it all, so that what cannot be read later is refused now; False trusts the
            header of a file that is known to be sound.

    Raises:
        InputError: as :func:`read_picture`.
    """
    if whole:
        height, width = _read(path).shape[:2]
        return width, height
    with _opened(path) as image:
        if image.format == "TIFF":  # some versions of Pillow have turned its size, others not
            image.load()
        width, height = image.size
        return (height, width) if _orientation(image) in _SIDEWAYS else (width, height)


def explain_size(path: str | Path, found: tuple[int, int], wanted: tuple[int, int]) -> str:
    """Return why a photograph is not of its annotation's size, and whether EXIF is the cause.

    Args:
        path: the photograph.
        found, wanted: (width, height) of the picture and of its annotation.
    """
    text = f"has {found[0]} x {found[1]} pixels, its annotation says {wanted[0]} x {wanted[1]}"
    if tuple(wanted) != tuple(found)[::-1]:
        return text
    orientation = turn_of(path)
    if orientation not in _SIDEWAYS:
        return f"{text}: width and height are exchanged"
    return (
        f"{text}, the size before EXIF orientation {orientation} turns it as viewers show it; "
        "annotate the turned picture, or, where the boxes fit the stored pixels, drop the "
        f"orientation: exiftool -Orientation= {shlex.quote(str(path))}"
    )


def turn_of(path: str | Path) -> int:
    """Return the EXIF orientation, 2 to 8, that turns a readable photograph; 1 where none does."""
    try:
        with _opened(path) as image:
            orientation = _orientation(image)
    except InputError:  # it could be read a moment ago
        return 1
    return orientation if orientation in _TURNS else 1


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """Open a picture; whatever goes wrong while it is open becomes one line that names it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=_FORMATS) as image:
                yield image
        return
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, expected a picture") from None
    except UnidentifiedImageError:
        reason = _what_it_is(path)
    except Exception as error:  # Pillow's readers raise almost anything over a broken file
        _refuse_unread(path, error)
        text = " ".join(str(error).replace(str(path), "file").split())[:200]
        reason = text or type(error).__name__
    raise InputError(f"{path}: cannot be read as a picture ({reason})")


def _refuse_unread(path: str | Path, error: Exception) -> None:
    """Raise an InputError where the file's content has no part in an error."""
    if isinstance(error, MemoryError):
        error = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    if isinstance(error, OSError) and error.errno is not None:  # Pillow's own have none
        raise InputError(f"{path}: cannot be read: {os_reason(error)}") from None


def _read(path: str | Path) -> np.ndarray:
    """Return a photograph decoded, turned and in RGB, uint8 (H, W, 3)."""
    with _opened(path) as image:
        if image.format == "PNG":
            check_png(path)  # before memory is taken for its pixels
        # A row without content is filled pixel by pixel in Python, which takes half a minute.
        runs = any(tile[0] == "bmp_rle" for tile in getattr(image, "tile", ()))
        if runs and 255 * os.path.getsize(path) < 2 * image.width * image.height:
            raise ValueError(f"has too few bytes for {image.width} x {image.height} pixels")
        image.load()
        _check_end(path, image)
        # After loading: Pillow turns a TIFF while it loads, and then forgets the orientation.
        turn = _TURNS.get(_orientation(image))
        deep = not image.mode.startswith("I") and stored_bits(path, image) == 16
        pixels = _to_rgb(image)
        if deep and 0 < int(pixels.max()) < _LEAST_OF_16_BITS >> 8:
            raise ValueError(_DARK)
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


def read_label_png(path: str | Path) -> np.ndarray:
    """Return the class ids of a palette or grey PNG of 8 bits.

    Returns:
        uint8 (H, W), the stored indices, not the palette's colours.

    Raises:
        InputError: missing, truncated, or a colour picture.
    """
    with opened_png(path) as image:
        if image.mode not in ("P", "L"):
            raise InputError(
                f"{path}: is a PNG of mode {image.mode}, expected a palette (P) or grey (L) "
                "PNG of class ids; this may be a colour rendering of the labels"
            )
        check_bits(path, image)
        return np.array(image, np.uint8)


def check_bits(path: str | Path, image: Image.Image) -> None:
    """Refuse a PNG of numbers that Pillow scales: grey of few bits up, colours of 16 down.

    Raises:
        InputError: naming its bits.
    """
    bits = stored_bits(path, image)
    if image.mode in ("1", "L", "RGB", "RGBA") and bits != 8:
        raise InputError(
            f"{path}: has {bits} bits a channel, whose numbers are read as others; {_SAVE_8_BITS}"
        )


@contextlib.contextmanager
def opened_png(
    path: str | Path, hint: str = "copy it again", check: bool = True
) -> Iterator[Image.Image]:
    """Open a PNG of numbers; whatever goes wrong while it is open becomes one line.

    Args:
        path: the file.
        hint: what to do about a file that is broken.
        check: whether its checksums are checked; False where the caller does.

    Raises:
        InputError: missing, no PNG, or not whole.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=("PNG",)) as image:
                if check:
                    check_png(path)
                yield image
        return
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # Pillow's readers raise almost anything over a broken file
        _refuse_unread(path, error)
        text = " ".join(str(error).replace(str(path), "file").split())[:200]
        reason = text or type(error).__name__
    raise InputError(f"{path}: cannot be read as PNG ({reason}); {hint}")


def image_tensor(image: np.ndarray) -> "torch.Tensor":
    """Return an image (H, W, C) as a tensor (C, H, W) of its own dtype, contiguous."""
    import torch  # reading alone does without

    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 where there is none; broken EXIF is no reason to fail."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1


def stored_bits(path: str | Path, image: Image.Image) -> int:
    """Return the bits of a channel as a PNG or TIFF stores them: Pillow keeps 8 of colours."""
    if image.format == "PNG":
        with open(path, "rb") as file:
            return file.read(25)[24]  # of the header chunk, which is the first
    if isinstance(image, TiffImageFile):
        return max(image.tag_v2.get(258, (8,)))
    return 8


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Return a decoded picture in RGB, uint8 (H, W, 3).

    A band of rows at a time: whole, each form on the way takes the memory of a picture.
    """
    mode = image.mode
    sixteen = mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM"))
    if mode in ("F", "I") and not sixteen:
        kind = "floating-point" if mode == "F" else "32-bit"
        raise ValueError(f"has {kind} pixels, whose black and white nothing states; {_SAVE_8_BITS}")
    width, height = image.size
    pixels, most = np.empty((height, width, 3), np.uint8), 0
    rows = max(1, _BAND // width)
    for top in range(0, height, rows):
        end = min(top + rows, height)
        band = image.crop((0, top, width, end)) if height > rows else image
        if sixteen:
            values = np.asarray(band)
            most = max(most, int(values.max()))
            pixels[top:end] = (values >> 8)[..., None]
            continue
        if mode in ("P", "PA"):
            band = band.convert("RGBA")  # a palette with transparency goes no other way quietly
        pixels[top:end] = np.asarray(band.convert("RGB"))
    if sixteen and 0 < most < _LEAST_OF_16_BITS:
        raise ValueError(_DARK)
    return pixels


def _check_end(path: str | Path, image: Image.Image) -> None:
    """Raise where a JPEG has no end: a download whose rest is zeros decodes without an error."""
    if image.format not in ("JPEG", "MPO"):
        return
    data = Path(path).read_bytes()
    position = 2
    while data[position : position + 1] == b"\xff" and position + 4 <= len(data):
        marker = data[position + 1]
        if marker == 0xDA:  # from here on 0xff is data's only where 0 or a restart follows
            if data.find(b"\xff\xd9", position) < 0:
                raise OSError("image file is truncated: it has no end marker")
            return
        alone = marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD7
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        position += 1 if marker == 0xFF else 2 if alone else 2 + length


def _what_it_is(path: str | Path) -> str:
    """Return what a file holds that is no picture."""
    with open(path, "rb") as file:
        start = file.read(64)
    if not start:
        return "is empty"
    if start[4:8] == b"ftyp" and start[8:12] in _HEIC:
        return "is HEIC, which Pillow does not read; convert it to JPEG"
    for beginning, words in _NO_PICTURES:
        if start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(beginning):
            return words
    if start[:4] in (b"II*\0", b"MM\0*"):
        return f"is a TIFF that is truncated or that Pillow does not read; {_SAVE_8_BITS}"
    return f"of no format that can be read ({', '.join(_FORMATS)}), or truncated"
