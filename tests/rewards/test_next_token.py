"""The match reward of next-token reasoning and the triangular length reward, by hand."""

from __future__ import annotations

import json

import pytest

from posttrain.errors import RewardError
from posttrain.rewards.length_budget import length_reward, thought_span
from posttrain.rewards.next_token import next_token, predicted_text


def entry(rule: str, **changes) -> str:
    """The text goes on with the tokens " the" and " cat"."""
    values = {
        "continuation": " the cat",
        "token_ends": [4, 8],
        "round_trips": True,
        "rule": rule,
        "extraction": "boxed_after_think",
        "target_id": 7,
    }
    return json.dumps(values | changes)


def score(prediction: str, rule: str, **changes) -> float:
    text = f"<think>the</think>\\boxed{{{prediction}}}"
    return next_token([""], [text], entry=[entry(rule, **changes)])[0]


@pytest.mark.parametrize(
    ("prediction", "expected"), [(" the", 1), (" the cat", 1), (" th", 0), ("the", 0), ("", 0), (" the dog", 0)]
)
def test_prefix_matches_whole_tokens_with_their_spaces(prediction, expected):
    assert score(prediction, "prefix") == expected


def test_prefix_counts_bytes():
    """ "é" is two bytes, so an end after one byte is no place to stop."""
    assert score("é", "prefix", continuation="éa", token_ends=[2, 3]) == 1
    assert score("é", "prefix", continuation="éa", token_ends=[3]) == 0


@pytest.mark.parametrize(("prediction", "expected"), [(" the", 1), (" the cat", 0), ("the", 0)])
def test_exact_token_is_the_one_token(prediction, expected):
    assert score(prediction, "exact_token") == expected
    assert score(prediction, "exact_token", round_trips=False) == 0


@pytest.mark.parametrize(("prediction", "expected"), [(" the", 1), (" the dog", 1), ("the", 0)])
def test_first_token_looks_at_the_beginning(prediction, expected):
    assert score(prediction, "first_token") == expected


@pytest.mark.parametrize(
    ("text", "behind", "anywhere"),
    [
        ("<think>a</think>\\boxed{ x}", " x", " x"),
        ("<think>\\boxed{a}</think>\\boxed{b}", "b", "b"),
        ("<think>a</think>\\boxed{a} no, \\boxed{b}", "b", "b"),
        ("\\boxed{a}", None, "a"),
        ("<think>\\boxed{a}", None, "a"),
        ("<think></think>\\boxed{", None, None),
        ("<think></think>a", None, None),
    ],
)
def test_prediction_is_the_last_box_behind_the_thought(text, behind, anywhere):
    assert predicted_text(text, "boxed_after_think") == behind
    assert predicted_text(text, "boxed") == anywhere


def test_plain_text_is_judged_by_its_first_token():
    rows = [entry("exact_token", extraction="raw")] * 2
    assert next_token(["", ""], [" the", " theory"], entry=rows, completion_ids=[[7], [8]]) == [1.0, 0.0]
    assert next_token([""], [" the"], entry=rows[:1]) == [1.0]


def test_rows_without_entry_do_not_apply_and_a_wrong_entry_is_an_error():
    assert next_token(["", ""], ["a", "b"], entry=[None, ""]) == [None, None]
    with pytest.raises(RewardError, match="not one of next-token reasoning"):
        next_token([""], ["a"], entry=['{"level": 1}'])
    with pytest.raises(RewardError, match="not JSON"):
        next_token([""], ["a"], entry=["{"])


@pytest.mark.parametrize(
    ("length", "expected"), [(0, 0.0), (50, 0.5), (100, 1.0), (101, 0.99), (150, 0.5), (200, 0.0), (201, 0.0)]
)
def test_length_reward_is_a_triangle(length, expected):
    assert length_reward(length, 100) == pytest.approx(expected)
    assert length_reward(length, 100, maximum=2.0) == pytest.approx(2 * expected)


def test_length_reward_refuses_what_is_no_length():
    with pytest.raises(ValueError, match="length is -1"):
        length_reward(-1, 100)
    with pytest.raises(ValueError, match="budget 0"):
        length_reward(1, 0)


@pytest.mark.parametrize(
    ("text", "is_open", "expected"),
    [
        ("<think>ab</think>c", False, (7, 9)),
        ("ab</think>c", True, (0, 2)),
        ("ab</think>c", False, None),
        ("<think>ab", False, None),
        ("</think><think>", False, None),
    ],
)
def test_thought_lies_between_its_tags(text, is_open, expected):
    assert thought_span(text, is_open=is_open) == expected
