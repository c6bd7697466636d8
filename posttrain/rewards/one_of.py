"""Exact match with one of several right answers: the verdict of tasks that accept a set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from posttrain.errors import RewardError
from posttrain.rewards.answers import completion_text, marked_answer, normalise


def one_of(
    prompts: Sequence[Any], completions: Sequence[Any], *, entry: Sequence[str | None] | None = None, **_: Any
) -> list[float | None]:
    """1.0 where the final answer is one of the accepted ones, else 0.0.

    The final answer is found as the reward `exact` finds it, and must equal one accepted answer as a whole, case
    included; only the amount of space, the composition of characters (NFC) and invisible ones may differ. A list of
    answers is therefore wrong, whatever is in it.

    Args:
        prompts: not read.
        completions: strings or chat message lists.
        entry: one JSON text for each completion with the key "accepted", a list of texts.

    Returns:
        One value for each completion; None where the row has no entry, or one without "accepted".

    Raises:
        RewardError: if an entry is not JSON, or "accepted" is not a list of texts with at least one that is not blank.
    """
    entries = entry if entry is not None else [None] * len(completions)
    return [score_one(text, stored) for text, stored in zip(completions, entries, strict=True)]


def score_one(completion: Any, entry: str | None) -> float | None:
    """Verdict on one completion, see `one_of`."""
    accepted = accepted_answers(entry)
    if accepted is None:
        return None
    text = completion_text(completion)
    marked = marked_answer(text)
    return float(normalise(text if marked is None else marked) in accepted)


def accepted_answers(entry: str | None) -> frozenset[str] | None:
    """The right answers that an entry names, normalised; None where it names none. RewardError as of `one_of`."""
    if not entry:
        return None
    where, allowed = "reward one_of", 'JSON such as {"accepted": ["1", "3"]}'
    try:
        stored = json.loads(entry)
    except ValueError:
        raise RewardError("the entry is not JSON", where=where, got=entry, allowed=allowed) from None
    if not isinstance(stored, dict) or "accepted" not in stored:
        return None
    answers = stored["accepted"]
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise RewardError("accepted answers are a list of texts", where=where, got=answers, allowed=allowed)
    accepted = frozenset(normalise(answer) for answer in answers) - {""}
    if not accepted:
        raise RewardError("no answer is accepted", where=where, got=answers, fix="Drop the row")
    return accepted
