"""A completion that exceeds its time: wrong or failed as the recipe says, and no trouble of the other rows."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from posttrain.config.reward_entry import RewardEntry
from posttrain.rewards.scorer import RewardLimits, RewardScorer

HANGING = """
import time

def hanging(prompts, completions, **_):
    if "bad" in completions:
        time.sleep(600)
    return [float(len(text)) for text in completions]
"""
LATE = RewardLimits(timeout_seconds=1.0, memory_bytes=2**30)


@pytest.mark.parametrize("choice", ["wrong", "fail"])
def test_a_completion_over_its_time_is_what_the_recipe_chose_and_the_others_are_scored(tmp_path: Path, choice: str):
    (tmp_path / "mine.py").write_text(HANGING)
    accepted = 0.0 if choice == "wrong" else 0.5
    reward = RewardScorer(
        "mine.py:hanging", base_dir=tmp_path, limits=LATE, max_failed_fraction=accepted, on_timeout=choice
    )
    values = reward(["p"] * 3, ["a", "bad", "abc"])
    assert values == [1.0, 0.0 if choice == "wrong" else None, 3.0]
    assert [outcome.is_late for outcome in reward.outcomes] == [False, choice == "wrong", False]
    assert [outcome.is_failed for outcome in reward.outcomes] == [False, choice == "fail", False]
    assert reward.timed_out == (1 if choice == "wrong" else 0)


def test_late_completions_of_math_are_wrong_and_its_options_reach_the_worker():
    assert RewardScorer("math").on_timeout == "wrong" and RewardScorer("exact").on_timeout == "fail"
    for strict, verdicts in ((True, [0.0, 1.0]), (False, [1.0, 1.0])):
        reward = RewardScorer("math", limits=RewardLimits(memory_bytes=2**30), options={"strict": strict})
        assert reward(["p"] * 2, ["Answer: x^2=7", "Answer: 7"], answer=["7", "7"]) == verdicts


def test_a_recipe_names_both_choices_and_strict_is_of_math_alone():
    entry = RewardEntry(name="math", strict=False, on_timeout="fail")
    assert entry.options() == {"options": {"strict": False}, "on_timeout": "fail"}
    assert RewardEntry(name="exact").options() == {"options": {}, "on_timeout": None}
    with pytest.raises(ValidationError, match="strict is a setting of the reward math, not of 'exact'"):
        RewardEntry(name="exact", strict=True)
