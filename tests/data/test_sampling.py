# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The stream of samples: order, shares, processes, random numbers."""

import random
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch

from wsis_d2.data.sampling import SeededDataset, TrainingStream


def take(count: int, is_full, **options) -> list[int]:
    return [index for _, index in islice(TrainingStream(is_full, **options), count)]


def test_every_epoch_is_a_permutation_of_all_records():
    stream = take(30, [False] * 7 + [True] * 3, seed=4)
    epochs = [stream[k : k + 10] for k in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert take(30, [False] * 10, seed=5) != stream


def test_a_late_start_continues_the_same_stream():
    flags = [False, True] * 6
    for fraction in (-1.0, 0.4):
        whole = take(50, flags, seed=1, full_fraction=fraction)
        assert take(27, flags, seed=1, full_fraction=fraction, start=23) == whole[23:]


def test_processes_share_the_stream_of_one():
    flags = [False] * 5 + [True] * 4
    whole = take(40, flags, seed=2, full_fraction=0.3)
    parts = [take(20, flags, seed=2, full_fraction=0.3, rank=r, world_size=2) for r in (0, 1)]
    assert [index for pair in zip(*parts, strict=True) for index in pair] == whole


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 1 / 3, 0.5, 1.0])
def test_the_share_of_full_images_holds_at_every_length(fraction):
    flags = [False] * 12 + [True] * 5
    stream = take(300, flags, seed=3, full_fraction=fraction)
    full = np.cumsum([flags[i] for i in stream])
    assert np.all(np.abs(full - fraction * np.arange(1, 301)) <= 1)
    counts = Counter(stream)
    for members in (range(12), range(12, 17)):
        seen = [counts[i] for i in members]
        assert max(seen) - min(seen) <= 1


def test_impossible_shares_are_named():
    with pytest.raises(ValueError, match="FULL_FRACTION is 1.5"):
        TrainingStream([True, False], seed=0, full_fraction=1.5)
    with pytest.raises(ValueError, match="no full image"):
        TrainingStream([False, False], seed=0, full_fraction=0.5)
    with pytest.raises(ValueError, match="no weak image"):
        TrainingStream([True], seed=0, full_fraction=0.5)


def draw(_record) -> tuple:
    return random.random(), np.random.rand(), float(torch.rand(()))  # noqa: NPY002


def test_random_numbers_depend_on_seed_and_position_alone():
    data = SeededDataset([{}, {}], draw, seed=9)
    first = data[5, 0]
    random.random(), np.random.rand(), torch.rand(())  # noqa: NPY002
    assert data[5, 1] == first
    assert data[6, 0] != first
    assert SeededDataset([{}], draw, seed=10)[5, 0] != first


def test_mapping_leaves_the_callers_random_state_alone():
    data = SeededDataset([{}], draw, seed=9)
    states = []
    for use in (False, True):
        random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
        if use:
            data[3, 0]
        states.append(draw({}))
    assert states[0] == states[1]
