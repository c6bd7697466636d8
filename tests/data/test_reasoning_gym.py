"""The reasoning-gym adapter: rows of their own seeds, disjoint halves, scorers that never evaluate a completion."""

from __future__ import annotations

import ast
import inspect
import json
import textwrap

import pytest

from posttrain.data.sources import load_source
from posttrain.data.tasks.reasoning_gym import generate
from posttrain.errors import ConfigError, SupportError
from posttrain.rewards.reasoning_gym import ARITHMETIC_TASKS, EVALUATING_TASKS, reasoning_gym

pytest.importorskip("reasoning_gym")
SMALL = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


def test_rows_depend_on_seed_and_index_and_not_on_each_other():
    rows = generate("chain_sum", 20, seed=1)
    assert generate("chain_sum", 8, seed=1) == rows[:8]
    # The package itself numbers rows from the seed on, so seeds 1 and 2 would share all rows but one.
    shifted = {row["prompt"] for row in generate("chain_sum", 20, seed=2)}
    assert len(shifted & {row["prompt"] for row in rows}) < 5


def test_train_and_eval_share_no_question_even_in_a_small_task():
    train = {row["prompt"] for row in generate("chain_sum", 300, seed=1, split="train", options=SMALL)}
    held_out = {row["prompt"] for row in generate("chain_sum", 40, seed=1, split="eval", options=SMALL)}
    assert len(train) > 50
    assert held_out
    assert not train & held_out


@pytest.mark.parametrize("name", ["chain_sum", "spell_backward", "number_sorting", "countdown", "sudoku"])
def test_the_demonstration_scores_one_and_a_wrong_answer_does_not(name):
    rows = load_source({"reasoning_gym": name, "size": 3, "seed": 1})
    entries = rows["entry"][:]
    assert reasoning_gym([], rows["solution"][:], entry=entries) == [1.0] * 3
    assert all(value < 0.5 for value in reasoning_gym([], ["Answer: banana"] * 3, entry=entries))
    assert set(rows["group"]) == {name}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "chainsum"}, ConfigError, "unknown task (got 'chainsum'). Perhaps you mean 'chain_sum'"),
        ({"name": "chain_sum", "split": "test"}, ConfigError, "unknown split (got 'test'"),
        ({"name": "chain_sum", "options": {"min_term": 1}}, ConfigError, "the task refuses its options"),
        ({"name": "chain_sum", "options": {"min_terms": -1}}, ConfigError, "min_terms must be positive"),
        ({"name": "n_queens"}, SupportError, "evaluates the answer as Python code"),
        ({"name": "arc_agi"}, SupportError, "refuses the task's own answer once the row was stored as text"),
    ],
)
def test_tasks_and_options_that_cannot_be_used_are_refused(arguments, error, message):
    with pytest.raises(error) as caught:
        generate(arguments.pop("name"), 1, seed=1, **arguments)
    assert message in str(caught.value)


def test_every_installed_scorer_that_evaluates_an_answer_is_listed():
    """Reads the scorers' source, so that a new version of the package cannot bring one in unnoticed."""
    from reasoning_gym.factory import DATASETS

    found = set()
    for name, (dataset, _) in DATASETS.items():
        tree = ast.parse(textwrap.dedent(inspect.getsource(dataset.score_answer)))
        called = {
            node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and "answer" in {leaf.id for leaf in ast.walk(node) if hasattr(leaf, "id")}
        }
        if called & {"eval", "exec", "parse_expr", "sympify", "literal_eval"}:
            found.add(name)
    assert found
    assert found <= EVALUATING_TASKS | ARITHMETIC_TASKS


def test_entries_are_text_that_any_tool_can_keep():
    row = generate("gcd", 1, seed=1)[0]
    assert json.loads(row["entry"])["dataset"] == "gcd"
