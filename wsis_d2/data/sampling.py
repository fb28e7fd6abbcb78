# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The endless stream of training samples, a pure function of seed and position.

What a position of the stream holds, and the random numbers that augment it, depend on the seed
and the position alone: not on the number of processes or workers, nor on what was drawn before.
So a resumed run continues exactly where it stopped, and several processes see together what one
would see.
"""

import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from wsis_d2.utils.errors import InputError


class TrainingStream(Sampler):
    """Endless (position, record index) pairs; every epoch is a new permutation.

    Addition, not in the paper: with a share given for fully annotated images, positions are
    divided between the weak and the full images in that proportion, evenly, and each kind has
    epochs of its own.
    """

    def __init__(
        self,
        is_full: Sequence[bool],
        *,
        seed: int,
        full_fraction: float = -1.0,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """
        Args:
            is_full: for each record whether it is fully annotated.
            seed: of the permutations.
            full_fraction: share of full images in [0, 1]; -1 draws all images equally often.
            start: first position, over all processes.
            rank, world_size: this process takes every world_size-th position.

        Raises:
            InputError: a share outside [0, 1], or one that asks for a kind that is not there.
        """
        self.seed, self.start, self.rank, self.world_size = seed, start, rank, world_size
        full = [i for i, flag in enumerate(is_full) if flag]
        weak = [i for i, flag in enumerate(is_full) if not flag]
        if full_fraction < 0:
            full_fraction, weak, full = 0.0, list(range(len(is_full))), []
        elif full_fraction > 1:
            raise InputError(
                f"DATALOADER.FULL_FRACTION is {full_fraction}, expected -1 or a share in [0, 1]"
            )
        shares = (("weak", weak, 1 - full_fraction), ("full", full, full_fraction))
        for kind, members, share in shares:
            if share > 0 and not members:
                raise InputError(
                    f"DATALOADER.FULL_FRACTION is {full_fraction}, but DATASETS.TRAIN holds no "
                    f"{kind} image"
                )
        self.full_fraction = full_fraction
        self.groups = (weak, full)
        self._permutations: dict[int, tuple[int, list[int]]] = {}

    def index_at(self, position: int) -> int:
        """Return the record at a position of the stream."""
        before = int(np.floor(position * self.full_fraction + 1e-9))
        full = int(np.floor((position + 1) * self.full_fraction + 1e-9)) > before
        count = before if full else position - before
        members = self.groups[full]
        epoch, offset = divmod(count, len(members))
        if self._permutations.get(full, (None,))[0] != epoch:
            generator = np.random.default_rng([self.seed, int(full), epoch])
            self._permutations[full] = (epoch, generator.permutation(len(members)).tolist())
        return members[self._permutations[full][1][offset]]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        position = self.start + self.rank
        while True:
            yield position, self.index_at(position)
            position += self.world_size


class SeededDataset(Dataset):
    """Maps records with random numbers that depend on seed and position alone."""

    def __init__(self, records: list[dict], mapper: Callable[[dict], dict], seed: int) -> None:
        """
        Args:
            records: dataset dicts.
            mapper: record to training sample.
            seed: of the augmentation.
        """
        self.records, self.mapper, self.seed = records, mapper, seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, item: tuple[int, int]) -> dict:
        position, index = item
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
        seed = int(np.random.SeedSequence([self.seed, position]).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.default_generator.manual_seed(seed)  # The CPU's alone, as it is restored.
        try:
            return self.mapper(self.records[index])
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
            torch.set_rng_state(states[2])
