"""The tasks of the continual studies: what each operation and each rule makes, checked in another way."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from posttrain.data.sources import load_source
from posttrain.data.tasks import digit_class, string_rewriting
from posttrain.errors import ConfigError
from posttrain.rewards.one_of import score_one


def test_each_operation_on_strings_of_one_alphabet():
    rows = string_rewriting.generate(400, seed=1, length=[3, 5], num_letters=4)
    assert {row["group"] for row in rows} == {f"{verb} {n}" for verb in string_rewriting.OPERATIONS for n in (3, 5)}
    for row in rows:
        verb, letters = row["prompt"].split()
        assert set(letters) <= set("abcd") and row["solution"] == row["answer"]
        if verb == "increment":
            assert row["answer"] == letters.translate(str.maketrans("abcd", "bcda"))
        elif verb == "sort":
            assert list(row["answer"]) == [letter for letter in "abcd" for _ in range(letters.count(letter))]
        else:
            expected = [letters[-1 - place] if verb == "reverse" else letters[place] for place in range(len(letters))]
            assert list(row["answer"]) == expected


def test_a_held_out_string_is_held_out_of_every_operation():
    def strings(operation, split, seed):
        rows = string_rewriting.generate(1500, seed=seed, operations=operation, length=3, split=split)
        return {row["prompt"].split()[1] for row in rows}

    trained = set().union(*(strings(verb, "train", 1) for verb in string_rewriting.OPERATIONS))
    assert not trained & strings("sort", "eval", 2)


# The classes as one would write them down, digit by digit.
CLASSES = {
    "same": "0 1 2 3 4 5 6 7 8 9",
    "parity": "02468 13579",
    "half": "01234 56789",
    "remainder": "0369 147 258",
    "prime": "014689 2357",
}


@pytest.mark.parametrize("rule", sorted(CLASSES))
def test_every_digit_of_the_class_is_accepted_and_the_smallest_is_shown(rule):
    for row in digit_class.generate(200, seed=3, rules=rule):
        left, right = map(int, row["prompt"].split()[1].split("+"))
        (members,) = [group for group in CLASSES[rule].split() if str((left + right) % 10) in group]
        assert json.loads(row["entry"]) == {"level": rule, "accepted": list(members)}
        assert row["answer"] == row["solution"] == members[0]
        assert [score_one(digit, row["entry"]) for digit in "0123456789"] == [
            float(digit in members) for digit in "0123456789"
        ]


def test_demonstrations_can_be_any_of_the_class_or_the_digit_itself():
    rows = digit_class.generate(4000, seed=1, rules="parity", demonstrations="random")
    shown = Counter(row["solution"] for row in rows)
    assert set(shown) == set("0123456789") and max(shown.values()) < 1.3 * min(shown.values())
    assert all(score_one(row["solution"], row["entry"]) == 1.0 for row in rows)
    for row in digit_class.generate(100, seed=1, demonstrations="true"):
        assert int(row["solution"]) == sum(map(int, row["prompt"].split()[1].split("+"))) % 10
    # The demonstrations differ, the questions do not.
    canonical = digit_class.generate(50, seed=1, rules="parity")
    assert [row["prompt"] for row in canonical] == [row["prompt"] for row in rows[:50]]


def test_demonstrations_can_be_mostly_the_digit_itself_whatever_the_rule():
    rows = digit_class.generate(4000, seed=1, demonstrations="mostly_true")
    digits = [sum(map(int, row["prompt"].split()[1].split("+"))) % 10 for row in rows]
    offsets = Counter((int(row["solution"]) - digit) % 10 for row, digit in zip(rows, digits, strict=True))
    assert offsets[0] / 4000 == pytest.approx(0.55, abs=0.03), "sd of the share: 0.008"
    assert all(offsets[other] / 4000 == pytest.approx(0.05, abs=0.015) for other in range(1, 10))
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in digit_class.generate(4000, seed=1)]


def test_the_digit_itself_can_be_taken_out_of_the_right_answers():
    for row in digit_class.generate(300, seed=1, accept_true=False, demonstrations="random"):
        digit = str(sum(map(int, row["prompt"].split()[1].split("+"))) % 10)
        accepted = json.loads(row["entry"])["accepted"]
        assert accepted and digit not in accepted and row["solution"] in accepted
        assert score_one(digit, row["entry"]) == 0.0


def test_a_recipes_source_reaches_both_tasks_by_name():
    rows = load_source({"task": "digit_class", "size": 4, "seed": 1, "options": {"rules": ["parity", "prime"]}})
    assert rows["group"] == ["parity", "prime"] * 2 and json.loads(rows["entry"][0])["accepted"]
    rows = load_source({"task": "string_rewriting", "size": 2, "seed": 1, "options": {"operations": "sort"}})
    assert rows["task"] == ["string_rewriting"] * 2 and json.loads(rows["entry"][0]) == {"level": ["sort", 4]}


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (string_rewriting, {"operations": "swap"}, "string_rewriting.operations: unknown value (got 'swap'"),
        (string_rewriting, {"operations": []}, "string_rewriting.operations: must name at least one value"),
        (string_rewriting, {"length": 0}, "string_rewriting.length: unknown value (got 0"),
        (string_rewriting, {"num_letters": 27}, "string_rewriting.num_letters: out of range (got 27"),
        (string_rewriting, {"num_letters": True}, "string_rewriting.num_letters: out of range (got True"),
        (string_rewriting, {"split": "test"}, "string_rewriting.split: unknown split"),
        (digit_class, {"rules": "colour"}, "digit_class.rules: unknown value (got 'colour'"),
        (digit_class, {"demonstrations": "all"}, "digit_class.demonstrations: unknown value (got 'all'"),
        (digit_class, {"demonstrations": ["true"]}, "digit_class.demonstrations: unknown value"),
        (digit_class, {"accept_true": "no"}, "digit_class.accept_true: not a truth value (got 'no'"),
        (digit_class, {"max_operand": 8}, "digit_class.max_operand: out of range (got 8; allowed: integer 9 to 9999"),
        (digit_class, {"rules": ["same"], "accept_true": False}, "accepts nothing but the digit itself"),
        (digit_class, {"demonstrations": "true", "accept_true": False}, "would be a wrong answer"),
    ],
)
def test_options_out_of_range_are_refused(task, options, message):
    with pytest.raises(ConfigError) as error:
        task.generate(4, **({"seed": 1} | options))
    assert message in str(error.value)
