"""Group advantages: the paper's numbers, a literal reference, unscored rows, demonstrations, flat groups."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.losses.upge import UPGE_PRESETS, UPGEConfig, group_advantages

NAN = float("nan")
GROUP_NORM, GROUP_MEAN, RLOO = UPGE_PRESETS["grpo"], UPGE_PRESETS["dr_grpo"], UPGE_PRESETS["rloo"]
CONFIGS = {
    "group_norm": GROUP_NORM,
    "group_mean": GROUP_MEAN,
    "rloo": RLOO,
    "group_norm_eps_0": replace(GROUP_NORM, advantage_eps=0.0),
}
quick = settings(max_examples=150, deadline=None, database=None, derandomize=True)


def advantages(rewards, num_generations=None, config=GROUP_NORM, is_offline=None, dtype=torch.float64):
    offline = None if is_offline is None else torch.tensor(is_offline)
    rewards = torch.tensor(rewards, dtype=dtype)
    return group_advantages(rewards, num_generations or len(rewards), config=config, is_offline=offline).tolist()


def test_two_of_eight_solved_as_computed_by_hand():
    rewards = [1, 0, 0, 0, 1, 0, 0, 0]
    # mean 2/8; squares 2 * .75^2 + 6 * .25^2 = 1.5; sample deviation sqrt(1.5 / 7) = .4629100
    assert advantages(rewards, config=GROUP_MEAN) == pytest.approx([0.75, -0.25, -0.25, -0.25] * 2, abs=1e-15)
    high, low = 0.75 / (math.sqrt(1.5 / 7) + 1e-6), -0.25 / (math.sqrt(1.5 / 7) + 1e-6)
    assert (round(high, 6), round(low, 6)) == (1.620182, -0.540061)
    assert advantages(rewards, config=GROUP_NORM) == pytest.approx([high, low, low, low] * 2, rel=1e-12)
    # the mean of the other seven: 1/7 for a solved row, 2/7 for another; 8/7 times the mean-only advantage
    leave_one_out = [6 / 7, -2 / 7, -2 / 7, -2 / 7] * 2
    assert advantages(rewards, config=RLOO) == pytest.approx(leave_one_out, rel=1e-12)
    assert leave_one_out[0] == pytest.approx(8 / 7 * 0.75)


def literal(rewards, config, is_offline):
    """One group, with the statistics module and no vectors."""
    keep = [i for i, r in enumerate(rewards) if not math.isnan(r)]
    base = [i for i in keep if config.advantage_group == "all" or not is_offline[i]]
    result = [0.0] * len(rewards)
    for i in keep if base else []:
        if config.advantage_estimator == "rloo":
            others = [rewards[j] for j in base if j != i]
            result[i] = rewards[i] - statistics.fmean(others) if others else 0.0
            continue
        result[i] = rewards[i] - statistics.fmean(rewards[j] for j in base)
        if config.advantage_estimator == "group_norm":
            spread = statistics.stdev([rewards[j] for j in base]) if len(base) > 1 else 0.0
            result[i] = result[i] / (spread + config.advantage_eps) if spread else 0.0
    return result


reward = st.one_of(st.sampled_from([0.0, 1.0, 0.1, -0.5, NAN]), st.floats(-5, 5).map(lambda x: round(x, 3)))


@quick
@given(
    groups=st.integers(1, 6).flatmap(
        lambda g: st.lists(st.lists(st.tuples(reward, st.booleans()), min_size=g + 1, max_size=g + 1), max_size=4)
    ),
    config=st.sampled_from(list(CONFIGS.values())),
    group=st.sampled_from(["on_policy", "all"]),
)
def test_advantages_equal_the_literal_reference(groups, config, group):
    config = replace(config, advantage_group=group)
    rows = [row for rows in groups for row in rows]
    size = len(groups[0]) if groups else 2
    found = advantages([r for r, _ in rows], size, config, [o for _, o in rows])
    expected = [a for rows in groups for a in literal([r for r, _ in rows], config, [o for _, o in rows])]
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


@quick
@given(
    rewards=st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=9),
    shift=st.sampled_from([-4.0, 0.5, 16.0]),
    config=st.sampled_from(list(CONFIGS.values())),
)
def test_advantages_sum_to_zero_and_ignore_a_shift_and_the_order(rewards, shift, config):
    rewards = [round(r * 64) / 64 for r in rewards]  # exact under the shift
    found = advantages(rewards, config=config)
    assert sum(found) == pytest.approx(0, abs=1e-9)
    assert advantages([r + shift for r in rewards], config=config) == pytest.approx(found, rel=1e-9, abs=1e-12)
    assert advantages(rewards[::-1], config=config) == pytest.approx(found[::-1], rel=1e-9, abs=1e-12)


@quick
@given(
    value=st.floats(-1e6, 1e6),
    size=st.integers(2, 9),
    config=st.sampled_from(list(CONFIGS.values())),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_equal_rewards_give_exactly_zero_even_with_eps_0(value, size, config, dtype):
    # .1 + .1 + .1 divided by 3 is not .1 in floats; a division by the tiny deviation would make it large
    assert advantages([value] * size, config=config, dtype=dtype) == [0.0] * size


def test_a_deviation_too_small_to_square_gives_zero_not_infinity():
    assert advantages([0.0, 1e-30], config=CONFIGS["group_norm_eps_0"], dtype=torch.float32) == [0.0, 0.0]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_unscored_rows_get_zero_and_leave_the_others_as_if_absent(config):
    found = advantages([1.0, NAN, 0.0, 0.5, NAN, NAN, NAN, NAN, NAN, NAN], 5, config)
    rest = advantages([1.0, 0.0, 0.5], 3, config)
    assert found == pytest.approx([rest[0], 0.0, rest[1], rest[2], 0.0] + [0.0] * 5, rel=1e-12)
    assert advantages([NAN, 0.7, NAN], 3, config) == [0.0, 0.0, 0.0]  # one scored row has nothing to compare with


def test_groups_do_not_touch_each_other():
    assert advantages([1, 0, 0, 0, 1, 1], 2, GROUP_MEAN) == [0.5, -0.5, 0.0, 0.0, 0.0, 0.0]


def test_demonstrations_enter_the_baseline_only_with_group_all():
    rewards, offline = [0.0, 1.0, 1.0, 1.0], [False, False, False, True]
    on_policy = advantages(rewards, config=GROUP_MEAN, is_offline=offline)
    assert on_policy == pytest.approx([-2 / 3, 1 / 3, 1 / 3, 1 / 3], rel=1e-12)  # mean of three rollouts: 2/3
    union = advantages(rewards, config=replace(GROUP_MEAN, advantage_group="all"), is_offline=offline)
    assert union == pytest.approx([-0.75, 0.25, 0.25, 0.25], rel=1e-12)
    # left out, a demonstration is compared with all rollouts; a rollout with the other rollouts
    loo = advantages(rewards, config=RLOO, is_offline=offline)
    assert loo == pytest.approx([-1.0, 0.5, 0.5, 1 / 3], rel=1e-12)


def test_failed_group_with_a_demonstration():
    """Seven rollouts at 0 and a demonstration at 1: the union has a deviation, the rollouts alone have none."""
    rewards, offline = [0.0] * 7 + [1.0], [False] * 7 + [True]
    union = advantages(rewards, config=UPGE_PRESETS["luffy_offline"], is_offline=offline)
    deviation = math.sqrt((7 * 0.125**2 + 0.875**2) / 7)
    assert union == pytest.approx([-0.125 / (deviation + 1e-6)] * 7 + [0.875 / (deviation + 1e-6)], rel=1e-12)
    assert advantages(rewards, config=GROUP_NORM, is_offline=offline) == [0.0] * 8
    assert advantages(rewards, config=GROUP_MEAN, is_offline=offline) == [0.0] * 7 + [1.0]


def test_a_group_of_demonstrations_only_has_no_on_policy_baseline():
    assert advantages([1.0, 0.0], config=GROUP_MEAN, is_offline=[True, True]) == [0.0, 0.0]


def test_estimators_without_a_group():
    rewards = [1.0, 0.0, -2.0, 0.3, NAN]
    assert advantages(rewards, 1, UPGE_PRESETS["sft"]) == [1.0, 1.0, 1.0, 1.0, 0.0]
    assert advantages(rewards, 1, UPGE_PRESETS["reinforce"]) == [1.0, -1.0, -1.0, 1.0, 0.0]
    assert advantages(rewards, 5, UPGE_PRESETS["ppo"]) == [1.0, 0.0, -2.0, 0.3, 0.0]


def test_remax_compares_with_the_greedy_completion():
    config = replace(RLOO, advantage_estimator="remax")

    def remax(rewards, greedy):
        found = group_advantages(torch.tensor(rewards), 4, config=config, greedy_rewards=torch.tensor(greedy))
        return found.tolist()

    assert remax([1.0, 0.0, 0.0, 0.0], [1.0] * 4) == [0.0, -1.0, -1.0, -1.0]
    assert remax([1.0, 0.0, 0.0, 0.0], [0.0] * 4) == [1.0, 0.0, 0.0, 0.0]
    # The sum of squares is n (1 - p) where the greedy answer is right, n p where it is wrong; 0 if all are alike.
    for solved in range(5):
        rewards = [1.0] * solved + [0.0] * (4 - solved)
        assert sum(value**2 for value in remax(rewards, [1.0] * 4)) == 4 - solved
        assert sum(value**2 for value in remax(rewards, [0.0] * 4)) == solved
    assert remax([1.0, NAN, 0.0, 1.0], [0.5, 0.5, NAN, 0.5]) == [0.5, 0.0, 0.0, 0.5]
    with pytest.raises(ValueError, match="greedy_rewards belong to remax; advantage_estimator is remax"):
        group_advantages(torch.zeros(4), 4, config=config)
    with pytest.raises(ValueError, match="advantage_estimator is rloo"):
        group_advantages(torch.zeros(4), 4, config=RLOO, greedy_rewards=torch.zeros(4))


def test_precision_shape_and_detachment():
    rewards = torch.tensor([1.0, 0.0], dtype=torch.bfloat16, requires_grad=True)
    for config in [*UPGE_PRESETS.values()]:
        result = group_advantages(rewards, 2, config=config)
        assert result.shape == (2,) and result.dtype == torch.float32 and not result.requires_grad
    assert group_advantages(torch.tensor([1, 0]), 2, config=GROUP_MEAN).tolist() == [0.5, -0.5]
    assert group_advantages(torch.zeros(0), 2, config=GROUP_MEAN).shape == (0,)


@pytest.mark.parametrize(
    ("rewards", "size", "config", "message"),
    [
        ([1.0, 0.0, 1.0], 2, GROUP_NORM, "num_generations is 2 for 3 rewards; it must be at least 2 .* divide"),
        ([1.0, 0.0], 1, RLOO, "num_generations is 1 .* at least 2 for advantage_estimator rloo"),
        ([1.0, 0.0], 0, UPGEConfig("current", "one", stabilization_mask="none"), "num_generations is 0 .* at least 1"),
        ([[1.0, 0.0]], 2, GROUP_NORM, r"rewards have shape \(1, 2\); expected \(B,\)"),
        ([1.0, float("inf")], 2, GROUP_NORM, "rewards contain an infinite value; .* is NaN"),
    ],
)
def test_refusals(rewards, size, config, message):
    with pytest.raises(ValueError, match=message):
        group_advantages(torch.tensor(rewards), size, config=config)


def test_a_flag_per_row_is_needed_for_demonstrations():
    with pytest.raises(ValueError, match="and the same for is_offline"):
        group_advantages(torch.zeros(4), 2, config=GROUP_NORM, is_offline=torch.zeros(2, dtype=torch.bool))
