"""Exact match with the reference answer: the verdict of tasks with one correct way to write the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posttrain.rewards.answers import completion_text, marked_answer, normalise


def exact(
    prompts: Sequence[Any], completions: Sequence[Any], *, answer: Sequence[str | None] | None = None, **_: Any
) -> list[float | None]:
    """1.0 where the final answer is the reference, else 0.0.

    The final answer is the text after "Answer:" or "####" on the last line that begins with one of them; without such
    a line it is the whole completion. It must equal the reference as a whole, case included; only the amount of space,
    the composition of characters (NFC) and invisible ones may differ. So "Answer: 85 or 84" is wrong, and the last of
    several answer lines is the one that counts.

    Args:
        prompts: not read.
        completions: strings or chat message lists.
        answer: references, one for each completion.

    Returns:
        One value for each completion; None where the reference is missing or blank.
    """
    references = answer if answer is not None else [None] * len(completions)
    return [score_one(text, reference) for text, reference in zip(completions, references, strict=True)]


def score_one(completion: Any, answer: str | None) -> float | None:
    """Verdict on one completion, see `exact`."""
    if answer is None or not answer.strip():
        return None
    text = completion_text(completion)
    marked = marked_answer(text)
    return float(normalise(text if marked is None else marked) == normalise(answer))
