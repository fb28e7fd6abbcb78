# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Bytes that an iteration of the CUDA operator moves: a model, each number once a kernel.

It takes what lies near for cached: a pixel's neighbours in its tile, vertices beside one another.
"""

import torch

# Slots of a GPU lattice's header: csrc/dense_crf/lattice.h and device/lattice.h.
HEIGHT, WIDTH, BYTES, ROWS, COUNT = 1, 2, 3, 5, 13


def row_width(labels: int) -> int:
    """Numbers that a row of labels takes on a GPU."""
    return 1 if labels == 1 else (labels + 3) // 4 * 4


def grid_cells(size: int, stride: int) -> int:
    return size + 1 if stride == 1 else int((size - 0.5) / stride - 0.5) + 3


def bytes_per_iteration(
    header: torch.Tensor, index: torch.Tensor, labels: int, sigma: float = 3.0
) -> dict[str, float]:
    """By kernel: marginals, splat, sums and FIR, blur; for a lattice of a GPU."""
    height, width, number, rows = (int(header[i]) for i in (HEIGHT, WIDTH, BYTES, ROWS))
    return model(
        height * width,
        rows,
        int(index[int(header[COUNT])]),
        labels,
        *(stride_cells(height, width, sigma)),
        number=number,
    )


def stride_cells(height: int, width: int, sigma: float) -> tuple[int]:
    """Cells of the spatial kernel's grid (csrc/dense_crf/spatial.cpp)."""
    stride = 1
    while sigma / (2 * stride) >= 1.2:
        stride *= 2
    return (grid_cells(height, stride) * grid_cells(width, stride),)


def model(
    pixels: int, rows: int, vertices: int, labels: int, cells: int, number: int = 4
) -> dict[str, float]:
    """See :func:`bytes_per_iteration`; ``rows``: of all tiles."""
    width = row_width(labels)
    kept = 2 if number == 4 else number  # 16-bit marginals beside float32
    record, corners, pairs = 8 * number, 24, 12
    value = number * width
    return {
        # scores, records, corners, vertices, cells -> marginals
        "marginals": pixels * (value + record + corners + kept * width)
        + value * (vertices + cells),
        # marginals, records, pairs -> rows, cells
        "splat": pixels * (kept * width + record + pairs) + rows * (value + 4) + cells * value,
        # rows -> vertices, and the FIR along x and y
        "sums and FIR": rows * (value + 4) + vertices * (value + 4) + 4 * cells * value,
        # six axes: a row read and written, two neighbours' numbers
        "blur": 6 * vertices * (2 * value + 8),
    }


def earlier_model(pixels: int, vertices: int, labels: int, cells: int) -> dict[str, float]:
    """The same of the version before: a kernel a step, float32, unpadded rows, 6 N pairs."""
    value = 4 * labels
    pieces = 6 * pixels / 64 + vertices  # each vertex's pairs in pieces of 64
    return {
        # splat reads a marginal for each of six corners, by vertex: beyond the cache
        "splat": 6 * pixels * (value + 4 + 32) + 2 * pieces * value + vertices * value,
        "blur": 6 * vertices * (2 * value + 8),
        "slice": pixels * (value + 32 + 24) + vertices * value,
        "spatial": 2 * pixels * value + 6 * cells * value,
        "sum, add, softmax": pixels * value * (3 + 3 + 2),
    }
