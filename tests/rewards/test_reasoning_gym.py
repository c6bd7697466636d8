"""The reasoning-gym reward: the task's own scorer, on the final answer, and never on Python code."""

from __future__ import annotations

import json
import sys
import time

import pytest

from posttrain.errors import RewardError, SupportError
from posttrain.rewards.reasoning_gym import final_answer, reasoning_gym, scorer

pytest.importorskip("reasoning_gym")


def entry(name, question, answer, **metadata):
    return json.dumps(
        {"dataset": name, "options": {}, "entry": {"question": question, "answer": answer, "metadata": metadata}}
    )


SUM = entry("chain_sum", "4 - 1 - 7 =", "-4")
COUNTDOWN = entry("countdown", "?", "2*3", numbers=[2, 3], target=6)


def test_the_answer_after_the_mark_is_scored():
    completions = ["so\nAnswer: -4", "Answer: 4", [{"role": "assistant", "content": "<answer>-4</answer>"}], "-4"]
    assert reasoning_gym([""] * 4, completions, entry=[SUM] * 4) == [1.0, 0.0, 1.0, 1.0]


def test_answers_of_several_lines_are_taken_whole():
    assert final_answer("Grid:\nAnswer: 1 2\n3 4\n") == "1 2\n3 4"
    assert final_answer("<answer>1</answer> <answer> 2 </answer> bye") == "2"


def test_an_answer_the_scorer_cannot_read_is_wrong_and_a_broken_scorer_raises():
    factors = entry("prime_factorization", "?", "2 × 3", number=6, factors=[2, 3])
    assert reasoning_gym([""] * 2, ["Answer: 2 × 3", "Answer: two"], entry=[factors] * 2) == [1.0, 0.0]
    broken = entry("prime_factorization", "?", "two", number=6, factors=[2, 3])
    with pytest.raises(ValueError, match="invalid literal"):
        reasoning_gym([""], ["Answer: two"], entry=[broken])


@pytest.mark.parametrize(
    ("task", "answer", "given", "score"),
    [
        # Upstream: any text is "True"; a prefix of the number has full marks; a distance of NaN has full marks.
        ("game_of_life_halting", "False", "True", 0.0),
        ("game_of_life_halting", "False", "whatever", 0.0),
        ("game_of_life_halting", "False", "false", 1.0),
        ("coin_flip", "0.234375", "0.2", 0.0),
        ("coin_flip", "0.234375", "0", 0.0),
        ("coin_flip", "0.234375", "15/64", 1.0),
        ("gsm_symbolic", "5", "-5", 0.0),
        ("gsm_symbolic", "5", "5*7", 0.0),
        ("gsm_symbolic", "5", "$5.00", 1.0),
        ("complex_arithmetic", "8.0 + 3.0i", "nan", 0.0),
        ("complex_arithmetic", "8.0 + 3.0i", "nan+infj", 0.0),
        ("complex_arithmetic", "8.0 + 3.0i", "8.0 + 3.0i", 1.0),
        # Upstream: what stands beside the answer is passed over.
        ("sokoban", "UDLR", "UDLR, I think", 0.0),
        ("kakurasu", "1 0\n0 1", "-1 0\n0 1", 0.0),
        ("quantum_lock", "A → B", "A → B → then C", 0.0),
        ("advanced_geometry", "(1.000, 2.000)", "(1.000, 2.000)7", 0.0),
        ("fraction_simplification", "$1/2$", "$1/2$ or $1/3$", 0.0),
        ("polynomial_equations", "1.0, 2.0", "1.0, 2.0 3.0", 0.0),
    ],
)
def test_answers_that_upstream_scorers_take_for_right(task, answer, given, score):
    facts = {"result": [8.0, 3.0]} if task == "complex_arithmetic" else {}
    assert reasoning_gym([""], [f"Answer: {given}"], entry=[entry(task, "?", answer, **facts)]) == [score]


def test_arithmetic_over_several_lines_is_held_to_the_same_rule():
    assert reasoning_gym([""] * 2, ["Answer: (\n9**9**9**9)", "Answer: (2\n*3)"], entry=[COUNTDOWN] * 2) == [0.0, 1.0]


def test_rows_of_other_sources_have_no_verdict_and_foreign_entries_are_an_error():
    assert reasoning_gym([""] * 2, ["Answer: 1"] * 2, entry=["", None]) == [None, None]
    assert reasoning_gym([""], ["Answer: 1"]) == [None]
    with pytest.raises(RewardError, match="not an entry of a reasoning-gym task"):
        reasoning_gym([""], ["Answer: 1"], entry=['{"level": 1}'])


@pytest.mark.parametrize(
    ("answer", "score"),
    [("2*3", 1.0), ("3 * 2", 1.0), ("2+3", 0.05), ("2**3", 0.0), ("9999999*9", 0.0), ("__import__('os')", 0.0)],
)
def test_only_arithmetic_reaches_a_scorer_that_evaluates(answer, score):
    assert reasoning_gym([""], [f"Answer: {answer}"], entry=[COUNTDOWN]) == [score]


def test_a_completion_cannot_run_code(tmp_path):
    witness = tmp_path / "ran"
    attack = f"[open({str(witness)!r}, 'w')]"
    with pytest.raises(SupportError, match="evaluates the answer as Python code"):
        reasoning_gym([""], [f"Answer: {attack}"], entry=[entry("spiral_matrix", "?", "1 2", solution=[1, 2])])
    assert reasoning_gym([""], [f"Answer: {attack}"], entry=[COUNTDOWN]) == [0.0]
    assert not witness.exists()


def test_without_the_package_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    scorer.cache_clear()
    with pytest.raises(
        SupportError, match="reasoning_gym, of the extra 'tasks', is not installed. .*posttrain\\[tasks\\]"
    ):
        reasoning_gym([""], ["Answer: 1"], entry=[SUM])


@pytest.mark.parametrize("task", ["coin_flip", "gsm_symbolic", "chain_sum"])
@pytest.mark.parametrize(
    "number",
    ["1e999999999", "1e,999999999", "1e9_9_9_9_9_9_9_9_9", "1.e999999999", ".1e9,9,9,9,9,9,9,9,9", "1 e999999999"],
)
def test_huge_exponents_are_wrong_and_not_slow(task, number):
    started = time.monotonic()
    stored = entry(task, "?", "1", num_trials=1, k_heads=1)
    assert reasoning_gym([""], [f"Answer: {number}"], entry=[stored]) == [0.0]
    assert time.monotonic() - started < 10


def test_a_hexadecimal_answer_is_no_exponent():
    stored = entry("base_conversion", "?", "3e12345")
    assert reasoning_gym([""] * 2, ["Answer: 3e12345", "Answer: 3e12346"], entry=[stored] * 2)[0] == 1.0
