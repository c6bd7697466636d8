"""A verdict that tells untrained completions apart, so that their group has a gradient."""

from __future__ import annotations

from typing import Any


def share_of_digits(prompts: list, completions: list, **_: Any) -> list[float]:
    """Share of the characters of each completion that are digits."""
    texts = [completion[0]["content"] for completion in completions]
    return [sum(map(str.isdigit, text)) / max(1, len(text)) for text in texts]
