r"""From a scored corpus to prompts that ask for its next token.

Papers: arXiv 2506.08007 (the task), arXiv 2509.24375 (tiers). A target whose text holds a brace cannot stand in
\boxed{}, and one that is a part of a character has no text: both are left out, and counted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from posttrain.data.token_index import TokenIndex
from posttrain.errors import DataError
from posttrain.rewards.next_token import Extraction, Rule

TIERS = ("easy", "medium", "hard")
# Tokens of the true continuation that a prediction may cover.
CONTINUATION_TOKENS = 32
PROMPT = (
    "Predict how the text under the heading Context goes on: its next token. Reason step by step between <think> and "
    "</think>. Then write the predicted token once, as \\boxed{...}. If the token begins with a space, so does the "
    "content of the box. Do not use \\text{}.\n\n### Context\n{context}"
)
BUDGET_PROMPT = "Think in exactly {budget} tokens inside <think></think>."
_LOST = "�"


@dataclass(frozen=True)
class Targets:
    """Positions that may be asked for: flat positions of the index (N,) and the tier of each, 0 to 2."""

    positions: numpy.ndarray
    tiers: numpy.ndarray
    left_out: dict[str, int]


def tiers_of(entropy: Any, thresholds: Sequence[float]) -> numpy.ndarray:
    """Tier of each entropy: -1 none (up to the first threshold, or NaN), 0 easy, 1 medium, 2 hard.

    Args:
        entropy: (N,) nats. thresholds: three rising numbers; an entropy equal to one lies below it.
    """
    values = numpy.asarray(entropy, dtype=numpy.float64)
    tiers = numpy.searchsorted(numpy.asarray(thresholds), values, side="left") - 1
    return numpy.where(numpy.isnan(values), -1, tiers).astype(numpy.int8)


def find_targets(
    index: TokenIndex, tokenizer: Any, *, thresholds: Sequence[float], max_entropy: float | None = None
) -> Targets:
    """Every position of a corpus that is uncertain enough and can be asked for.

    Raises:
        DataError: there is none.
    """
    entropy = numpy.asarray(index.entropy)
    tiers = tiers_of(entropy, thresholds)
    wanted = tiers >= 0
    left_out = {}
    if max_entropy is not None:
        beyond = wanted & (entropy > max_entropy)
        left_out["entropy above max_entropy"] = int(beyond.sum())
        wanted &= ~beyond
    ids = numpy.unique(index.tokens[numpy.flatnonzero(wanted)])
    texts = {int(token): tokenizer.decode([int(token)]) for token in ids}
    for reason, characters in (("the target is a part of a character", _LOST), ("the target holds a brace", "{}")):
        bad = [token for token, text in texts.items() if any(sign in text for sign in characters)]
        hit = wanted & numpy.isin(index.tokens, bad)
        left_out[reason] = int(hit.sum())
        wanted &= ~hit
    positions = numpy.flatnonzero(wanted)
    if not len(positions):
        known = entropy[~numpy.isnan(entropy)]
        raise DataError(
            "no token is uncertain enough: all tiers are empty",
            where="method.entropy_thresholds",
            got=list(thresholds),
            allowed=f"the corpus has entropies up to {known.max():.3f} nats, median {numpy.median(known):.3f}",
            fix="Lower the thresholds, raise method.max_entropy, or use other text",
        )
    return Targets(positions, tiers[positions], {reason: count for reason, count in left_out.items() if count})


def index_in_memory(documents: Sequence[Sequence[int]]) -> TokenIndex:
    """An index of a few documents without a scorer: every token but the first of a document has entropy 1."""
    starts = numpy.cumsum([0, *(len(ids) for ids in documents)])
    entropy = numpy.ones(int(starts[-1]), dtype=numpy.float32)
    entropy[starts[:-1]] = numpy.nan
    return TokenIndex(Path(), {}, numpy.concatenate([numpy.asarray(ids) for ids in documents]), starts, entropy)


def tier_counts(tiers: numpy.ndarray) -> dict[str, int]:
    """Number of targets in each tier."""
    return {name: int((tiers == tier).sum()) for tier, name in enumerate(TIERS)}


@dataclass(frozen=True)
class ContinuationRows:
    """Makes the row of a position: prompt, answer, tier, and the entry that the reward `next_token` reads.

    `template` has {context}, `budget_template` {budget}; they are filled in as text, not as format strings.
    """

    index: TokenIndex
    tokenizer: Any
    rule: Rule
    extraction: Extraction = "boxed_after_think"
    template: str = PROMPT
    budget_template: str = BUDGET_PROMPT

    def row(self, position: int, *, tier: str = "", budget: int | None = None) -> dict[str, Any]:
        """Row of a position; with a budget, the prompt asks for a thought of that many tokens."""
        context = self.tokenizer.decode(self.index.before(position), skip_special_tokens=True)
        text = self.template.replace("{context}", context)
        if budget is not None:
            text = self.budget_template.replace("{budget}", str(budget)) + "\n" + text
        prompt: Any = [{"role": "user", "content": text}]
        return self._row(position, prompt, tier, self.extraction)

    def plain_row(self, position: int, *, tier: str = "") -> dict[str, Any]:
        """The same question without words: the plain text before the position, to be continued by one token."""
        context = self.tokenizer.decode(self.index.before(position), skip_special_tokens=True)
        return self._row(position, context, tier, "raw")

    def round_trips(self, position: int) -> bool:
        """Whether the target's text is tokenised as this one token."""
        target = int(self.index.tokens[position])
        return token_of(self.tokenizer, self.tokenizer.decode([target])) == target

    def _row(self, position: int, prompt: Any, tier: str, extraction: Extraction) -> dict[str, Any]:
        following = self.index.following(position, CONTINUATION_TOKENS)
        continuation, ends = decode_with_ends(self.tokenizer, following)
        entry = {
            "continuation": continuation,
            "token_ends": ends,
            "round_trips": self.round_trips(position),
            "rule": self.rule,
            "extraction": extraction,
            "target_id": following[0],
        }
        answer = continuation.encode("utf-8")[: ends[0]].decode("utf-8")
        return {
            "prompt": prompt,
            "answer": answer,
            "solution": "",
            "group": tier,
            "task": "next_token",
            "entry": json.dumps(entry),
        }


def token_of(tokenizer: Any, text: str) -> int | None:
    """The one token that a text is cut into; None if there are several."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return int(ids[0]) if len(ids) == 1 else None


def decode_with_ends(tokenizer: Any, ids: Sequence[int]) -> tuple[str, list[int]]:
    """Text of tokens, and the cumulative number of bytes after each; an end inside a character is left out.

    Only as many tokens are taken as decode to a text that begins with that of fewer tokens.
    """
    whole, ends = "", []
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode(list(ids[:count]))
        if text.endswith(_LOST):
            continue
        if not text.startswith(whole):
            break
        whole = text
        ends.append(len(whole.encode("utf-8")))
    return whole, ends


def round_trip_fraction(rows: ContinuationRows, positions: numpy.ndarray, *, seed: int, sample: int = 1000) -> float:
    """Share of targets, of a seeded sample, whose text is tokenised as the one token they are."""
    chosen = positions
    if len(positions) > sample:
        chosen = numpy.random.default_rng(seed).choice(positions, sample, replace=False)
    return sum(rows.round_trips(int(position)) for position in chosen) / len(chosen)
