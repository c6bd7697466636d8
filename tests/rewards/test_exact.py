"""Exact match: all of the answer or nothing, and no verdict without a reference."""

from __future__ import annotations

import pytest

from posttrain.rewards.exact import exact


@pytest.mark.parametrize(
    ("completion", "answer", "verdict"),
    [
        ("7+8=15\nAnswer: 85", "85", 1.0),
        ("Answer:   1   2", "1 2", 1.0),
        ("85", "85", 1.0),
        ("Answer: 85 or 84", "85", 0.0),
        ("Answer: 85.", "85", 0.0),
        ("Answer: 85\nAnswer: 84", "85", 0.0),
        ("I say 85", "85", 0.0),
        ("Answer: ABC", "abc", 0.0),
        ("Answer:", "85", 0.0),
        ("", "85", 0.0),
        ([{"role": "assistant", "content": "Answer: 85"}], "85", 1.0),
        ("Answer: 85", "", None),
        ("Answer: 85", None, None),
    ],
)
def test_verdicts(completion, answer, verdict):
    assert exact([""], [completion], answer=[answer]) == [verdict]


def test_one_value_for_each_completion_and_none_without_references():
    assert exact(["a"] * 3, ["Answer: 1", "Answer: 2", "1"], answer=["1"] * 3, task=["t"] * 3) == [1.0, 0.0, 1.0]
    assert exact(["a"] * 2, ["x", "y"]) == [None, None]
    with pytest.raises(ValueError, match="shorter"):
        exact(["a"] * 2, ["x", "y"], answer=["1"])


def test_composed_and_invisible_characters_are_forgiven_and_case_is_not():
    given = ["Answer: cafe\u0301\u200b", "Answer: Caf\u00e9", "**Answer:** caf\u00e9", "answer:\ncaf\u00e9"]
    assert exact([""] * 4, given, answer=["caf\u00e9"] * 4) == [1.0, 0.0, 1.0, 1.0]
