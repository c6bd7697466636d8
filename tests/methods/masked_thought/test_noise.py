"""Noise on inputs: the ramp's numbers, how many tokens are replaced, by what, and on what the draws depend."""

from __future__ import annotations

import math

import pytest
import torch

from posttrain.methods.masked_thought.noise import Replacement, corrupt_target_inputs, noise_rate, row_generator

MASK = Replacement(mask_id=99, random_ids=torch.tensor([], dtype=torch.long), random_prob=0.0)
RANDOM = Replacement(mask_id=None, random_ids=torch.arange(10), random_prob=1.0)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # 300 steps, ratio .4, ramp over 2/3 = 200 steps: 100/200 * .4 = .2, 199/200 * .4 = .398.
        ("linear", {0: 0.0, 100: 0.2, 199: 0.398, 200: 0.4, 299: 0.4}),
        # One step longer: 100/201 * .4 = .1990050, 200/201 * .4 = .3980100.
        ("linear_plus_one", {0: 0.0, 100: 0.1990050, 200: 0.3980100, 299: 0.4}),
        ("constant", {0: 0.4, 299: 0.4}),
    ],
)
def test_rate_by_hand(schedule, expected):
    found = {step: noise_rate(step, 300, ratio=0.4, warmup_ratio=2 / 3, schedule=schedule) for step in expected}
    assert found == pytest.approx(expected, abs=5e-8)


def test_without_a_ramp_the_rate_is_full_at_once_and_unknown_schedules_are_refused():
    assert noise_rate(0, 300, ratio=0.4, warmup_ratio=0.0, schedule="linear") == 0.4
    assert noise_rate(300, 300, ratio=0.4, warmup_ratio=1.0, schedule="linear") == 0.4
    with pytest.raises(ValueError, match="cosine"):
        noise_rate(0, 300, ratio=0.4, warmup_ratio=0.5, schedule="cosine")


def corrupt(rate=0.4, replacement=MASK, size=100_000, seed=1, epoch=0, index=0):
    ids, target = torch.full((size,), 50), torch.ones(size, dtype=torch.bool)
    target[: size // 10] = False
    return corrupt_target_inputs(
        ids, target, rate=rate, replacement=replacement, generator=row_generator(seed, epoch, index)
    )


def test_the_number_replaced_is_binomial_and_nothing_outside_the_target_changes():
    for rate in (0.1, 0.4, 0.9):
        ids, noised = corrupt(rate)
        trials = 90_000
        assert abs(int(noised.sum()) - trials * rate) < 5 * math.sqrt(trials * rate * (1 - rate))
        assert not noised[:10_000].any() and (ids[noised] == 99).all() and (ids[~noised] == 50).all()
    ids, noised = corrupt(0.0)
    assert not noised.any() and (ids == 50).all()


def test_random_tokens_are_uniform_over_the_allowed_ones_and_the_mixture_has_its_share():
    ids, noised = corrupt(0.5, RANDOM)
    counts = torch.bincount(ids[noised], minlength=10)
    assert len(counts) == 10
    expected = noised.sum() / 10
    assert (counts - expected).abs().max() < 5 * math.sqrt(expected)
    both = Replacement(mask_id=99, random_ids=torch.arange(10), random_prob=0.25)
    mixed, _ = corrupt(0.5, both)
    share = float((mixed[noised] < 10).double().mean())
    assert abs(share - 0.25) < 5 * math.sqrt(0.25 * 0.75 / int(noised.sum()))
    assert set(mixed[noised].tolist()) == {*range(10), 99}


def test_where_the_noise_falls_does_not_depend_on_what_it_is_but_on_seed_epoch_and_row():
    masked = corrupt()[1]
    assert torch.equal(masked, corrupt(replacement=RANDOM)[1])
    assert torch.equal(masked, corrupt()[1])
    for other in ({"seed": 2}, {"epoch": 1}, {"index": 1}):
        assert not torch.equal(masked, corrupt(**other)[1])
    # (seed, epoch, row) are kept apart, whatever they add up to.
    assert not torch.equal(corrupt(epoch=1, index=0)[1], corrupt(epoch=0, index=1)[1])
    assert not torch.equal(corrupt(epoch=1, index=11)[1], corrupt(epoch=11, index=1)[1])
