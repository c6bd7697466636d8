"""How much of its thinking budget a completion used, and what that is worth; reinforcement mid-training adds it to the
match reward. Lengths are counted in tokens by whoever has the tokenizer.
"""

from __future__ import annotations

OPEN_THINK, CLOSE_THINK = "<think>", "</think>"


def length_reward(num_tokens: int, budget: int, *, maximum: float = 1.0) -> float:
    """Triangle over the length: rises to `maximum` at the budget, falls to 0 at twice the budget.

    maximum * l / B for l <= B; maximum * (2B - l) / B for B < l <= 2B; 0 beyond.

    Args:
        num_tokens: l, tokens of thought, >= 0.
        budget: B, >= 1.
        maximum: value at the peak.

    Raises:
        ValueError: a negative length or a budget below 1.

    Source: arXiv 2509.24375, triangular length reward.
    """
    if num_tokens < 0 or budget < 1:
        raise ValueError(f"length is {num_tokens} and budget {budget}; expected length >= 0 and budget >= 1")
    if num_tokens <= budget:
        return maximum * num_tokens / budget
    return max(0.0, maximum * (2 * budget - num_tokens) / budget)


def thought_span(text: str, *, is_open: bool = False) -> tuple[int, int] | None:
    """Begin and end, in characters, of what stands between the think tags of a completion.

    Args:
        text: the completion.
        is_open: the prompt already ends in an opened tag, so the thought begins with the completion.

    Returns:
        (begin, end) of the first thought; None if a tag is missing or the closing one comes first.
    """
    begin = text.find(OPEN_THINK)
    if begin >= 0:
        begin += len(OPEN_THINK)
    elif is_open:
        begin = 0
    else:
        return None
    end = text.find(CLOSE_THINK, begin)
    return (begin, end) if end >= 0 else None
