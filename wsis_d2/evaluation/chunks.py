# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Arrays that grow image by image: the predictions that average precision ranks over a set."""

from collections.abc import Sequence

import numpy as np

# Many small arrays would take more than what they hold.
_MAX_CHUNKS = 64


class Chunks:
    """Arrays of equal length, collected over images.

    Args:
        empty: the arrays of no image, each (0, ...): they say types and shapes.
    """

    def __init__(self, *empty: np.ndarray) -> None:
        self._chunks: list[Sequence[np.ndarray]] = [empty]

    def append(self, *arrays: np.ndarray) -> None:
        """Add some images' arrays."""
        self._chunks.append(arrays)
        if len(self._chunks) >= _MAX_CHUNKS:
            self._chunks = [self.joined()]

    def joined(self) -> tuple[np.ndarray, ...]:
        """Return all images' arrays."""
        return tuple(np.concatenate(parts) for parts in zip(*self._chunks, strict=True))
