"""The verdict on replayed rollouts; a reward function as recipes name them. Imports nothing of the package."""

from __future__ import annotations

from typing import Any

RIGHT = "R"


def marked_right(prompts: list, completions: list, **_: Any) -> list[float]:
    """1 for completions that begin with R, else 0."""
    texts = [completion if isinstance(completion, str) else completion[-1]["content"] for completion in completions]
    return [float(text.strip().startswith(RIGHT)) for text in texts]
