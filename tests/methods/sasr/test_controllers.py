"""The numbers that decide between supervised and policy steps: by hand, as properties, and as frequencies."""

from __future__ import annotations

import json
import math

import pytest
import torch

from posttrain.errors import DataError
from posttrain.methods.sasr.controllers import (
    SAME_NORMS,
    PostClipWatch,
    RatioController,
    scheduled_probability,
    supervised_probability,
    uniform_draw,
    warmup_value,
)


@pytest.mark.parametrize(
    ("gamma", "last", "warmup", "expected"),
    [(1, 2, 2, 0.5), (1, 1, 2, 1 / 3), (0.5, 1, 2, 0.5), (2, 3, 1.5, 0.5), (1, 0.2, 2, 0.0909091)],
)
def test_probability_by_hand(gamma, last, warmup, expected):
    assert supervised_probability(last, warmup, gamma=gamma) == pytest.approx(expected, abs=1e-7)


def test_probability_is_monotone_and_only_the_ratio_counts():
    for last, warmup, gamma in torch.rand(500, 3, dtype=torch.float64).add(0.01).tolist():
        p = supervised_probability(last, warmup, gamma=gamma)
        assert supervised_probability(last * 1.1, warmup, gamma=gamma) > p
        assert supervised_probability(last, warmup * 1.1, gamma=gamma) < p
        assert supervised_probability(last, warmup, gamma=gamma * 1.1) < p
        assert supervised_probability(last * 37, warmup * 37, gamma=gamma) == pytest.approx(p, rel=1e-12)
    assert supervised_probability(0.0, 1.0, gamma=1.0) == 0.0


@pytest.mark.parametrize(("stat", "expected"), [("last", 4.0), ("mean_last_k", 3.5), ("mean", 2.5)])
def test_value_of_the_warmup(stat, expected):
    values = [1.0, 2.0, 3.0, 4.0]
    assert warmup_value(values, stat=stat, window=2) == expected
    assert warmup_value([*values, math.inf], stat=stat, window=2) == expected, "an fp16 overflow is no norm"


@pytest.mark.parametrize("values", [[], [0.0, 0.0], [math.nan]])
def test_a_warmup_without_gradient_is_refused(values):
    with pytest.raises(DataError, match="warmup_norm_stat: the warm-up has no gradient to compare with"):
        warmup_value(values, stat="mean", window=10)


def test_controller_follows_the_last_norm():
    controller = RatioController(gamma=1.0, stat="mean_last_k", window=2, ema=0.0)
    for norm in (9.0, 3.0, 1.0):
        controller.observe_warmup(norm)
    with pytest.raises(ValueError, match="call freeze first"):
        controller.probability(0.0)
    controller.freeze()
    assert controller.warmup == 2.0 and controller.probability(0.0) == pytest.approx(1 / 3)
    controller.observe(2.0)
    assert controller.probability(0.5) == 0.5
    controller.observe(math.inf)
    assert controller.probability(0.5) == 0.5


def test_smoothing_of_the_norm():
    controller = RatioController(gamma=1.0, stat="last", window=1, ema=0.75)
    controller.observe_warmup(4.0)
    controller.freeze()
    controller.observe(8.0)
    assert controller.last == 0.25 * 8 + 0.75 * 4


def test_controller_state_is_json_and_comes_back():
    first, second = (RatioController(gamma=1.0, stat="mean_last_k", window=3, ema=0.5) for _ in range(2))
    for norm in (5.0, 2.0, 4.0, 3.0):
        first.observe_warmup(norm)
    second.load(json.loads(json.dumps(first.state())))
    for controller in (first, second):
        controller.freeze()
        controller.observe(1.0)
    assert first.state() == second.state() == {"seen": [], "warmup": 3.0, "last": 2.0}


def test_schedules():
    values = {"fixed": 0.3, "low": 0.1, "high": 0.9}
    assert scheduled_probability("fixed", 0.7, **values) == 0.3
    assert scheduled_probability("sequential", 0.0, **values) == 0.0
    cosine = [scheduled_probability("cosine", progress, **values) for progress in (0.0, 0.5, 1.0, 2.0)]
    assert cosine == pytest.approx([0.9, 0.5, 0.1, 0.1])
    with pytest.raises(ValueError, match="allowed: fixed, cosine, sequential"):
        scheduled_probability("step", 0.0, **values)


@pytest.mark.parametrize("seed", [0, 42, 2**40])
def test_frequency_of_supervised_steps_is_that_of_the_mean_probability(seed):
    """10^4 draws with probabilities that move; three standard deviations of a sum of Bernoulli draws."""
    probabilities = [0.5 + 0.4 * math.sin(step / 500) for step in range(10_000)]
    hits = sum(uniform_draw(seed, step) < p for step, p in enumerate(probabilities))
    deviation = math.sqrt(sum(p * (1 - p) for p in probabilities))
    assert abs(hits - sum(probabilities)) < 3 * deviation


def test_draws_follow_from_seed_and_step_alone():
    draws = [uniform_draw(1, step) for step in range(50)]
    torch.manual_seed(7)
    assert draws == [uniform_draw(1, step) for step in range(50)]
    assert len(set(draws)) == 50 and draws != [uniform_draw(2, step) for step in range(50)]
    assert max(abs(a - b) for a, b in zip(draws, draws[1:], strict=False)) > 0.3, "neighbouring steps are not alike"


def test_equal_norms_are_noticed_once_for_each_row():
    watch = PostClipWatch()
    found = [watch.sees(1.0) for _ in range(2 * SAME_NORMS)]
    assert found.index(True) == SAME_NORMS - 1 and sum(found) == 1
    assert not watch.sees(0.9)
    assert [watch.sees(1.0) for _ in range(SAME_NORMS)][-1]
    assert not any(watch.sees(0.0) for _ in range(2 * SAME_NORMS)), "no gradient is another matter"


def test_norm_of_the_logit_gradient_by_hand():
    """Logits (2, 1, 0, -1), target 2: what a small supervised norm says about the policy."""
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0], dtype=torch.float64, requires_grad=True)
    logps = logits.log_softmax(0)
    (-logps[2]).backward()
    target = torch.tensor([0.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    policy = logps.exp().detach()
    assert policy.tolist() == pytest.approx([0.643914, 0.236883, 0.087144, 0.032059], abs=1e-6)
    assert float(logits.grad.norm()) == pytest.approx(1.1423976, abs=1e-7)
    assert float(-logps[2].detach()) == pytest.approx(2.4401897, abs=1e-7)
    distance = float((policy - target).abs().sum())
    assert distance == pytest.approx(1.8257114, abs=1e-7)
    assert distance <= math.sqrt(2 * float(-logps[2].detach())) == pytest.approx(2.2091581, abs=1e-7)


def test_norm_is_bounded_by_the_divergence():
    """|grad| <= B |pi* - pi|_1 <= B sqrt(2 KL(pi* || pi)) with B = max_a |e_a - pi| for a table of logits."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(1000):
        logits, other = torch.randn(2, 6, generator=generator, dtype=torch.float64) * 3
        policy, target = logits.softmax(0), other.softmax(0)
        gradient = (policy - target).norm()
        bound = max(float((row - policy).norm()) for row in torch.eye(6, dtype=torch.float64))
        distance = (policy - target).abs().sum()
        divergence = (target * (target.log() - policy.log())).sum()
        assert gradient <= bound * distance + 1e-12
        assert distance <= (2 * divergence).sqrt() + 1e-9
