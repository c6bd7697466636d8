"""Samplers whose every draw follows from (seed, epoch), so that a resumed run sees the data the uninterrupted one
would.

trl 1.16's GRPO sampler carries a generator that is re-created on resume: from the second epoch on a resumed run
repeats epoch 0's order, so some prompts come twice and others never. transformers 5.17 sets the epoch through the
data loader, which in multi-process runs no longer reaches a sampler after `skip_first_batches`; the seam tells the
sampler directly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Sized

import torch
from torch.utils.data import Sampler

from posttrain.errors import DataError, SupportError


class EpochSampler(Sampler[int]):
    """Permutation of a dataset in which epoch e's order depends on (seed, e) alone.

    Args:
        data: anything with a length.
        seed: data seed; the same on every rank, since each rank iterates the whole order and keeps its share.
        shuffle: False keeps dataset order in every epoch.

    `row_order`, if it is set, gives the rows of an epoch in its place.
    """

    row_order: Callable[[int], Sequence[int]] | None = None

    def __init__(self, data: Sized, *, seed: int, shuffle: bool = True):
        self.data, self.seed, self.shuffle, self.epoch = data, seed, shuffle, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next `iter`; takes effect at the next epoch's first draw."""
        self.epoch = epoch

    def order(self) -> list[int]:
        """Indices of the current epoch.

        Raises:
            DataError: `row_order` gives another number of rows than there are, or rows that are none.
        """
        size = len(self.data)
        if self.row_order is not None:
            rows = [int(row) for row in self.row_order(self.epoch)]
            if len(rows) != size or not all(0 <= row < size for row in rows):
                allowed = f"{size} numbers from 0 to {size - 1}"
                raise DataError("no order of the training rows", where="data.order", got=len(rows), allowed=allowed)
            return rows
        if not self.shuffle:
            return list(range(size))
        # A product keeps (seed, epoch) and (seed + 1, epoch - 1) apart; the prime exceeds any epoch count.
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        return torch.randperm(size, generator=generator).tolist()

    def __iter__(self) -> Iterator[int]:
        yield from self.order()

    def __len__(self) -> int:
        return len(self.data)


class EpochRepeatSampler(EpochSampler):
    """The same order in the layout group-based policy training needs.

    The permutation is cut into blocks of `prompts_per_batch`; an incomplete last block is left out of the epoch.
    Within a block each index appears `num_generations` times in a row, and the block is repeated `repeat_count` times
    (once for each micro-step that consumes the same rollouts).

    Args:
        data, seed, shuffle: see `EpochSampler`.
        num_generations: G.
        prompts_per_batch: unique prompts of one generation batch over all ranks.
        repeat_count: micro-steps per generation batch times passes over it.
    """

    def __init__(
        self,
        data: Sized,
        *,
        seed: int,
        num_generations: int,
        prompts_per_batch: int,
        repeat_count: int,
        shuffle: bool = True,
    ):
        super().__init__(data, seed=seed, shuffle=shuffle)
        self.num_generations = num_generations
        self.prompts_per_batch = prompts_per_batch
        self.repeat_count = repeat_count

    def blocks(self) -> Iterator[list[int]]:
        """The prompts of the epoch's generation batches, in order; a curriculum overrides this alone."""
        order = self.order()
        for start in range(0, len(order) - self.prompts_per_batch + 1, self.prompts_per_batch):
            yield order[start : start + self.prompts_per_batch]

    def __iter__(self) -> Iterator[int]:
        for block in self.blocks():
            for _ in range(self.repeat_count):
                for index in block:
                    yield from [index] * self.num_generations

    def __len__(self) -> int:
        blocks = len(self.data) // self.prompts_per_batch
        return blocks * self.prompts_per_batch * self.num_generations * self.repeat_count


def in_order(sampler: Sampler[int], row_order: Callable[[int], Sequence[int]] | None) -> Sampler[int]:
    """The sampler with a recipe's order of rows in place of its permutations.

    Raises:
        SupportError: the method has an order of its own, or draws rows by the shares of their groups.
    """
    if row_order is None:
        return sampler
    if type(sampler) not in (EpochSampler, EpochRepeatSampler):
        what = "the method draws its rows in an order of its own"
        raise SupportError(what, where="data.order", got=type(sampler).__name__, fix="Remove data.order")
    sampler.row_order = row_order  # type: ignore[attr-defined]
    return sampler
