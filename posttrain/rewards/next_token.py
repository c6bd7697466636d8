r"""Match reward of next-token reasoning: did the completion predict how the text goes on?

The row's entry holds the true continuation and where its tokens end, so that no tokenizer is needed here. Leading
spaces are part of a token: nothing inside \boxed{} is stripped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Literal

from posttrain.errors import RewardError
from posttrain.rewards.answers import completion_text, last_box
from posttrain.rewards.length_budget import CLOSE_THINK

Rule = Literal["prefix", "first_token", "exact_token"]
Extraction = Literal["boxed_after_think", "boxed", "raw"]
_BOX = re.compile(r"\\boxed ?\{")
_KEYS = ("continuation", "token_ends", "round_trips", "rule", "extraction", "target_id")


def next_token(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    *,
    entry: Sequence[str | None] | None = None,
    completion_ids: Sequence[Sequence[int]] | None = None,
    **_: Any,
) -> list[float | None]:
    """1.0 where the predicted text matches the row's true continuation by the row's rule, else 0.0.

    Args:
        prompts: not read.
        completions: strings or chat message lists.
        entry: JSON made by `data.next_token_reasoning.continuation_entry`, one for each completion.
        completion_ids: token ids, used where a row's extraction is "raw" (the next token of plain text).

    Returns:
        One value for each completion; None where the row has no entry.

    Raises:
        RewardError: an entry that is not JSON or lacks a key.

    Source: arXiv 2506.08007, prefix matching reward; arXiv 2509.24375, next-token reward.
    """
    entries = entry if entry is not None else [None] * len(completions)
    ids = completion_ids if completion_ids is not None else [None] * len(completions)
    return [score_one(text, stored, own) for text, stored, own in zip(completions, entries, ids, strict=True)]


def score_one(completion: Any, entry: str | None, completion_ids: Sequence[int] | None = None) -> float | None:
    """Value of one completion, see `next_token`."""
    if not entry:
        return None
    stored = _entry(entry)
    if stored["extraction"] == "raw":
        if completion_ids is not None and stored["target_id"] is not None:
            return float(len(completion_ids) > 0 and int(completion_ids[0]) == stored["target_id"])
        return float(matches(completion_text(completion), stored, rule="first_token"))
    predicted = predicted_text(completion_text(completion), stored["extraction"])
    if predicted is None:
        return 0.0
    return float(matches(predicted, stored, rule=stored["rule"]))


def predicted_text(text: str, extraction: str) -> str | None:
    r"""Content of the last \boxed{...} (or "\boxed {...}") with balanced braces, as it stands; None if there is none.

    Args:
        text: the completion.
        extraction: "boxed_after_think" looks only behind the last closing think tag (none: no prediction), "boxed" in
            the whole text.
    """
    if extraction == "boxed_after_think":
        position = text.rfind(CLOSE_THINK)
        if position < 0:
            return None
        text = text[position + len(CLOSE_THINK) :]
    box = last_box(text, _BOX)
    return None if box is None else box[1]


def matches(predicted: str, stored: dict[str, Any], *, rule: str) -> bool:
    """Whether a prediction is right by a rule.

    prefix: its bytes are those of the first k >= 1 tokens of the continuation. first_token: it begins with the first
    token's text. exact_token: it is the first token's text, and that text is tokenised as this one token. An empty
    prediction is never right.
    """
    if not predicted:
        return False
    if rule == "exact_token":
        return bool(stored["round_trips"]) and predicted == _target(stored)
    if rule == "first_token":
        return bool(_target(stored)) and predicted.startswith(_target(stored))
    written = predicted.encode("utf-8", errors="surrogatepass")  # half of a surrogate pair matches no valid text
    truth = stored["continuation"].encode("utf-8")
    return len(written) in stored["token_ends"] and truth[: len(written)] == written


def _target(stored: dict[str, Any]) -> str:
    return str(stored["continuation"].encode("utf-8")[: stored["token_ends"][0]].decode("utf-8"))


def _entry(text: str) -> dict[str, Any]:
    where = "reward next_token"
    try:
        stored = json.loads(text)
    except ValueError:
        raise RewardError("the entry is not JSON", where=where, got=text) from None
    missing = [key for key in _KEYS if key not in stored] if isinstance(stored, dict) else list(_KEYS)
    if missing:
        raise RewardError(
            "the entry is not one of next-token reasoning",
            where=where,
            got=text,
            allowed=f"the keys {', '.join(_KEYS)}",
            fix="Rows for it are made by `posttrain score-tokens` and by the task woven_text",
        )
    return stored
