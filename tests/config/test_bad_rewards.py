"""Reward functions that cannot be used, each called on real rows before the run, and what is told of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.errors import RewardError
from tests.config.recipes import checked, numbered, rows_file, told

REWARDS = {
    "raising": ("raise KeyError('answer')", "the reward function raised KeyError: 'answer'"),
    "short": ("return [1.0]", "it returned 1 values for"),
    "text": ("return 'good'", "it did not return a list"),
    "number": ("return 1.0", "it did not return a list"),
    "words": ("return ['good'] * len(completions)", "value 0 is not a number (got 'good'"),
    "nan": ("return [float('nan')] * len(completions)", "value 0 is not finite"),
    "infinite": ("return [float('inf')] * len(completions)", "value 0 is not finite"),
    "percent": ("return [100.0] * len(completions)", "value 0 is outside the range of a verdict (got 100.0"),
    "nothing": ("return [None] * len(completions)", "returned None for every row"),
    "generous": ("return [1.0] * len(completions)", "accepts 'I do not know.' in"),
    "leaving": ("raise SystemExit(3)", "the reward function raised SystemExit"),
    "unfit": ("return undefined_name", "the reward function raised NameError"),
}


@pytest.mark.parametrize("name", REWARDS)
def test_a_reward_function_that_cannot_be_used(tmp_path: Path, name: str):
    body, words = REWARDS[name]
    (tmp_path / "mine.py").write_text(f"def {name}(prompts, completions, **columns):\n    {body}\n")
    message = told(checked(tmp_path, "grpo", {"rollout.rewards": [f"mine.py:{name}"]}), RewardError)
    assert words in message and "rollout.rewards.0" in message


@pytest.mark.parametrize(
    ("reward", "text", "words"),
    [
        ("none.py:f", None, "no such file"),
        ("mine.py:f", "def g(): pass\n", "no such function"),
        ("mine.py:f", "import nowhere_at_all\n", "cannot be imported: ModuleNotFoundError"),
        ("mine.py:f", "def f(:\n", "cannot be imported: SyntaxError"),
    ],
)
def test_a_reward_file_that_cannot_be_used(tmp_path: Path, reward: str, text: str | None, words: str):
    if text is not None:
        (tmp_path / "mine.py").write_text(text)
    report = checked(tmp_path, "grpo", {"rollout.rewards": [reward]})
    assert len(report.errors) == 1 and words in str(report.errors[0])
    assert "rollout.rewards.0" in str(report.errors[0])


def test_a_reward_that_never_returns_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("posttrain.config.checks_rewards.DEADLINE_SECONDS", 0.2)
    (tmp_path / "mine.py").write_text("import time\ndef slow(prompts, completions, **_):\n    time.sleep(3)\n")
    assert "did not return within" in told(
        checked(tmp_path, "grpo", {"rollout.rewards": ["mine.py:slow"]}), RewardError
    )


def test_a_verifier_that_refuses_the_demonstrations_is_told_with_the_fraction(tmp_path: Path):
    rows = [*numbered(6), *numbered(2, solution="I see 5 of them")]
    report = checked(tmp_path, "hpt", {"data.train": {"path": rows_file(tmp_path, rows)}})
    assert "refuses the demonstration or answer itself in 2 of 8 rows (25%)" in told(report, RewardError, warning=True)


def test_a_shaping_reward_may_leave_the_range_of_a_verdict(tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "async def brief(prompts, completions, **_):\n    return [-2.5] * len(prompts)\n"
    )
    assert checked(tmp_path, "grpo", {"rollout.rewards": ["exact", "mine.py:brief"]}).ok
