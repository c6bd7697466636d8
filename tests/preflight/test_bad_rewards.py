"""Reward functions that cannot be used, each called on real rows before the run, and what is told of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.config.run_config import RolloutBlock
from posttrain.errors import ConfigError, RewardError
from posttrain.rewards.limits import RewardLimits
from tests.config.recipes import checked, numbered, rows_file, told

REWARDS = {
    "raising": ("raise KeyError('answer')", "it failed on 32 of 32 rows, first: KeyError: 'answer'"),
    "short": ("return [1.0]", "returned the wrong number of values (got 1; allowed: "),
    "text": ("return 'good'", "must return a list (got 'good'"),
    "number": ("return 1.0", "must return a list (got 1.0"),
    "words": ("return ['good'] * len(completions)", "value 0 is not a finite number (got 'good'"),
    "nan": ("return [float('nan')] * len(completions)", "value 0 is not a finite number (got nan)"),
    "infinite": ("return [float('inf')] * len(completions)", "value 0 is not a finite number (got inf)"),
    "percent": ("return [100.0] * len(completions)", "value 0 is outside the range of a verdict (got 100.0"),
    "nothing": ("return [None] * len(completions)", "returned None for every row"),
    "generous": ("return [1.0] * len(completions)", "accepts 'I do not know.' in"),
    "leaving": ("raise SystemExit(3)", "first: SystemExit: 3"),
    "unfit": ("return undefined_name", "first: NameError: name"),
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


@pytest.mark.parametrize(
    ("body", "words", "fix"),
    [
        ("import time; time.sleep(60)", "timed out: no answer within 1 s", "raise rollout.reward_timeout_seconds"),
        ("bytearray(2**40)", "MemoryError", "Raise rollout.reward_memory_bytes"),
        ("import os; os.abort()", "worker died: ended by SIGABRT", "Raise rollout.reward_memory_bytes"),
        ("import os; os._exit(7)", "its process with exit code 7", "Return None for a row it cannot judge"),
        ("import socket; socket.socket()", "rewards have no network", "Return None for a row it cannot judge"),
    ],
)
def test_a_reward_that_hits_a_limit_is_told_within_seconds(tmp_path: Path, body: str, words: str, fix: str):
    (tmp_path / "mine.py").write_text(f"def worn(prompts, completions, **_):\n    {body}\n    return [0.0]\n")
    changes = {"rollout.rewards": ["exact", "mine.py:worn"], "rollout.reward_timeout_seconds": 1.0}
    message = told(checked(tmp_path, "grpo", changes), RewardError)
    assert "rollout.rewards.1" in message and words in message and fix in message


@pytest.mark.parametrize("base", ["sft", "grpo"])
def test_an_evaluation_has_limits_of_its_own(tmp_path: Path, base: str):
    body = "    import time; time.sleep(60)\n    return [0.0]\n"
    (tmp_path / "mine.py").write_text(f"def slow(prompts, completions, **_):\n{body}")
    changes = {"eval.verifier": "mine.py:slow", "eval.reward_timeout_seconds": 1.0, "eval.reward_memory_bytes": 0}
    message = told(checked(tmp_path, base, changes), RewardError)
    assert "no answer within 1 s" in message and "raise eval.reward_timeout_seconds" in message


def test_a_reward_that_wants_the_live_trainer_is_told_to_stay_inside(tmp_path: Path):
    (tmp_path / "mine.py").write_text("def f(prompts, completions, trainer_state, **_):\n    return [0.0] * 8\n")
    message = told(checked(tmp_path, "grpo", {"rollout.rewards": ["exact", "mine.py:f"]}), RewardError)
    assert "takes 'trainer_state', which does not reach a worker process" in message
    assert "set rollout.reward_workers: 0" in message


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("reward_workers", -1, "reward_workers"),
        ("reward_timeout_seconds", 0, "reward_timeout_seconds"),
        ("reward_memory_bytes", 1000, "reward_memory_bytes"),
        ("reward_network", "yes", "reward_network"),
        ("max_failed_fraction", 1.5, "max_failed_fraction"),
    ],
)
def test_limits_out_of_range_are_refused(tmp_path: Path, setting: str, value: object, words: str):
    blocks = [("grpo", "rollout"), ("sft", "eval")] if setting.startswith("reward_") else [("grpo", "rollout")]
    for base, block in blocks:
        with pytest.raises(ConfigError, match=rf"{block}\.{words}"):
            report = checked(tmp_path, base, {f"{block}.{setting}": value})
            report.raise_if_failed()


def test_the_limits_of_a_recipe_are_those_of_the_python_interface_by_default():
    block = RolloutBlock(rewards=["exact"])
    assert RewardLimits() == RewardLimits(
        workers=block.reward_workers,
        timeout_seconds=block.reward_timeout_seconds,
        memory_bytes=block.reward_memory_bytes,
        network=block.reward_network,
        environment=tuple(block.reward_environment),
        processes=block.reward_processes,
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


def test_what_a_reward_takes_from_outside_the_record_is_told_with_its_lines(tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "import random\n\n\ndef lucky(prompts, completions, **_):\n"
        "    return [float(len(text) > 3 and random.random() < 2) for text in completions]\n"
    )
    report = checked(tmp_path, "grpo", {"rollout.rewards": ["exact", "mine.py:lucky"]})
    (found,) = [str(warning) for warning in report.warnings if "no record of the run holds" in str(warning)]
    assert "rollout.rewards.1" in found and "mine.py, line 5, draws at random (random.random)" in found and report.ok


@pytest.mark.parametrize("answer", ["34", "#### 34", "\\boxed{34}", "\\frac{1}{2}", "1,200"])
def test_answers_alone_are_no_fault_of_a_verifier_that_reads_marks(tmp_path: Path, answer: str):
    rows = [{"prompt": f"question {number}", "answer": answer} for number in range(8)]
    changes = {"data.train": {"path": rows_file(tmp_path, rows)}, "rollout.rewards": ["math"]}
    assert not [str(w) for w in checked(tmp_path, "grpo", changes).warnings if "refuses" in str(w)]
