"""Packaged tasks: right answers, demonstrations that show the work, rows that depend on nothing but seed and index."""

from __future__ import annotations

import re
from importlib import import_module

import pytest

from posttrain.data.tasks import TASKS, arithmetic, modular_addition, number_puzzle, permutation
from posttrain.data.tasks.rows import Problem, draw_rows, in_split, row_generator
from posttrain.errors import ConfigError, DataError
from posttrain.rewards.exact import score_one

HARD = {
    "arithmetic": {"digits": [1, 2, 3], "operations": ["+", "-", "*"]},
    "permutation": {"length": [3, 5, 8], "operations": ["copy", "reverse", "permute"]},
    "number_puzzle": {},
    "modular_addition": {},
    "digit_class": {},
    "copied_sum": {"max_operand": 99},
    "string_rewriting": {"length": [4, 8]},
    "preferred_sums": {"digits": [1, 2]},
}
ANSWER_ALONE = {"copied_sum", "modular_addition", "digit_class", "string_rewriting"}
# woven_text and markov_text are corpora, not questions with answers. Facts about authors cannot be worked out, so they
# have sets instead of splits. All three have tests of their own.
NAMES = sorted(set(TASKS) - {"fictitious_authors", "markov_text", "woven_text"})


def generate(name, size, **options):
    module, function = TASKS[name].split(":")
    return getattr(import_module(module), function)(size, **({"seed": 1} | HARD[name] | options))


@pytest.mark.parametrize("name", NAMES)
def test_row_i_depends_only_on_seed_index_and_options(name):
    rows = generate(name, 30)
    assert generate(name, 12) == rows[:12]
    assert generate(name, 30) == rows
    other = generate(name, 30, seed=2)
    assert sum(left["prompt"] == right["prompt"] for left, right in zip(rows, other, strict=True)) < 6


@pytest.mark.parametrize("name", NAMES)
def test_train_and_eval_share_no_problem_for_any_seed(name):
    train = {row["prompt"] for row in generate(name, 3000, seed=1, split="train")}
    held_out = {row["prompt"] for row in generate(name, 1000, seed=7, split="eval")}
    assert not train & held_out
    everything = {row["prompt"] for row in generate(name, 3000, seed=3, split="all")}
    assert everything & held_out
    assert everything & train


def test_a_sum_and_its_mirror_image_are_one_problem():
    def pairs(split):
        rows = arithmetic.generate(4000, seed=1, digits=1, split=split)
        return {tuple(sorted(map(int, re.findall(r"\d+", row["prompt"])))) for row in rows}

    assert not pairs("train") & pairs("eval")
    assert len(pairs("train") | pairs("eval")) == 55


@pytest.mark.parametrize("name", NAMES)
def test_the_demonstration_is_short_and_the_exact_reward_accepts_it(name):
    for row in generate(name, 200):
        assert len(row["prompt"]) <= 40
        assert len(row["solution"]) <= 48
        marked = row["solution"].endswith(f"\nAnswer: {row['answer']}")
        assert marked or (name in ANSWER_ALONE and row["solution"] == row["answer"])
        assert score_one(row["solution"], row["answer"]) == 1.0
        assert all(isinstance(value, str) for value in row.values())
        assert row["group"]
        assert row["solution"].isascii()


