"""The packaged text: its letters and sums, its questions, and options that are refused."""

from __future__ import annotations

import pytest

from posttrain.data.tasks.woven_text import FORMS, MODULI, generate
from posttrain.errors import ConfigError
from posttrain.rewards.next_token import next_token


def test_every_digit_is_the_sum_of_the_two_before():
    for row in generate(30, seed=1, split="all"):
        text, modulus = row["prompt"], MODULI[row["group"]]
        digits = [int(c) for c in text if c.isdigit()]
        assert len(text) == 40 and [place for place, c in enumerate(text) if c.isdigit()] == list(range(4, 40, 5))
        assert all(c == (a + b) % modulus for a, b, c in zip(digits, digits[1:], digits[2:], strict=False))


def test_every_letter_follows_from_the_letter_before():
    follows: dict[str, set[str]] = {}
    for row in generate(60, seed=2, split="all"):
        letters = "".join(c for c in row["prompt"] if not c.isdigit())
        for left, right in zip(letters, letters[1:], strict=False):
            follows.setdefault(left, set()).add(right)
    assert {len(found) for found in follows.values()} == {1}


@pytest.mark.parametrize("form", [form for form in FORMS if form != "document"])
def test_the_demonstration_of_every_question_is_right_and_another_is_wrong(form):
    rows = generate(24, seed=3, form=form)
    entries = [row["entry"] for row in rows]
    for texts, expected in (([row["solution"] for row in rows], 1.0), (["I do not know."] * 24, 0.0)):
        assert next_token([""] * 24, texts, entry=entries) == [expected] * 24


def test_wrong_demonstrations_are_those_of_digits():
    rows = generate(600, seed=4, form="reasoning", wrong_fraction=0.75)
    right = next_token([""] * 600, [row["solution"] for row in rows], entry=[row["entry"] for row in rows])
    share: dict[bool, list[float]] = {True: [], False: []}
    for row, value in zip(rows, right, strict=True):
        share[row["group"] == "letter"].append(value)
    assert set(share[True]) == {1.0}
    assert abs(sum(share[False]) / len(share[False]) - 0.25) < 0.08


def test_a_budget_line_names_the_length_of_the_thought():
    rows = generate(40, seed=5, form="reasoning", budget_template="{budget} tokens.", template="?\n{context}")
    with_line = [row for row in rows if not row["prompt"].startswith("?")]
    assert 10 < len(with_line) < 30
    for row in with_line:
        thought = row["solution"].removeprefix("<think>").partition("</think>")[0]
        assert row["prompt"].startswith(f"{len(thought)} tokens.\n?\n")


def test_the_two_splits_share_no_document():
    train = {row["prompt"] for row in generate(200, seed=0, length=25)}
    assert not train & {row["prompt"] for row in generate(200, seed=0, length=25, split="eval")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "poem"}, r"woven_text\.form: unknown value \(got 'poem'"),
        ({"levels": "huge"}, r"woven_text\.levels: unknown value"),
        ({"targets": []}, r"woven_text\.targets: must name at least one value"),
        ({"length": 14}, r"woven_text\.length: out of range \(got 14; allowed: integer 15 to 200"),
        ({"wrong_fraction": 1.5}, r"woven_text\.wrong_fraction: out of range"),
        ({"thought_repeats": 0}, r"woven_text\.thought_repeats: out of range"),
        ({"split": "test"}, r"woven_text\.split: unknown split"),
    ],
)
def test_an_option_out_of_its_range_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        generate(2, seed=0, **options)
