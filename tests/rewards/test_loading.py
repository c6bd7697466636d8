"""Reward names become functions; what a reward returns is held to its contract."""

from __future__ import annotations

import numpy
import pytest
import torch

from posttrain.errors import ConfigError, RewardError
from posttrain.rewards import REWARDS, check_scores, load_reward


def test_packaged_rewards_carry_their_own_name():
    assert {name: load_reward(name).__name__ for name in REWARDS} == {name: name for name in REWARDS}


def test_a_users_function_is_found_beside_the_recipe(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def length(prompts, completions, **_):\n    return [len(c) for c in completions]\n"
    )
    assert load_reward("mine.py:length", tmp_path)([""], ["abc"]) == [3]
    assert load_reward(f"{tmp_path}/mine.py:length").__name__ == "length"


def test_a_users_file_may_define_dataclasses(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass, field\n\n"
        "@dataclass\nclass Scale:\n    factor: float = 2.0\n\n"
        "def scaled(prompts, completions, **_):\n    return [Scale().factor] * len(completions)\n"
    )
    assert load_reward("mine.py:scaled", tmp_path)([""], ["a"]) == [2.0]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "exakt",
            ConfigError,
            "unknown reward (got 'exakt'; allowed: one of: exact, format, math, next_token, one_of, reasoning_gym",
        ),
        ("exakt", ConfigError, "Perhaps you mean 'exact'"),
        ("none.py:f", ConfigError, "no such file"),
        ("mine.py:lenght", ConfigError, "no such function (got 'lenght'; allowed: one of: length)"),
        ("mine.py:NUMBER", ConfigError, "no such function"),
        ("broken.py:f", RewardError, "broken.py: cannot be imported: NameError: name 'undefined' is not defined"),
    ],
)
def test_what_cannot_be_loaded_is_refused(tmp_path, name, error, message):
    (tmp_path / "mine.py").write_text("NUMBER = 3\n\ndef length(prompts, completions, **_):\n    return []\n")
    (tmp_path / "broken.py").write_text("undefined\n")
    with pytest.raises(error) as caught:
        load_reward(name, tmp_path)
    assert message in str(caught.value)


def test_numbers_of_any_kind_become_floats_and_none_stays():
    scores = check_scores([1, True, numpy.float32(0.5), torch.tensor(0.25), None], name="r", count=5)
    assert scores == [1.0, 1.0, 0.5, 0.25, None]
    assert all(value is None or type(value) is float for value in scores)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (None, "reward 'r': must return a list (got None"),
        (1.0, "must return a list (got 1.0"),
        ([1.0], "returned the wrong number of values (got 1; allowed: 2)"),
        ([1.0, float("nan")], "value 1 is not a finite number (got nan). Return None for a row without a score"),
        ([float("inf"), 1.0], "value 0 is not a finite number (got inf)"),
        ([1.0, "1.0"], "value 1 is not a finite number (got '1.0')"),
    ],
)
def test_other_returns_are_refused(scores, message):
    with pytest.raises(RewardError) as error:
        check_scores(scores, name="r", count=2)
    assert message in str(error.value)
