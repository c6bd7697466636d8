r"""Whether a completion states exactly one final answer; a reward to put beside a verdict, never instead of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posttrain.rewards.answers import MARKERS, boxed_answer, completion_text


def format(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float | None]:
    r"""1.0 where the completion states one final answer in a readable place, else 0.0.

    That is: either exactly one line begins with "Answer:" or "####", something follows the mark, and no text comes
    after that line; or there is no such line and exactly one \boxed{...}, closed and not empty.

    Args:
        prompts: not read.
        completions: strings or chat message lists.

    Returns:
        One value for each completion, never None.
    """
    return [score_one(completion) for completion in completions]


def score_one(completion: Any) -> float:
    """Value of one completion, see `format`."""
    text = completion_text(completion)
    lines = text.strip().split("\n")
    marked = [index for index, line in enumerate(lines) if line.lstrip().startswith(MARKERS)]
    if marked:
        last = lines[-1].strip()
        return float(marked == [len(lines) - 1] and last not in MARKERS)
    boxed = boxed_answer(text)
    return float(text.count("\\boxed{") == 1 and boxed is not None and bool(boxed[1]))
