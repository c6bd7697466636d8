"""The specification's toy: a network learns three Markov chains of 6, 24 and 48 letters in shares that Aioli decides.

Ours are the controller, the rounds and the order of the groups; model, chains and training are written out here. The
optimizer has no momentum. With momentum, short blocks measure what the blocks before them did: the second test.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from posttrain.data.streams import RowStreams
from posttrain.methods.aioli.controllers import AioliController, MixingController
from posttrain.methods.aioli.rounds import Rounds
from posttrain.seam.groups.sampler import GroupMixtureSampler

SIZES, LENGTH, CONTEXT, ROWS, STEPS = (6, 24, 48), 24, 2, 16, 1500
SEEDS = range(4)


@cache
def chain(place: int, rows: int, seed: int) -> Tensor:
    """(rows, LENGTH) letters of one chain, which no other has."""
    size, first = SIZES[place], sum(SIZES[:place])
    table = np.random.default_rng([0, place]).dirichlet(np.full(size, 0.3), size=size).cumsum(axis=1)
    rng = np.random.default_rng([seed, place, 1])
    letters = [rng.integers(size, size=rows)]
    for _ in range(LENGTH - 1):
        above = table[letters[-1]] < rng.random(rows)[:, None]
        letters.append(np.minimum(above.sum(axis=1), size - 1))
    return torch.tensor(np.stack(letters, axis=1) + first)


class Network(nn.Module):
    """The next letter from the two before it."""

    def __init__(self):
        super().__init__()
        self.letters = nn.Embedding(sum(SIZES), 32)
        self.layers = nn.Sequential(nn.Linear(32 * CONTEXT, 64), nn.ReLU(), nn.Linear(64, sum(SIZES)))

    def forward(self, rows: Tensor) -> Tensor:
        """Mean loss."""
        known = self.letters(rows)
        given = torch.cat([known[:, i : LENGTH - CONTEXT + i] for i in range(CONTEXT)], dim=-1)
        return nn.functional.cross_entropy(self.layers(given).flatten(0, 1), rows[:, CONTEXT:].flatten())


def controller(blocks: tuple[int, int] | None, seed: int) -> MixingController:
    """Equal shares for None; else Aioli with (sweeps, steps of a block)."""
    names = [str(size) for size in SIZES]
    if blocks is None:
        return MixingController(names)
    own = {"one_hot_factor": 0.5, "eta": 1.0, "ema": None, "normalize": True, "diagonal": False, "static": False}
    return AioliController(names, sweeps=blocks[0], steps=blocks[1], seed=seed, **own)


def trained(blocks: tuple[int, int] | None, seed: int, *, momentum: float = 0.0) -> tuple[float, np.ndarray]:
    """(mean perplexity of new rows, shares of the rows that were drawn)."""
    torch.manual_seed(seed)
    network = Network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5 * (1 - momentum), momentum=momentum)

    @torch.no_grad()
    def losses(rows: int, place: int) -> list[float]:
        return [float(network(chain(group, rows, place))) for group in range(3)]

    rounds = Rounds(
        controller(blocks, seed),
        every=75,
        learn_steps=1 if blocks is None else blocks[1],
        prior_steps=0,
        rows_per_step=ROWS,
        measure=lambda: losses(64, 98),
        last=STEPS,
    )
    shares = rounds.controller.proportions
    layout = {"rows_per_step": ROWS, "num_steps": STEPS, "seed": seed, "plan": rounds.planned}
    numbers = iter(rounds.draw(GroupMixtureSampler(None, proportions=shares, **layout)))
    drawn = np.zeros(3)
    rounds.begin(0)
    for step in range(STEPS):
        batch = [next(numbers) for _ in range(ROWS)]
        groups = [RowStreams.group_of(number) for number in batch]
        drawn += np.bincount(groups, minlength=3)
        rows = [chain(g, ROWS * STEPS, seed)[n - RowStreams.number(g, 0)] for g, n in zip(groups, batch, strict=True)]
        optimizer.zero_grad()
        network(torch.stack(rows)).backward()
        optimizer.step()
        rounds.after(step + 1)
    return float(np.mean(np.exp(losses(200, 99)))), drawn / drawn.sum()


def test_aioli_gives_the_hard_group_more_and_beats_equal_shares():
    """The specification measured -0.18 to -0.27 and half of the rows or more for the hard group."""
    found = [trained((4, 2), seed) for seed in SEEDS]
    equal = [trained(None, seed)[0] for seed in SEEDS]
    assert np.mean([perplexity for perplexity, _ in found]) < np.mean(equal) - 0.05
    assert np.mean([shares[2] for _, shares in found]) > 0.4


def test_short_blocks_under_momentum_measure_the_blocks_before_them():
    """The same rate in the long run; a block of two steps ends before its rows have moved the weights."""
    short, long = trained((4, 2), 0, momentum=0.9), trained((1, 8), 0, momentum=0.9)
    assert short[1][2] < long[1][2] - 0.05 and short[1][2] < 0.25
    assert short[0] > long[0] + 0.1
