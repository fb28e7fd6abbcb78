# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Reading pictures that a user names: what cannot be read ends in one clear line."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from wsis_d2.utils.errors import InputError


def read_for_network(path: str | Path, image_format: str) -> np.ndarray:
    """Return a picture as Detectron2's ``read_image`` does, in a config's INPUT.FORMAT.

    Raises:
        InputError: the file is missing, no picture, truncated, or too large to be one; a training
            that stops over it says which.
    """
    from detectron2.data.detection_utils import read_image

    try:
        return read_image(str(path), format=image_format)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).replace(str(path), "file").split())[:200] or "broken"
        raise InputError(f"{path}: cannot be read as a picture ({reason})") from None


def read_rgb(path: str | Path) -> np.ndarray:
    """Return a picture file as uint8 (H, W, 3) RGB, EXIF rotation applied as Detectron2 does.

    Raises:
        InputError: the file is missing, no picture, truncated, or larger than Pillow's limit
            against decompression bombs.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                return np.asarray(ImageOps.exif_transpose(picture).convert("RGB")).copy()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, expected a picture") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError,
            Image.DecompressionBombWarning) as error:  # fmt: skip
        reason = str(error).replace(str(path), "file").splitlines()[0] if str(error) else "broken"
        raise InputError(f"{path}: cannot be read as a picture ({reason})") from None