@pytest.mark.parametrize("name", NAMES)
def test_levels_come_in_turn_and_each_is_a_group(name):
    rows = generate(name, 72)
    groups = [row["group"] for row in rows]
    period = len(set(groups))
    assert groups == groups[:period] * (72 // period)


def test_the_answer_that_is_not_preferred_is_wrong_and_differs_at_its_end_alone():
    for row in generate("preferred_sums", 300):
        assert row["chosen"] == row["solution"] != row["rejected"]
        assert score_one(row["rejected"], row["answer"]) == 0.0
        begin = row["rejected"].rpartition("Answer: ")
        assert row["chosen"].startswith(begin[0] + begin[1]) and begin[2].isdigit()


def test_a_level_named_twice_has_twice_the_rows():
    rows = arithmetic.generate(30, seed=1, digits=[1, 1, 3])
    assert [row["group"] for row in rows].count("1 digit") == 20


def holds(equation):
    left, right = equation.split("=")
    numbers = [int(number) for number in re.findall(r"\d+", left)]
    if "+" in left and "*" in left:
        return numbers[0] * numbers[1] + numbers[2] == int(right)
    if "+" in left:
        return sum(numbers) == int(right)
    if "/" in left:
        return numbers[0] == numbers[1] * int(right)
    return numbers[0] - sum(numbers[1:]) == int(right)


@pytest.mark.parametrize("name", ["arithmetic", "number_puzzle"])
def test_every_step_of_the_working_is_a_true_equation(name):
    for row in generate(name, 300):
        steps = row["solution"].split("\n")[0].split(" ")
        assert steps
        for step in steps:
            assert holds(step), row


@pytest.mark.parametrize("operation", ["+", "-", "*"])
def test_arithmetic_answers_are_right_and_the_columns_add_up_to_them(operation):
    for row in arithmetic.generate(300, seed=4, digits=[1, 2, 3, 6], operations=operation):
        numbers = [int(number) for number in re.findall(r"\d+", row["prompt"])]
        result = {"+": numbers[0] + numbers[1], "-": numbers[0] - numbers[1], "*": numbers[0] * numbers[1]}[operation]
        assert int(row["answer"]) == result >= 0
        # The last digits of the column results, read from the right, are the answer; the last carry leads it.
        columns = [step.split("=")[1] for step in row["solution"].split("\n")[0].split(" ")]
        written = columns[-1] + "".join(column[-1] for column in reversed(columns[:-1]))
        assert int(written) == result


def test_sums_of_several_terms_carry_more_than_one():
    rows = arithmetic.generate(200, seed=1, digits=2, terms=4)
    assert all(sum(map(int, re.findall(r"\d+", row["prompt"]))) == int(row["answer"]) for row in rows)
    assert any(re.search(r"\+3=", row["solution"]) for row in rows)


def test_permutation_answers_follow_the_written_order():
    for row in permutation.generate(100, seed=1, length=[4, 9]):
        verb, letters, order = row["prompt"].split()
        assert verb == "permute"
        assert row["answer"] == "".join(letters[int(position) - 1] for position in order)
        assert row["solution"].startswith(f"{order[0]}{row['answer'][0]} {order[1]}{row['answer'][1]}")
    copied, reverse = permutation.generate(2, seed=1, length=5, operations=["copy", "reverse"])
    assert copied["prompt"] == f"copy {copied['answer']}"
    assert reverse["prompt"] == f"reverse {reverse['answer'][::-1]}"


def test_puzzle_answers_solve_the_puzzle():
    for row in number_puzzle.generate(300, seed=1, max_number=50):
        answer, numbers = int(row["answer"]), [int(number) for number in re.findall(r"\d+", row["prompt"])]
        if row["group"] == "missing":
            assert answer + numbers[0] == numbers[1]
        elif row["group"] == "sequence":
            assert answer - numbers[2] == numbers[2] - numbers[1] == numbers[1] - numbers[0]
        else:
            assert numbers[0] * answer + numbers[1] == numbers[2]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("arithmetic", {"digits": 9}, "arithmetic.digits: unknown value (got 9"),
        ("arithmetic", {"digits": []}, "arithmetic.digits: must name at least one value"),
        ("arithmetic", {"digits": True}, "arithmetic.digits: unknown value (got True"),
        ("arithmetic", {"operations": "/"}, "arithmetic.operations: unknown value (got '/'"),
        ("arithmetic", {"terms": 3}, "more than 2 terms need operations '+'"),
        (
            "arithmetic",
            {"split": "test"},
            "arithmetic.split: unknown split (got 'test'; allowed: one of: train, eval, all",
        ),
        ("permutation", {"length": 10}, "permutation.length: unknown value (got 10"),
        ("number_puzzle", {"kinds": "maze"}, "number_puzzle.kinds: unknown value (got 'maze'"),
        ("number_puzzle", {"max_number": 200}, "number_puzzle.max_number: out of range (got 200; allowed: 5 to 99)"),
    ],
)
def test_options_out_of_range_are_refused(name, options, message):
    with pytest.raises(ConfigError) as error:
        generate(name, 4, **options)
    assert message in str(error.value)


def test_a_level_without_problems_in_the_split_is_refused():
    problem = Problem("1+1=?", "2", "1+1=2", "easy")
    other = "train" if in_split(problem.question, "eval") else "eval"
    with pytest.raises(DataError, match=f"toy row 0: no problem of level 1 belongs to the {other} split"):
        draw_rows("toy", 1, seed=1, split=other, levels=[1], draw=lambda generator, level: problem)


def test_a_rows_generator_does_not_depend_on_other_rows():
    assert row_generator("a", 1, 5).random() == row_generator("a", 1, 5).random()
    assert len({row_generator("a", seed, index).random() for seed in range(5) for index in range(5)}) == 25


def test_modular_addition_holds_answers_back_and_spoils_a_known_part_of_the_demonstrations():
    rows = modular_addition.generate(4000, seed=1, modulus=10, wrong_fraction=0.3)
    for row in rows:
        left, right = map(int, row["prompt"].split("+"))
        assert int(row["answer"]) == (left + right) % 10
        assert row["group"] == ("low" if int(row["answer"]) < 5 else "high")
    wrong = [row for row in rows if row["solution"] != row["answer"]]
    assert abs(len(wrong) / len(rows) - 0.3) < 4 * (0.3 * 0.7 / 4000) ** 0.5
    shifts = {(int(row["solution"]) - int(row["answer"])) % 10 for row in wrong}
    assert shifts == set(range(1, 10))
    low = modular_addition.generate(200, seed=1, answers="low")
    assert {row["answer"] for row in low} == set("01234")
    spoiled = modular_addition.generate(400, seed=1, answers="low", wrong_fraction=1.0)
    assert {row["solution"] for row in spoiled} == set("01234")
    assert all(row["solution"] != row["answer"] for row in spoiled)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modulus": 1}, "modulus.*2 to 100"),
        ({"max_operand": 5}, "max_operand.*9 to 9999"),
        ({"wrong_fraction": 1.5}, "wrong_fraction.*0 to 1"),
        ({"modulus": 2, "answers": "low", "wrong_fraction": 0.5}, "wrong_fraction.*only one answer"),
        ({"answers": "middle"}, "answers.*low, high"),
    ],
)
def test_modular_addition_refuses(options, message):
    with pytest.raises(ConfigError, match=message):
        modular_addition.generate(1, seed=0, **options)
