"""Tier chances over a run, draws without replacement, and that every draw follows from seed and block."""

from __future__ import annotations

import math

import numpy
import pytest

from posttrain.methods.rmt.token_curriculum import TierDraws, tier_probabilities

FIRST, LAST = (0.6, 0.3, 0.1), (0.1, 0.3, 0.6)


def chances(step: int, total: int = 1000) -> list[float]:
    return tier_probabilities(step, total_steps=total, start=0.3, end=0.7, first=FIRST, last=LAST)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, FIRST),
        (300, FIRST),
        (400, (0.475, 0.3, 0.225)),
        (500, (0.35, 0.3, 0.35)),
        (650, (0.1625, 0.3, 0.5375)),
        (700, LAST),
        (1000, LAST),
    ],
)
def test_chances_move_from_easy_to_hard(step, expected):
    assert chances(step) == pytest.approx(expected)


@pytest.mark.parametrize("step", [100, 500, 900])
def test_empirical_draws_lie_within_three_deviations(step):
    tiers = numpy.repeat([0, 1, 2], 4000)
    draws = TierDraws(tiers, seed=3, block_size=3000, schedule=lambda block: chances(step))
    drawn = tiers[draws.block(0)]
    for tier, chance in enumerate(chances(step)):
        deviation = math.sqrt(chance * (1 - chance) / 3000)
        assert abs((drawn == tier).mean() - chance) < 3 * deviation


def test_an_epoch_has_no_target_twice():
    tiers = numpy.asarray([0] * 10 + [1] * 10 + [2] * 10)
    draws = TierDraws(tiers, seed=0, block_size=5, schedule=lambda block: FIRST)
    epoch = [target for block in range(6) for target in draws.block(block)]
    assert sorted(epoch) == list(range(30))
    assert draws.num_renormalised > 0  # the easy tier ran out first, and its chance went to the others
    second = [target for block in range(6, 12) for target in draws.block(block)]
    assert sorted(second) == list(range(30)) and second != epoch


def test_the_rest_of_an_epoch_that_makes_no_block_is_left_out():
    draws = TierDraws(numpy.zeros(7, dtype=int), seed=0, block_size=3, schedule=None)
    first = draws.block(0) + draws.block(1)
    assert len(set(first)) == 6
    assert len(set(draws.block(2))) == 3


def test_a_tier_that_has_no_target_hands_its_chance_on():
    draws = TierDraws(numpy.asarray([2] * 4), seed=0, block_size=4, schedule=lambda block: (1.0, 0.0, 0.0))
    assert sorted(draws.block(0)) == [0, 1, 2, 3]
    assert draws.num_renormalised == 4


@pytest.mark.parametrize("schedule", [None, lambda block: chances(block, total=20)])
def test_any_block_can_be_drawn_again_from_the_start(schedule):
    tiers = numpy.random.default_rng(0).integers(0, 3, 200)
    whole = TierDraws(tiers, seed=5, block_size=8, schedule=schedule)
    blocks = [whole.block(number) for number in range(40)]
    again = TierDraws(tiers, seed=5, block_size=8, schedule=schedule)
    assert again.block(33) == blocks[33]
    assert TierDraws(tiers, seed=6, block_size=8, schedule=schedule).block(0) != blocks[0]


def test_without_schedule_draws_are_uniform_over_all_targets():
    tiers = numpy.repeat([0, 1, 2], [900, 90, 10])
    draws = TierDraws(tiers, seed=1, block_size=500, schedule=None)
    assert abs((tiers[draws.block(0)] == 0).mean() - 0.9) < 0.05
