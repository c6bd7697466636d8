"""Every condition speaks once it has held long enough, with its numbers and the setting to change, and not before."""

from __future__ import annotations

import math

import pytest

from posttrain.training.callbacks.health_checks import Finding, HealthLimits, Log, all_checks

DEFAULTS = HealthLimits()


def look(name, lines, *, every=1, limits=DEFAULTS, seconds=None):
    """(step, finding) of the first finding of a check on these log lines, or None."""
    check = next(check for check in all_checks(limits) if check.name == name)
    for place, values in enumerate(lines):
        step = (place + 1) * every
        took = seconds[place] if seconds is not None else math.nan
        found = check.look(Log(step, step - every + 1, took, values))
        if found is not None:
            return step, found
    return None


GROUPS = {"groups/all_wrong": 0.75, "groups/all_correct": 0.1875}  # 0.9375 without contrast
LASTING = {
    "dead_groups": ({}, GROUPS, {**GROUPS, "groups/all_wrong": 0.7}),
    "truncation": ({}, {"rollout/truncated_fraction": 0.21}, {"rollout/truncated_fraction": 0.2}),
    "entropy_collapse": (
        {"entropy": 1.0, "reward": 0.0},
        {"entropy": 0.09, "reward": 0.0},
        {"entropy": 0.11, "reward": 0.0},
    ),
    "length_drift": (
        {"completions/mean_length": 100.0},
        {"completions/mean_length": 24.0},
        {"completions/mean_length": 26.0},
    ),
    "log_prob_mismatch": (
        {},
        {"sampling/sampling_logp_difference/mean": 0.11},
        {"sampling/sampling_logp_difference/mean": 0.1},
    ),
    "no_reward_spread": ({}, {"reward": 0.5, "reward_std": 0.0}, {"reward": 0.5, "reward_std": 1e-6}),
}
WORDS = {
    "dead_groups": [
        "94% of the prompt groups have no contrast",
        "all attempts wrong in 75%",
        "rollout.num_generations",
    ],
    "truncation": ["21% of the completions are cut off", "rollout.max_completion_length"],
    "entropy_collapse": ["from 1 to 0.09 nats", "trainer.learning_rate", "trainer.entropy_coef", "trainer.beta"],
    "length_drift": ["from 100 to 24 tokens: it collapses", "rollout.rewards"],
    "log_prob_mismatch": ["differ by 0.11 nats per token", "model.dtype", "rollout.vllm_importance_sampling_mode"],
    "no_reward_spread": ["the same reward (0.5)", "rollout.rewards"],
}


@pytest.mark.parametrize("name", LASTING)
def test_a_lasting_condition_speaks_after_twenty_steps(name):
    first, bad, _ = LASTING[name]
    step, found = look(name, [first] * 3 + [bad] * 40)
    assert (step, found.since) == (23, 4)  # steps 4 to 23 are the twenty
    assert all(word in found.text for word in WORDS[name]), found.text
    assert look(name, [first] * 3 + [bad] * 19) is None


@pytest.mark.parametrize("name", LASTING)
def test_a_lasting_condition_is_silent_below_its_threshold_and_after_a_pause(name):
    first, bad, fine = LASTING[name]
    assert look(name, [first, *[fine] * 60]) is None
    assert look(name, [first, *([bad] * 19 + [fine]) * 4]) is None


@pytest.mark.parametrize("name", LASTING)
def test_steps_are_counted_however_often_the_run_logs(name):
    """Two lines that cover ten steps each are twenty steps."""
    first, bad, _ = LASTING[name]
    step, found = look(name, [first, bad, bad, bad], every=10)
    assert (step, found.since) == (30, 11)


def test_dead_groups_tell_too_easy_from_too_hard_and_leave_demonstrations_out():
    easy = {"groups/all_wrong": 0.0, "groups/all_correct": 0.95}
    assert "too easy: use harder ones" in look("dead_groups", [easy] * 20)[1].text
    # A group that learns from its demonstration is not dead.
    hybrid = {**GROUPS, "gate/sft_fraction": 0.75}
    assert look("dead_groups", [hybrid] * 60) is None


