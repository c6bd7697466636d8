"""Mixtures in a recipe: what `check` tells and refuses, what a run records, and changed subsets at a resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain.errors import ConfigError, PosttrainError, ResumeError
from posttrain.run import run
from tests.config.recipes import BASES, changed, checked, told, write

A = {"name": "a", "role": "specialized", "task": "arithmetic", "size": 24, "seed": 1, "options": {"digits": 1}}
B = {"name": "b", "role": "general", "task": "modular_addition", "size": 16, "seed": 1}


def recipe(parts: list[dict], **train) -> dict:
    return {"data.train": {"mixture": parts, **train}}


def test_check_shows_the_table_of_the_mixture(tmp_path: Path):
    report = checked(tmp_path, "sft", recipe([{**A, "fraction": 0.25}, {**B, "repeat": 2}], seed=7))
    assert report.ok, report.lines()
    text = "\n".join(report.facts)
    assert "a mixture of 2 sources, concat_shuffle, 38 rows an epoch" in text
    assert "a (specialized): 6 of 24 rows, 6 an epoch (15.79%), about " in text
    assert "b (general): 16 of 16 rows, 32 an epoch (84.21%), about " in text
    assert "38 training rows" in text


def test_a_mixture_is_for_policy_methods_too(tmp_path: Path):
    report = checked(tmp_path, "grpo", recipe([A, B]))
    assert report.ok, report.lines()
    assert "40 training rows" in "\n".join(report.facts)


def test_less_than_one_row_is_told_before_the_run(tmp_path: Path):
    report = checked(tmp_path, "sft", recipe([{**A, "fraction": 0.001}, B]))
    assert "fraction 0.001 of 24 rows is less than one; one row is used" in told(report, PosttrainError, warning=True)


def test_prompts_in_training_and_evaluation_are_told(tmp_path: Path):
    same = {"task": "arithmetic", "size": 24, "seed": 1, "options": {"digits": 1}}
    report = checked(tmp_path, "sft", {**recipe([A, B]), "data.eval": same})
    message = told(report, PosttrainError, warning=True)
    assert "24 of 24 evaluation prompts are training prompts too" in message


REFUSED = [
    (recipe([A, {**B, "name": "a"}]), "mixture.1.name: two sources have this name (got 'a'). Rename one"),
    (recipe([{**A, "name": None}]), "mixture.0.name"),
    (recipe([{**A, "fraction": 1.5}]), "mixture.0.fraction: out of range (got 1.5"),
    (recipe([{**A, "replay_fraction": -0.1}]), "mixture.0.replay_fraction"),
    (recipe([{**A, "role": "expert"}]), "mixture.0.role"),
    (recipe([{**A, "wieght": 1.0}]), "mixture.0.wieght: unknown key. Perhaps you mean data.train.mixture.0.weight"),
    (recipe([{**A, "weight": 1.0}]), "mixture.0.weight: read by mixing: interleave_weighted alone"),
    (recipe([{**A}], mixing="interleave_weighted"), "mixture.0.weight: interleave_weighted needs a weight"),
    (
        recipe([{**A, "weight": 1.0, "repeat": 2}], mixing="interleave_weighted"),
        "mixture.0.repeat: with interleave_weighted the weight says how often rows come",
    ),
    (recipe([{**A, "replay_measure": "rows"}]), "mixture.0.replay_measure: there is no replay_fraction to measure"),
    (recipe([{"name": "a", "weight": 1.0}], mixing="interleave_weighted"), "nothing says where the rows come from"),
    (recipe([{**A, "configuration": "main"}]), "mixture.0.configuration: does not go with task"),
    (recipe([A], task="arithmetic"), "data.train.task: does not go with mixture"),
    ({"data.train.mixing": "concat_shuffle"}, "data.train.mixing: there is no mixture"),
    (recipe([]), "data.train.mixture: must not be empty"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[case[1][:50] for case in REFUSED])
def test_refusals(changes, message, tmp_path: Path):
    from posttrain.config.loader import load

    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, changed(BASES["sft"], changes)))
    assert message in str(caught.value)


def test_sources_that_cannot_be_mixed_are_named_by_check(tmp_path: Path):
    report = checked(tmp_path, "sft", recipe([{**A, "format": "text"}, B]))
    assert "columns of the sources do not go together (got 'prompt'" in told(report, PosttrainError)


def test_a_run_records_what_it_took_and_refuses_to_go_on_with_other_rows(tmp_path: Path):
    changes = recipe([{**A, "fraction": 0.5}, B]) | {"eval": None, "data.eval": None, "trainer.max_steps": 2}
    outcome = run(write(tmp_path, changed(BASES["sft"], changes)))[0]
    record = json.loads((outcome.folder / "run.json").read_text())
    assert {name: part["used"] for name, part in record["mixture"].items()} == {"a": 12, "b": 16}
    assert sum(part["token_fraction"] for part in record["mixture"].values()) == pytest.approx(1)
    assert set(record["data"]["train"]["sources"]) == {"a", "b"}

    (outcome.folder / "finished.json").unlink()
    longer = {"trainer.max_steps": 3}
    other = write(tmp_path, changed(BASES["sft"], changes | longer | recipe([{**A, "fraction": 0.25}, B])))
    with pytest.raises(ResumeError, match="the train data are not those of the run to continue: other rows of 'a'"):
        run(other)
