"""The probe of copies: what the prompt shows, what is right, and that an altered copy has another sum."""

from __future__ import annotations

import pytest

from posttrain.data.sources import load_source
from posttrain.data.tasks.copied_sum import generate
from posttrain.errors import ConfigError


def parts(row):
    question, copy = row["prompt"].split(":")
    return [int(word) for word in question.split()], [int(word) for word in copy.split()]


def test_training_rows_copy_and_add():
    for row in generate(200, seed=1, split="all"):
        (left, right), copy = parts(row)
        assert copy == [] and row["solution"] == row["answer"] == f"{left} {right} {(left + right) % 10}"
        assert row["group"] == "question"


@pytest.mark.parametrize(("shown", "reads_copy"), [("copy", False), ("altered", False), ("altered_copy", True)])
def test_probes_show_a_copy_and_ask_for_the_sum(shown, reads_copy):
    for row in generate(300, seed=2, shown=shown, max_operand=29, split="all"):
        question, copy = parts(row)
        assert row["prompt"].endswith(" ") and row["answer"] == str(sum(copy if reads_copy else question) % 10)
        changed = sum(a != b for a, b in zip(question, copy, strict=True))
        assert changed == (0 if shown == "copy" else 1)
        assert (sum(question) % 10 != sum(copy) % 10) == (shown != "copy")


def test_pairs_of_the_eval_split_are_never_trained_in_any_form():
    def pairs(split, seed, shown):
        rows = generate(1500, seed=seed, shown=shown, max_operand=29, split=split)
        return {tuple(parts(row)[0]) for row in rows}

    assert not pairs("train", 1, "question") & pairs("eval", 2, ["copy", "altered"])


def test_as_text_the_prompt_is_the_question_alone():
    row = load_source({"task": "copied_sum", "size": 1, "seed": 1, "format": "text"})[0]
    assert row["prompt"].endswith(":")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shown": "nothing"}, "copied_sum.shown: unknown value (got 'nothing'"),
        ({"max_operand": 0}, "copied_sum.max_operand: out of range (got 0; allowed: integer 1 to 999)"),
        ({"split": "test"}, "copied_sum.split: unknown split"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError) as error:
        generate(2, **({"seed": 1} | options))
    assert message in str(error.value)