def test_truncation_is_read_under_either_name():
    assert look("truncation", [{"completions/clipped_ratio": 0.5}] * 20)[0] == 20


def test_lengths_may_explode_as_well():
    lines = [{"completions/mean_length": 10.0}, *[{"completions/mean_length": 41.0}] * 20]
    assert "from 10 to 41 tokens: it explodes" in look("length_drift", lines)[1].text
    assert look("length_drift", [{"completions/mean_length": 10.0}, *[{"completions/mean_length": 40.0}] * 60]) is None


def test_entropy_of_supervised_training_may_fall():
    assert look("entropy_collapse", [{"entropy": 1.0}, *[{"entropy": 0.001}] * 60]) is None


def test_a_gradient_of_exactly_zero_three_times_in_a_row():
    zero, small = {"grad_norm": 0.0}, {"grad_norm": 1e-12}
    step, found = look("zero_gradient", [small, zero, zero, zero])
    assert (step, found.since) == (4, 2) and "exactly zero in 3 log lines" in found.text
    assert look("zero_gradient", [zero, zero, small] * 5) is None
    # A line without the metric neither counts nor interrupts.
    assert look("zero_gradient", [zero, {}, zero, {}, zero])[0] == 5


def test_a_failed_reward_is_told_at_once_and_by_name():
    fine, failing = {"reward/math/failed_fraction": 0.0}, {"reward/math/failed_fraction": 0.125}
    step, found = look("failed_rewards", [fine, failing])
    assert step == 2 and "(math 12.5%)" in found.text and "rollout.max_failed_fraction" in found.text
    assert look("failed_rewards", [fine] * 50) is None


def test_a_spike_is_measured_against_the_median_of_what_came_before():
    usual = [{"grad_norm": 0.5}] * 5 + [{"grad_norm": 1.5}] * 5  # median 1
    step, found = look("gradient_spike", [*usual, {"grad_norm": 20.1}])
    assert (
        step == 11 and "jumped to 20.1, 20 times the usual 1" in found.text and "trainer.max_grad_norm" in found.text
    )
    assert look("gradient_spike", [*usual, {"grad_norm": 20.0}]) is None
    assert look("gradient_spike", [*usual[:9], {"grad_norm": 1000.0}]) is None  # too early to know what is usual


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_told_at_once(norm):
    assert look("gradient_spike", [{"grad_norm": norm}])[1].text.startswith(f"the gradient norm is {norm}. Lower")


def test_steps_that_become_three_times_as_slow():
    # The first line is left out; the beginning is 1 s, the last five have their median at the third slow one.
    seconds = [50.0, *[1.0] * 10, *[3.1] * 10]
    step, found = look("slow_steps", [{}] * len(seconds), seconds=seconds)
    assert (step, found.since) == (14, 10)
    assert "a step takes 3.1 s, 3.1 times as long as at the beginning (1 s)" in found.text
    assert look("slow_steps", [{}] * 40, seconds=[50.0, *[1.0] * 10, *[3.0] * 29]) is None


def test_thresholds_are_the_callers():
    limits = HealthLimits(truncated_fraction=0.5, sustained_steps=2)
    assert look("truncation", [{"rollout/truncated_fraction": 0.4}] * 60, limits=limits) is None
    assert look("truncation", [{"rollout/truncated_fraction": 0.6}] * 3, limits=limits) == (
        2,
        Finding(1, look("truncation", [{"rollout/truncated_fraction": 0.6}] * 20)[1].text),
    )


@pytest.mark.parametrize("name", [check.name for check in all_checks(DEFAULTS)])
def test_lines_without_the_metric_are_no_finding(name):
    nothing = [{}, {"loss": 1.0}, dict.fromkeys(("grad_norm", "reward_std", "entropy", "reward"), None)]
    assert look(name, nothing * 20) is None
