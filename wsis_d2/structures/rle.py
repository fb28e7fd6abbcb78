# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""COCO's run-length masks of other programs' files, checked before native code reads them.

``pycocotools`` takes the runs at their word: those of another sum reach beyond the mask's memory.
"""

from typing import Any

import numpy as np
import pycocotools.mask as mask_util


def checked_rle(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Return a run-length mask, compressed, that is certain to be one of a picture.

    Args:
        segmentation: ``{"size": [H, W], "counts": ...}``; counts are a list of runs or COCO's text.
        size: (H, W) of the picture.

    Raises:
        ValueError: it is of another size, or its runs do not make up the picture.
    """
    if not isinstance(segmentation, dict) or segmentation.get("size") not in ([*size], (*size,)):
        raise ValueError(f"no run-length mask of {size[0]} x {size[1]} (height x width)")
    counts = segmentation.get("counts")
    if isinstance(counts, list):
        whole = all(type(run) is int and 0 <= run < 1 << 31 for run in counts)
        if not whole or sum(counts) != size[0] * size[1]:
            raise ValueError("its runs do not make up the picture")
        return mask_util.frPyObjects({"size": [*size], "counts": counts}, *size)
    counts = counts.encode("latin1", "replace") if isinstance(counts, str) else counts
    if not isinstance(counts, bytes):
        raise ValueError("its counts are neither runs nor COCO's text")
    runs = _runs(counts)
    if (runs < 0).any() or runs.sum() != size[0] * size[1]:
        raise ValueError("its runs do not make up the picture")
    return {"size": [*size], "counts": counts}


def _runs(text: bytes) -> np.ndarray:
    """Return the runs that COCO's text holds, int64.

    A number is 5 bits a character, the lowest first; the sixth says that more follow, and the
    fifth of the last one is the sign. From the fourth number on each is a difference to the second
    before it.
    """
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if not len(codes) or (codes < 0).any() or (codes > 63).any() or codes[-1] & 32:
        raise ValueError("its counts are no text of COCO's")
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:  # 32 bits need no more
        raise ValueError("its counts hold numbers beyond 32 bits")
    places = np.arange(len(codes)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((codes & 31) << (5 * places), starts)
    runs -= np.where(codes[ends] & 16, np.int64(1) << (5 * lengths), 0)
    for first in (1, 2):  # of the second and the third number, and so on
        runs[first::2] = np.cumsum(runs[first::2])
    return runs
