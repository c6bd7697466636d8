"""Settings are refused by name, and the statistics equal what a reader computes by hand."""

import itertools
import json
import math
import random
import statistics

import pytest

from posttrain.errors import ConfigError
from posttrain.evaluation.results import (
    EvalResult,
    EvalSettings,
    mean_and_stderr,
    paired_difference,
    pass_at_k,
    pass_at_k_scores,
    pass_at_k_sizes,
    prompt_accuracies,
    summarise,
    summarise_groups,
)


def sample(index, correct, *, number=0, group=None, length=5, truncated=False):
    return {
        "index": index,
        "sample": number,
        "group": group,
        "correct": correct,
        "length": length,
        "truncated": truncated,
    }


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"num_prompts": 0}, "num_prompts"),
        ({"num_prompts": True}, "num_prompts"),
        ({"num_generations": 1.5}, "num_generations"),
        ({"batch_size": -1}, "batch_size"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"every_steps": 0}, "every_steps"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"time_budget_seconds": 0}, "time_budget_seconds"),
        ({"num_generations": 4, "temperature": 0.0}, "num_generations"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(values, field):
    with pytest.raises(ConfigError, match=rf"^eval\.{field}: "):
        EvalSettings(**values)


def test_several_greedy_completions_are_refused_with_what_to_do():
    with pytest.raises(ConfigError, match="Set eval.temperature above 0, or eval.num_generations to 1"):
        EvalSettings(num_generations=8)


def test_mean_and_standard_error_by_hand():
    # x = 1, 0, 1, 1: mean 3/4; deviations 1/4, -3/4, 1/4, 1/4; squares 1+9+1+1 = 12 sixteenths = 3/4;
    # 3/4 / (4 * 3) = 1/16; root 1/4.
    assert mean_and_stderr([1, 0, 1, 1]) == (0.75, 0.25)


def test_standard_error_is_the_sample_deviation_over_root_n():
    values = [random.random() for _ in range(50)]
    mean, stderr = mean_and_stderr(values)
    assert mean == pytest.approx(statistics.fmean(values), rel=1e-12)
    assert stderr == pytest.approx(statistics.stdev(values) / math.sqrt(50), rel=1e-12)


def test_too_few_values_have_no_standard_error():
    assert all(math.isnan(value) for value in mean_and_stderr([]))
    mean, stderr = mean_and_stderr([1.0])
    assert mean == 1.0 and math.isnan(stderr)
    assert mean_and_stderr([1.0, 1.0, 1.0]) == (1.0, 0.0)


def test_the_prompt_is_the_unit_and_missing_verdicts_are_left_out():
    samples = [
        sample(0, True),
        sample(0, False, number=1),  # prompt 0: 1/2
        sample(1, True),
        sample(1, None, number=1),  # prompt 1: 1, its other completion has no verdict
        sample(2, None),
        sample(2, None, number=1),  # prompt 2: no verdict, not in the mean
        sample(3, False),
        sample(3, False, number=1, length=11, truncated=True),  # prompt 3: 0
    ]
    assert prompt_accuracies(samples) == {0: 0.5, 1: 1.0, 3: 0.0}
    score = summarise(samples)
    assert (score.num_prompts, score.num_samples, score.num_scored_prompts, score.unscored) == (4, 8, 3, 3)
    assert score.accuracy == 0.5
    # deviations 0, 1/2, -1/2: sum of squares 1/2; 1/2 / (3 * 2) = 1/12
    assert score.accuracy_stderr == pytest.approx(math.sqrt(1 / 12), rel=1e-12)
    assert score.mean_length == pytest.approx((7 * 5 + 11) / 8)
    assert score.truncated_fraction == 1 / 8


def test_groups_are_scored_apart():
    samples = [sample(0, True, group="b"), sample(1, False, group="a"), sample(2, True, group="a")]
    groups = summarise_groups(samples)
    assert list(groups) == ["a", "b"]
    assert (groups["a"].accuracy, groups["a"].accuracy_stderr) == (0.5, 0.5)
    assert groups["b"].accuracy == 1.0 and math.isnan(groups["b"].accuracy_stderr)
    assert summarise_groups([sample(0, True)]) == {}


def test_paired_difference_uses_the_prompts_scored_both_times():
    before = [sample(0, False), sample(1, False), sample(2, True), sample(3, None), sample(9, True)]
    after = [sample(0, True), sample(1, False), sample(2, True), sample(3, True)]
    # differences on prompts 0, 1, 2: 1, 0, 0: mean 1/3; squares 4/9 + 1/9 + 1/9 = 2/3; / (3 * 2) = 1/9; root 1/3
    difference, stderr, count = paired_difference(before, after)
    assert (difference, stderr, count) == (pytest.approx(1 / 3), pytest.approx(1 / 3), 3)


def test_result_becomes_json_with_null_for_unknown_numbers():
    samples = [sample(0, True, group="a")]
    score = summarise(samples)
    result = EvalResult(
        **vars(score),
        num_requested=1,
        num_tokens=5,
        seconds=0.1,
        partial=False,
        per_group={"a": score},
        samples=samples,
    )
    values = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert values["accuracy"] == 1.0 and values["accuracy_stderr"] is None
    assert values["per_group"]["a"]["accuracy_stderr"] is None
    assert values["samples"] == samples
    assert "samples" not in result.to_dict(with_samples=False)


# ---- pass@k ----


def test_pass_at_k_equals_the_share_of_subsets_that_hold_a_correct_completion():
    for n in range(1, 8):
        for c in range(n + 1):
            completions = [index < c for index in range(n)]
            for k in range(1, n + 1):
                drawn = [any(subset) for subset in itertools.combinations(completions, k)]
                assert pass_at_k(n, c, k=k) == pytest.approx(sum(drawn) / len(drawn), abs=1e-15)


def test_pass_at_k_is_unbiased():
    """Over all outcomes of n = 4 draws with chance p, its mean is the chance that k new draws hold a correct one."""
    n, p = 4, 0.3
    for k in range(1, n + 1):
        mean = sum(math.comb(n, c) * p**c * (1 - p) ** (n - c) * pass_at_k(n, c, k=k) for c in range(n + 1))
        assert mean == pytest.approx(1 - (1 - p) ** k, rel=1e-12)


def test_pass_at_k_is_exact_for_many_completions():
    # 1 - (999 * 998 * ... * 900) / (1000 * ... * 901) = 1 - 900/1000
    assert pass_at_k(1000, 1, k=100) == pytest.approx(0.1, rel=1e-12)
    assert pass_at_k(10_000, 0, k=5000) == 0.0


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 0), (4, 1, 5), (4, 5, 1), (4, -1, 1), (0, 0, 1)])
def test_pass_at_k_of_impossible_counts_is_refused(n, c, k):
    with pytest.raises(ValueError, match="needs 1 <= k <= n and 0 <= c <= n"):
        pass_at_k(n, c, k=k)


