"""Which tokens are asked for in which step: tiers by a schedule, tokens without replacement.

Every draw follows from the seed, the number of the block and the blocks before it, so that a resumed run repeats
nothing and misses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy

NUM_TIERS = 3
Schedule = Callable[[int], Sequence[float]]


def tier_probabilities(
    step: int,
    *,
    total_steps: int,
    start: float,
    end: float,
    first: Sequence[float],
    last: Sequence[float],
) -> list[float]:
    """Chance of each tier in an optimizer step: `first`, then linear to `last` between two fractions of the run.

    Args:
        step: t, counted from 0. total_steps: T.
        start, end: t1 / T and t2 / T.
        first, last: chances before t1 and from t2 on; each sums to 1.

    Source: arXiv 2509.24375, curriculum sampling; the chances themselves are UNVERIFIED.
    """
    begin, finish = start * total_steps, end * total_steps
    if step >= finish:
        return list(last)
    share = 0.0 if step < begin else (step - begin) / (finish - begin)
    return [(1 - share) * a + share * b for a, b in zip(first, last, strict=True)]


class TierDraws:
    """Blocks of targets, drawn tier by tier; one pass over all targets is an epoch.

    Args:
        tiers: (N,) tier of each target, 0 to 2.
        seed: the same on every rank.
        block_size: targets of a block, at most N.
        schedule: chances of the tiers for a block number; None draws uniformly from all targets.
        shuffle: False draws each tier's targets in the order of the corpus.

    A tier that has run out hands its chance to the others in proportion; what is left when fewer than a block remain
    is left out of the epoch.
    """

    def __init__(
        self,
        tiers: numpy.ndarray,
        *,
        seed: int,
        block_size: int,
        schedule: Schedule | None,
        shuffle: bool = True,
    ):
        self.seed, self.block_size, self.schedule, self.shuffle = seed, block_size, schedule, shuffle
        pools = [numpy.flatnonzero(tiers == tier) for tier in range(NUM_TIERS)]
        self._pools = [numpy.arange(len(tiers))] if schedule is None else pools
        self._epoch = -1
        self._left: list[numpy.ndarray] = []
        self._blocks: list[list[int]] = []
        self.num_renormalised = 0

    def block(self, number: int) -> list[int]:
        """Targets of a block, as indices into `tiers`."""
        while len(self._blocks) <= number:
            self._blocks.append(self._next(len(self._blocks)))
        return self._blocks[number]

    def _next(self, number: int) -> list[int]:
        if sum(map(len, self._left)) < self.block_size:
            self._epoch += 1
            self._left = [self._order(tier, pool) for tier, pool in enumerate(self._pools)]
        chances = numpy.ones(1) if self.schedule is None else numpy.asarray(self.schedule(number))
        generator = numpy.random.default_rng([self.seed, 1, number])
        drawn = []
        for _ in range(self.block_size):
            tier = self._tier(generator, chances)
            drawn.append(int(self._left[tier][0]))
            self._left[tier] = self._left[tier][1:]
        return drawn

    def _order(self, tier: int, pool: numpy.ndarray) -> numpy.ndarray:
        if not self.shuffle:
            return pool
        return numpy.random.default_rng([self.seed, 0, self._epoch, tier]).permutation(pool)

    def _tier(self, generator: numpy.random.Generator, chances: numpy.ndarray) -> int:
        sizes = numpy.asarray([len(pool) for pool in self._left])
        usable = numpy.where(sizes > 0, chances, 0.0)
        if usable.sum() < chances.sum() - 1e-9:
            self.num_renormalised += 1
        if usable.sum() == 0:
            usable = sizes.astype(float)
        return int(generator.choice(len(usable), p=usable / usable.sum()))
