"""A length policy of one number, trained by the method's own reward and advantages: does the thought follow the budget
without losing accuracy?

Length is exp(mu + 0.35 eps), a match has the chance .3 + .5 (1 - exp(-length / 4)); 2000 steps, budget 80 to 16.
"""

from __future__ import annotations

import math

import numpy
import pytest
import torch

from posttrain.losses.advantages import group_advantages
from posttrain.losses.upge import UPGE_PRESETS
from posttrain.methods.rmt.config import RMTConfig
from posttrain.rewards.length_budget import length_reward

STEPS, GROUPS, SIZE, DEVIATION, RATE = 2000, 8, 8, 0.35, 0.01


def match_chance(length: float) -> float:
    return 0.3 + 0.5 * (1 - math.exp(-length / 4))


def train(config: RMTConfig, weight: float, seed: int) -> tuple[float, float, float]:
    """(last length, accuracy there, correlation of length and budget over the run)."""
    generator = numpy.random.default_rng(seed)
    mu, lengths, budgets = math.log(60.0), [], []
    for step in range(STEPS):
        budget = config.budget_at(step, total_steps=STEPS)
        noise = generator.standard_normal(GROUPS * SIZE)
        drawn = numpy.exp(mu + DEVIATION * noise)
        match = generator.random(GROUPS * SIZE) < 0.3 + 0.5 * (1 - numpy.exp(-drawn / 4))
        bonus = [length_reward(round(length), budget) for length in drawn]
        rewards = torch.tensor((1 - weight) * match + weight * numpy.asarray(bonus))
        advantages = group_advantages(rewards, SIZE, config=UPGE_PRESETS["grpo"]).numpy()
        # d log p / d mu = eps / deviation
        mu += RATE * float((advantages * noise / DEVIATION).mean())
        lengths.append(math.exp(mu))
        budgets.append(budget)
    correlation = float(numpy.corrcoef(lengths[200:], budgets[200:])[0, 1])
    return lengths[-1], match_chance(lengths[-1]), correlation


@pytest.mark.parametrize("weight", [0.1, 0.2, 0.5])
def test_length_follows_the_budget_and_accuracy_stays(weight, tmp_path):
    config = RMTConfig(output_dir=str(tmp_path), report_to="none", token_budget_initial=80, max_completion_length=200)
    last = config.budget_at(STEPS, total_steps=STEPS)
    assert last == 16
    for seed in range(3):
        length, accuracy, correlation = train(config, weight, seed)
        assert abs(length - last) < 0.15 * last
        assert correlation > 0.98
        assert match_chance(60.0) - accuracy < 0.03


def test_without_length_reward_thoughts_stay_long(tmp_path):
    config = RMTConfig(output_dir=str(tmp_path), report_to="none", token_budget_initial=80, max_completion_length=200)
    assert train(config, 0.0, 0)[0] > 30
