"""The format reward: one final answer, at the end, or in one box."""

from __future__ import annotations

import pytest

from posttrain.rewards.format import format as format_reward


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        ("work\nAnswer: 85", 1.0),
        ("work\n#### 85\n", 1.0),
        (r"work \boxed{85}.", 1.0),
        ("Answer: 85\nbye", 0.0),
        ("Answer: 85\nAnswer: 85", 0.0),
        ("Answer:", 0.0),
        (r"\boxed{1} \boxed{2}", 0.0),
        (r"\boxed{}", 0.0),
        (r"\boxed{1", 0.0),
        ("85", 0.0),
        ("", 0.0),
    ],
)
def test_values(completion, value):
    assert format_reward([""], [completion]) == [value]
    assert format_reward([""], [[{"role": "assistant", "content": completion}]], answer=["1"]) == [value]