@pytest.mark.parametrize(
    ("n", "expected"),
    [(1, []), (2, [1, 2]), (3, [1, 2, 3]), (4, [1, 2, 4]), (6, [1, 2, 4, 6]), (16, [1, 2, 4, 8, 16])],
)
def test_sizes_are_powers_of_two_and_the_number_of_completions(n, expected):
    assert pass_at_k_sizes(n) == expected


def test_pass_at_k_over_prompts_by_hand():
    verdicts = {0: (True, False, False), 1: (False, False, False), 2: (True, True, False)}
    samples = [sample(i, ok, number=j) for i, row in verdicts.items() for j, ok in enumerate(row)]
    scores = summarise(samples).pass_at_k
    assert list(scores) == [1, 2, 3]
    # k = 1: 1/3, 0, 2/3; k = 2: 1 - C(2,2)/C(3,2) = 2/3, 0, 1; k = 3: 1, 0, 1
    for k, values in {1: (1 / 3, 0, 2 / 3), 2: (2 / 3, 0, 1), 3: (1, 0, 1)}.items():
        mean, stderr = mean_and_stderr(values)
        assert (scores[k].value, scores[k].stderr) == (pytest.approx(mean), pytest.approx(stderr))
        assert (scores[k].num_prompts, scores[k].num_left_out) == (3, 0)


def test_completions_without_verdict_are_not_drawn_and_prompts_with_too_few_are_counted():
    verdicts = {0: (True, False, None, False), 1: (None, None, None, True), 2: (None,) * 4, 3: (False,) * 4}
    samples = [sample(i, ok, number=j) for i, row in verdicts.items() for j, ok in enumerate(row)]
    score = summarise(samples)
    found = {k: (item.value, item.num_prompts, item.num_left_out) for k, item in score.pass_at_k.items()}
    assert found == {
        1: (pytest.approx((1 / 3 + 1 + 0) / 3), 3, 1),  # prompt 2 has no verdict
        2: (pytest.approx((2 / 3 + 0) / 2), 2, 2),  # prompt 1 has one
        4: (0.0, 1, 3),  # prompt 0 has three
    }
    assert score.pass_at_k[1].value == score.accuracy and score.pass_at_k[1].stderr == score.accuracy_stderr
    assert math.isnan(score.pass_at_k[4].stderr)


def test_pass_at_k_is_given_for_each_group_and_becomes_json():
    samples = [
        sample(i, ok, number=j, group=group)
        for i, (group, row) in enumerate([("a", (True, False)), ("b", (None, None)), ("a", (False, False))])
        for j, ok in enumerate(row)
    ]
    groups = summarise_groups(samples)
    assert groups["a"].pass_at_k[2].value == 0.5 and math.isnan(groups["b"].pass_at_k[2].value)
    result = EvalResult(
        **vars(summarise(samples)), num_requested=3, num_tokens=5, seconds=0.1, partial=False, per_group=groups
    )
    values = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert values["pass_at_k"]["2"] == {"value": 0.5, "stderr": 0.5, "num_prompts": 2, "num_left_out": 1}
    assert values["per_group"]["b"]["pass_at_k"]["1"] == {
        "value": None,
        "stderr": None,
        "num_prompts": 0,
        "num_left_out": 1,
    }


def test_one_completion_per_prompt_has_no_pass_at_k():
    assert pass_at_k_scores([sample(0, True), sample(1, False)]) == {} == pass_at_k_scores([])
