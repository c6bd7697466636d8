"""The packaged chains: letters, chances and entropy of each group, and options that are refused."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from posttrain.data.tasks.markov_text import LETTERS, SUPPORTS, chances, entropy_rate, generate
from posttrain.errors import ConfigError


def test_groups_take_turns_and_keep_to_their_letters():
    rows = generate(40, seed=1, length=60)
    assert [row["group"] for row in rows[:8]] == [*SUPPORTS, *SUPPORTS]
    for row in rows:
        assert len(row["prompt"]) == 60
        assert set(row["prompt"]) <= set(LETTERS[: SUPPORTS[row["group"]]])


def test_groups_may_have_letters_of_their_own():
    rows = generate(40, seed=1, length=60, letters="own")
    seen = {group: set("".join(row["prompt"] for row in rows if row["group"] == group)) for group in SUPPORTS}
    assert sum(map(len, seen.values())) == len(set().union(*seen.values())) > 60
    same = str.maketrans(LETTERS[6:18], LETTERS[:12])
    shared = generate(40, seed=1, length=60)
    assert rows[1]["prompt"].translate(same) == shared[1]["prompt"], "the same chain in other letters"


def test_letters_follow_with_the_chances_of_the_chain():
    text = "".join(row["prompt"] + " " for row in generate(400, seed=2, groups="easy", length=100))
    seen = Counter(zip(text, text[1:], strict=False))
    begun = Counter(text[:-1])
    for i, row in enumerate(chances("easy")):
        for j, chance in enumerate(row):
            found = seen[LETTERS[i], LETTERS[j]] / (begun[LETTERS[i]] * 99 / 100 or 1)
            assert found == pytest.approx(chance, abs=0.03)


def test_entropy_rate_is_the_loss_of_the_chain_itself():
    rows = generate(300, seed=3, groups="medium", length=100)
    table = chances("medium")
    losses = [
        -math.log(table[LETTERS.index(a)][LETTERS.index(b)])
        for row in rows
        for a, b in zip(row["prompt"], row["prompt"][1:], strict=False)
    ]
    assert sum(losses) / len(losses) == pytest.approx(entropy_rate("medium"), abs=0.03)


def test_harder_groups_have_more_to_learn():
    assert [entropy_rate(group) for group in SUPPORTS] == sorted(entropy_rate(group) for group in SUPPORTS)


def test_the_two_splits_share_no_document():
    train = {row["prompt"] for row in generate(200, seed=0, length=20)}
    assert not train & {row["prompt"] for row in generate(200, seed=0, length=20, split="eval")}


@pytest.mark.parametrize(
    ("option", "value"), [("length", 7), ("length", True), ("groups", "harder"), ("groups", []), ("letters", "all")]
)
def test_options_out_of_range_are_refused(option, value):
    with pytest.raises(ConfigError, match=rf"markov_text\.{option}"):
        generate(4, seed=0, **{option: value})
