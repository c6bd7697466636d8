"""Which runs are found in a folder, and which of them are repetitions of one another."""

from __future__ import annotations

import shutil

import pytest

from posttrain.errors import ConfigError, DataError
from posttrain.reports.variants import find_runs, flat, sort_into_variants
from tests.reports.recorded import record


def variants_of(*arguments, group=True):
    """Names of the variants, with the folder names of their runs."""
    variants = sort_into_variants(find_runs([str(argument) for argument in arguments]), group=group)
    return {variant.name: [run.folder.path.name for run in variant.runs] for variant in variants}


def test_runs_that_differ_only_in_their_seeds_are_one_variant(tmp_path):
    for seed in (0, 1, 2):
        record(tmp_path / f"grpo-{seed}", seed=seed)
    record(tmp_path / "hpt-0", config={"method.name": "hpt"})
    assert variants_of(tmp_path) == {"grpo": ["grpo-0", "grpo-1", "grpo-2"], "hpt": ["hpt-0"]}
    (variant, _) = sort_into_variants(find_runs([str(tmp_path)]))
    assert [variant.label(run) for run in variant.runs] == ["seed 0", "seed 1", "seed 2"]


def test_where_a_run_lives_and_how_it_is_watched_is_not_its_recipe(tmp_path):
    record(tmp_path / "a", seed=0, config={"trainer.logging_steps": 1})
    record(tmp_path / "b", seed=1, config={"trainer.save_strategy": "no", "hub": {"push": False}})
    assert variants_of(tmp_path) == {"grpo": ["a", "b"]}


def test_any_other_setting_makes_another_variant_and_gives_it_its_name(tmp_path):
    record(tmp_path / "a", config={"trainer.learning_rate": 0.001})
    record(tmp_path / "b", config={"trainer.learning_rate": 0.01})
    assert variants_of(tmp_path) == {"grpo (learning_rate 0.001)": ["a"], "grpo (learning_rate 0.01)": ["b"]}
    record(tmp_path / "c", config={"trainer.learning_rate": 0.01, "rollout.num_generations": 8})
    assert variants_of(tmp_path)["grpo (num_generations 8, learning_rate 0.01)"] == ["c"]
    record(tmp_path / "d", config={"trainer.beta": 0.5})  # three settings differ now: the folders tell more
    assert variants_of(tmp_path) == {f"grpo ({name})": [name] for name in "abcd"}


def test_grouping_can_be_turned_off(tmp_path):
    for seed in (0, 1):
        record(tmp_path / f"s{seed}" / "run", seed=seed)
    assert variants_of(tmp_path, group=False) == {"s0/run": ["run"], "s1/run": ["run"]}


def test_names_are_given_as_name_equals_folder(tmp_path):
    record(tmp_path / "a", seed=0)
    record(tmp_path / "b", seed=1)
    assert variants_of(f"ours={tmp_path / 'a'}", f"theirs={tmp_path / 'b'}") == {"ours": ["a"], "theirs": ["b"]}
    named = {"x": ["a", "b"]}
    assert variants_of(f"x={tmp_path / 'a'}", f"x={tmp_path / 'b'}") == named
    assert variants_of(f"x={tmp_path / 'a'}", f"x={tmp_path / 'b'}", group=False) == named
    odd = record(tmp_path / "c=d")
    assert variants_of(odd) == {"grpo": ["c=d"]}


def test_a_folder_of_stages_gives_those_that_are_evaluated(tmp_path):
    """The warm-up only prepares the others; its recipe asks for no evaluation."""
    for seed in (0, 1):
        root = tmp_path / f"seed{seed}"
        warm = {"stage": "warm_up", "eval": None, "rollout": None, "data.eval": None}
        record(root / "warm_up", seed=seed, before=None, after=None, config=warm)
        parent = {"model": str(root / "warm_up" / "model"), "run": f"id{seed}"}
        for stage in ("grpo", "hpt"):
            record(root / stage, seed=seed, config={"stage": stage, "method.name": stage, "start_from": parent})
    assert variants_of(tmp_path) == {"grpo": ["grpo", "grpo"], "hpt": ["hpt", "hpt"]}
    assert variants_of(tmp_path / "seed0") == {"grpo": ["grpo"], "hpt": ["hpt"]}
    assert variants_of(f"mine={tmp_path / 'seed0'}") == {"mine grpo": ["grpo"], "mine hpt": ["hpt"]}
    assert variants_of(tmp_path / "seed0" / "warm_up") == {"warm_up": ["warm_up"]}


def test_a_run_that_started_from_another_recipe_is_another_variant(tmp_path):
    for name, rate in (("short", 0.1), ("long", 0.2)):
        record(tmp_path / name / "warm", config={"trainer.learning_rate": rate, "eval": None, "rollout": None})
        parent = {"model": str(tmp_path / name / "warm" / "model"), "run": name}
        record(tmp_path / name / "rl", config={"stage": "rl", "start_from": parent})
    runs = [str(tmp_path / name / "rl") for name in ("short", "long")]
    assert variants_of(*runs) == {"rl (earlier learning_rate 0.1)": ["rl"], "rl (earlier learning_rate 0.2)": ["rl"]}


def test_unfinished_runs_are_found_and_what_is_put_aside_is_not(tmp_path):
    record(tmp_path / "a", after=None, steps=2)
    shutil.copytree(tmp_path / "a", tmp_path / "replaced-1")
    (run,) = find_runs([str(tmp_path)])
    assert run.state == "unfinished, 2 of 4 steps"


def test_the_same_run_named_twice_counts_once(tmp_path):
    record(tmp_path / "a")
    assert len(find_runs([str(tmp_path), str(tmp_path / "a")])) == 1


def test_a_copy_with_the_same_seeds_is_no_further_evidence(tmp_path):
    record(tmp_path / "a", seed=1)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (variant,) = sort_into_variants(find_runs([str(tmp_path)]))
    assert len(variant.runs) == 2 and len(variant.distinct) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [("none", "none: no such folder"), ("empty", "no run in this folder"), ("file", "not a folder")],
)
def test_a_wrong_folder_is_named_with_what_was_expected(tmp_path, name, message):
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as refused:
        find_runs([str(tmp_path / name)])
    text = str(refused.value)
    assert message in text and str(tmp_path / name) in text and "run's folder (with run.json)" in text


@pytest.mark.parametrize("file", ["run.json", "eval.json"])
def test_a_damaged_file_is_named(tmp_path, file):
    record(tmp_path / "a")
    (tmp_path / "a" / file).write_text('{"half": ')
    with pytest.raises(DataError, match=rf"{file}: not readable"):
        _ = sort_into_variants(find_runs([str(tmp_path)]))


def test_nested_values_become_dotted_paths():
    assert flat({"a": {"b": 1, "c": {}}, "d": [1, {"e": 2}]}) == {"a.b": 1, "a.c": {}, "d": [1, {"e": 2}]}
