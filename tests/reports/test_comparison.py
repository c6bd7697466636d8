"""Numbers of a comparison against values worked out by hand."""

from __future__ import annotations

import json
import math

import pytest
from scipy.stats import t

from posttrain.errors import ConfigError, DataError
from posttrain.reports.comparability import warnings
from posttrain.reports.comparison import Comparison, accuracy_against, holm, paired_runs
from posttrain.reports.measure import Measure
from posttrain.reports.variants import Variant, find_runs, sort_into_variants
from tests.reports.recorded import record


def variant(root, name, afters, *, seeds=None, **more):
    """A variant of one run for each number of solved prompts (of 4)."""
    folders = [
        record(root / name / str(place), seed=place if seeds is None else seeds[place], after=after, **more)
        for place, after in enumerate(afters)
    ]
    return Variant.of(name, *folders)


@pytest.fixture
def two(tmp_path):
    """Finals 1/4, 2/4, 2/4 and 2/4, 2/4, 4/4 on seeds 0, 1, 2, all from 1/4."""
    return Comparison((variant(tmp_path, "base", [1, 2, 2]), variant(tmp_path, "new", [2, 2, 4])))


def test_mean_spread_and_range_over_seeds(two):
    final = two.final["new"]
    # of 0.5, 0.5, 1: deviations -1/6, -1/6, 1/3, s^2 = (1/36 + 1/36 + 4/36) / 2 = 1/12, error sqrt(1/12 / 3) = 1/6
    assert final.mean == pytest.approx(2 / 3) and final.stderr == pytest.approx(1 / 6)
    assert (final.low, final.high, final.num_seeds, final.over) == (0.5, 1.0, 3, "3 seeds")
    assert two.before["new"].mean == 0.25 and two.before["new"].stderr == 0
    assert two.changes["new"] == (pytest.approx(2 / 3 - 0.25), pytest.approx(1 / 6))


def test_several_seeds_are_tested_by_their_differences(two):
    (test,) = two.tests
    # differences 0.25, 0, 0.5: mean 0.25, s = 0.25, error 0.25 / sqrt(3)
    assert test.over == "seeds" and test.interval.num_values == 3
    assert test.interval.mean == pytest.approx(0.25) and test.interval.stderr == pytest.approx(0.25 / math.sqrt(3))
    half = t.ppf(0.975, 2) * 0.25 / math.sqrt(3)
    assert (test.interval.low, test.interval.high) == (pytest.approx(0.25 - half), pytest.approx(0.25 + half))
    assert test.interval.p_value == pytest.approx(2 * t.sf(math.sqrt(3), 2)) and not test.excludes_zero
    assert test.adjusted_p == test.interval.p_value  # one test


def test_one_seed_has_its_error_over_prompts_and_is_tested_over_prompts(tmp_path):
    comparison = Comparison((variant(tmp_path, "base", [1]), variant(tmp_path, "new", [3])))
    final = comparison.final["new"]
    # 1, 1, 1, 0: s^2 = 0.25, error sqrt(0.25 / 4)
    assert (final.mean, final.over, final.num_seeds) == (0.75, "4 prompts", 1)
    assert final.stderr == pytest.approx(0.25)
    (test,) = comparison.tests
    # differences 0, 1, 1, 0: mean 0.5, s^2 = 1/3, error sqrt(1/12)
    assert (test.over, test.interval.num_values, test.interval.mean) == ("prompts", 4, 0.5)
    assert test.interval.stderr == pytest.approx(math.sqrt(1 / 12)) and test.note == ""
    # 1, 0, 0, 0 before and 1, 1, 1, 0 after, over the same prompts
    assert comparison.changes["new"] == (0.5, pytest.approx(math.sqrt(1 / 12)))


def test_seeds_are_paired_by_number_and_not_by_order(tmp_path):
    first = variant(tmp_path, "a", [1, 2, 3], seeds=[0, 1, 2])
    second = variant(tmp_path, "b", [4, 3, 2], seeds=[2, 1, 5])
    pairs = [(x.seeds["trainer"], y.seeds["trainer"]) for x, y in paired_runs(first, second)]
    assert pairs == [(1, 1), (2, 2)]
    (test,) = Comparison((first, second)).tests
    # seed 1: 3/4 - 2/4, seed 2: 4/4 - 3/4
    assert test.interval.num_values == 2 and test.interval.mean == 0.25


def test_one_common_seed_of_several_is_tested_over_its_prompts(tmp_path):
    comparison = Comparison((variant(tmp_path, "a", [1, 2]), variant(tmp_path, "b", [4, 3], seeds=[1, 7])))
    (test,) = comparison.tests
    assert test.over == "prompts" and test.interval.mean == 0.5  # seed 1: 4/4 - 2/4
    assert test.note == "only seed 1, the one that both have"


