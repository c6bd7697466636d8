r"""From a scored corpus to prompts that ask for its next token.

Papers: arXiv 2506.08007 (the task), arXiv 2509.24375 (tiers). A target whose text holds a brace cannot stand in
\boxed{}, one that is a part of a character has no text, a special token is not text, and behind nothing but blanks
there is nothing to go by: all are left out, and counted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from posttrain.errors import DataError
from posttrain.methods.rmt.token_index import TokenIndex
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
# Text before a token when what it adds is asked for alone; tokens before a target that its text is told from.
_ANCHOR = "a\n"
_WINDOW = 8


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
    special, anchor = set(tokenizer.all_special_ids), tokenizer(_ANCHOR, add_special_tokens=False)["input_ids"]
    texts = {int(token): added_text(tokenizer, anchor, int(token)) for token in numpy.unique(index.tokens)}
    blank = {token for token, text in texts.items() if token in special or not text.strip()}
    for reason, bad in (
        ("the target is a special token", special),
        ("the target is a part of a character", {token for token, text in texts.items() if _LOST in text}),
        ("the target holds a brace", {token for token, text in texts.items() if "{" in text or "}" in text}),
        ("the target has no text", {token for token, text in texts.items() if not text}),
    ):
        hit = wanted & numpy.isin(index.tokens, list(bad))
        left_out[reason] = int(hit.sum())
        wanted &= ~hit
    hit = wanted & ~_follows_text(index, blank)
    left_out["nothing but blanks before the target"] = int(hit.sum())
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


def _follows_text(index: TokenIndex, blank: set[int]) -> numpy.ndarray:
    """(N,) whether a document has a token with text before each position."""
    seen = numpy.cumsum(~numpy.isin(index.tokens, list(blank)))
    before = numpy.concatenate([[0], seen])  # tokens with text before each flat position
    begins = numpy.repeat(before[index.starts[:-1]], numpy.diff(index.starts))
    return numpy.asarray(before[:-1] > begins)


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
        """Whether the target's text is tokenised as this one token, alone or behind other text."""
        target = int(self.index.tokens[position])
        text = added_text(self.tokenizer, self.index.before(position)[-_WINDOW:], target)
        return target in (token_of(self.tokenizer, text), token_behind(self.tokenizer, text))

    def _row(self, position: int, prompt: Any, tier: str, extraction: Extraction) -> dict[str, Any]:
        following = self.index.following(position, CONTINUATION_TOKENS)
        before = self.index.before(position)[-_WINDOW:]
        continuation, ends = decode_with_ends(self.tokenizer, following, before=before)
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


def token_behind(tokenizer: Any, text: str) -> int | None:
    """The one token that a text is cut into behind other text, where no space is put in front of it."""
    ids, anchor = (tokenizer(words, add_special_tokens=False)["input_ids"] for words in (_ANCHOR + text, _ANCHOR))
    return int(ids[-1]) if ids[:-1] == anchor else None


def added_text(tokenizer: Any, before: Sequence[int], token: int) -> str:
    """What a token adds to the text of those before it; a part of a character is shown by its sign."""
    return decode_with_ends(tokenizer, [token], before=before)[0] or str(tokenizer.decode([token]))


def decode_with_ends(tokenizer: Any, ids: Sequence[int], *, before: Sequence[int] = ()) -> tuple[str, list[int]]:
    """Text that tokens add, and the cumulative number of bytes after each; an end inside a character is left out.

    Only as many tokens are taken as decode to a text that begins with that of fewer tokens.

    Args:
        ids: tokens. before: some that stand in front of them, since some tokenizers drop a space that begins a text.
            They are left aside where the first token changes their text.
    """
    start = tokenizer.decode(list(before)) if before else ""
    whole, ends = "", []
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode([*before, *ids[:count]])
        if not text.startswith(start):
            break
        text = text[len(start) :]
        if text.endswith(_LOST):
            continue
        if not text.startswith(whole):
            break
        whole = text
        ends.append(len(whole.encode("utf-8")))
    if before and not ends:
        return decode_with_ends(tokenizer, ids)
    return whole, ends


def round_trip_fraction(rows: ContinuationRows, positions: numpy.ndarray, *, seed: int, sample: int = 1000) -> float:
    """Share of targets, of a seeded sample, whose text is tokenised as the one token they are."""
    chosen = positions
    if len(positions) > sample:
        chosen = numpy.random.default_rng(seed).choice(positions, sample, replace=False)
    return sum(rows.round_trips(int(position)) for position in chosen) / len(chosen)