def test_without_a_common_seed_nothing_is_tested(tmp_path):
    comparison = Comparison((variant(tmp_path, "a", [1, 2]), variant(tmp_path, "b", [4, 3], seeds=[8, 9])))
    assert comparison.tests[0].interval is None and comparison.tests[0].note == "no seed in common"


def test_single_runs_of_different_seeds_are_tested_with_a_note(tmp_path):
    (test,) = Comparison((variant(tmp_path, "a", [1]), variant(tmp_path, "b", [4], seeds=[9]))).tests
    assert test.interval.mean == 0.75 and "different seeds (data order, model, trainer)" in test.note


def test_different_prompts_are_not_paired(tmp_path):
    other = variant(tmp_path, "b", [4], prompt="another question")
    (test,) = Comparison((variant(tmp_path, "a", [1]), other)).tests
    assert test.interval is None and test.note == "the variants were evaluated on different prompts"


def test_prompts_without_a_verdict_leave_the_pairs(tmp_path):
    (test,) = Comparison(
        (variant(tmp_path, "a", [[False] * 4]), variant(tmp_path, "b", [[True, None, False, True]]))
    ).tests
    assert test.interval.num_values == 3 and test.interval.mean == pytest.approx(2 / 3)


@pytest.mark.parametrize(("base", "new", "who"), [([None] * 4, 3, "a"), (3, [None] * 4, "b")])
def test_an_variant_without_any_verdict_is_named(tmp_path, base, new, who):
    (test,) = Comparison((variant(tmp_path, "a", [base]), variant(tmp_path, "b", [new]))).tests
    assert test.interval is None and test.note == f"no completion of {who} tells accuracy"


def test_an_variant_without_the_group_is_named(tmp_path):
    path = tmp_path / "b" / "0" / "completions" / "after.jsonl"
    variants = variant(tmp_path, "a", [1]), variant(tmp_path, "b", [3])
    evals = json.loads((tmp_path / "b" / "0" / "eval.json").read_text())
    evals["after"]["per_group"] = {"easy": {"accuracy": 0.75, "accuracy_stderr": 0.25}}
    (tmp_path / "b" / "0" / "eval.json").write_text(json.dumps(evals))
    path.write_text(path.read_text().replace('"group": null', '"group": "easy"'))
    (test,) = Comparison(variants, Measure("per_group.easy.accuracy")).tests
    assert test.interval is None and test.note == "no completion of a tells per_group.easy.accuracy"


@pytest.mark.parametrize("line", ['{"index": 2, "pro', '{"index": 2}', "[1, 2]", "7"])
def test_a_damaged_line_of_completions_is_named(tmp_path, line):
    variants = variant(tmp_path, "a", [1]), variant(tmp_path, "b", [3])
    path = tmp_path / "b" / "0" / "completions" / "after.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1], line, lines[3]]) + "\n")
    with pytest.raises(DataError, match=r"b/0/completions/after.jsonl:3: not readable. Restore the file, or leave"):
        _ = Comparison(variants).tests


@pytest.mark.parametrize(
    "content", ['{"warnings": [{"te', "[]", "[1]", '{"checks": {}}', '{"warnings": [{"step": 1}]}', '{"warnings": 3}']
)
def test_a_damaged_health_file_is_named(tmp_path, content):
    comparison = Comparison((variant(tmp_path, "a", [1]), variant(tmp_path, "b", [3])))
    (tmp_path / "b" / "0" / "health.json").write_text(content)
    with pytest.raises(DataError, match=r"b/0/health.json: not readable. Restore the file, or leave this run out"):
        warnings(comparison)


def test_the_baseline_may_be_any_variant(two):
    swapped = Comparison(two.variants, baseline_name="new")
    (test,) = swapped.tests
    assert (test.variant, test.baseline) == ("base", "new") and test.interval.mean == pytest.approx(-0.25)


def test_several_tests_are_adjusted_by_holm(tmp_path):
    # by hand: 0.01 * 3, then the larger of it and 0.03 * 2, then of that and 0.04 * 1
    assert holm({"b": 0.04, "a": 0.01, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0} and holm({}) == {}
    variants = (
        variant(tmp_path, "base", [1, 2, 2]),
        variant(tmp_path, "x", [2, 2, 4]),
        variant(tmp_path, "y", [2, 4, 3]),
    )
    tests = Comparison(variants).tests
    plain = {test.variant: test.interval.p_value for test in tests}
    assert {test.variant: test.adjusted_p for test in tests} == pytest.approx(holm(plain))


def test_unfinished_runs_count_in_no_final_number(tmp_path):
    grown = variant(tmp_path, "a", [1, 3, None])
    comparison = Comparison((grown, variant(tmp_path, "b", [None])))
    assert comparison.final["a"].num_seeds == 2 and comparison.final["a"].mean == 0.5
    assert math.isnan(comparison.final["b"].mean)
    assert comparison.tests[0].note == "no finished run of b" and [item.name for item in comparison.ranked()] == ["a"]


# ---- costs ----

COUNTED = {"loss": 1.0, "cost/prompts": 8, "cost/generated_tokens": 100, "cost/demonstrations": 2}


def test_costs_are_the_last_totals_averaged_over_seeds(tmp_path):
    short = record(tmp_path / "short", seed=0, steps=2, metrics=COUNTED)
    long = record(tmp_path / "long", seed=1, steps=4, metrics=COUNTED)
    costs = Comparison((Variant.of("a", short, long),)).costs["a"]
    assert costs == {
        "optimizer steps": 3,  # of 2 and 4
        "prompts": 24,  # 8 times that
        "generated tokens": 300,
        "demonstrations": 6,
        "training time": 6,  # 2 s a step
        "evaluation time": 3,  # twice 1.5 s
    }


def test_a_cost_that_was_not_counted_is_unknown_and_one_that_never_arose_is_none(tmp_path):
    old = Variant.of("old", record(tmp_path / "old"))
    rl = Variant.of("rl", record(tmp_path / "rl", metrics={"cost/prompts": 8}))
    costs = Comparison((old, rl)).costs
    assert math.isnan(costs["old"]["prompts"]) and math.isnan(costs["old"]["demonstrations"])
    assert costs["rl"]["prompts"] == 32 and costs["rl"]["demonstrations"] == 0


def test_accuracy_over_tokens_takes_the_log_up_to_the_evaluation(tmp_path):
    (run,) = find_runs([str(record(tmp_path / "a", metrics=COUNTED))])
    assert [(place, value) for place, value, _ in accuracy_against(run, Measure(), None)] == [(0, 0.25), (4, 0.75)]
    over_tokens = accuracy_against(run, Measure(), "cost/generated_tokens")
    assert [(place, value) for place, value, _ in over_tokens] == [(0, 0.25), (400, 0.75)]
    assert accuracy_against(run, Measure(), "cost/none") == []


# ---- what can be measured ----


def test_other_numbers_can_be_compared(tmp_path):
    short, long = variant(tmp_path, "short", [1], length=2), variant(tmp_path, "long", [1], length=6)
    comparison = Comparison((short, long), Measure("mean_length"))
    assert comparison.final["long"].mean == 6 and comparison.tests[0].interval.mean == 4
    assert comparison.measure.show(6.0) == "6" and comparison.measure.show_difference(4.0) == "+4"


def test_numbers_are_found_by_path_and_by_the_name_of_pass_at_k():
    item = {
        "accuracy": 0.5,
        "accuracy_stderr": 0.1,
        "pass_at_k": {"4": {"value": 0.9, "stderr": 0.05}},
        "per_group": {"1.5 digits": {"accuracy": 0.25, "accuracy_stderr": None}},
    }
    assert Measure("pass@4").read(item) == (0.9, 0.05) and Measure("pass@4").is_fraction
    assert Measure("accuracy").read(item) == (0.5, 0.1)
    value, error = Measure("per_group.1.5 digits.accuracy").read(item)
    assert value == 0.25 and math.isnan(error)
    assert math.isnan(Measure("pass@8").read(item)[0]) and math.isnan(Measure("accuracy").read(None)[0])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"measure": Measure("acuracy")},
            r"no evaluation has this number \(got 'acuracy'; allowed: one of: accuracy, mean",
        ),
        ({"baseline_name": "old"}, r"--baseline: no variant of this name \(got 'old'; allowed: one of: base, new"),
    ],
)
def test_unknown_names_are_refused(two, changed, message):
    with pytest.raises(ConfigError, match=message):
        Comparison(two.variants, **changed)


def test_variants_of_one_name_are_refused(two):
    with pytest.raises(ConfigError, match="same name"):
        Comparison((two.variants[0], two.variants[0]))


def test_variants_from_folders_and_variants_by_name_agree(tmp_path):
    folders = [record(tmp_path / str(seed), seed=seed, after=seed + 1) for seed in (0, 1)]
    (found,) = sort_into_variants(find_runs([str(tmp_path)]))
    assert Comparison((found,)).final["grpo"] == Comparison((Variant.of("grpo", *folders),)).final["grpo"]
