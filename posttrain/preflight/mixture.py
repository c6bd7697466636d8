"""Loading a split for the checks; of a mixture, what it will hold in rows and tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from posttrain.config.rules import is_local
from posttrain.config.run_config import RunConfig
from posttrain.config.verdict import template_variables
from posttrain.data.mixture import SOURCE_COLUMN, build_mixture, token_counter
from posttrain.data.sources import load_source, text_columns
from posttrain.data.streams import load_streams
from posttrain.errors import DataError, PosttrainError

# Rows of a source whose tokens are counted before the run; the run counts all.
_SAMPLED = 200
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class LoadedSplit:
    """Rows of a split, of `streams` their first ones; `facts` and `warnings` are about a mixture."""

    dataset: Any
    facts: tuple[str, ...] = ()
    warnings: tuple[PosttrainError, ...] = field(default=())
    streams: Any = None


def load_split(cfg: RunConfig, split: str, tokenizer: Any) -> LoadedSplit:
    """Rows of "train" or "eval".

    Args:
        cfg: one run, without stages.
        split: name of the block under `data`.
        tokenizer: counts a mixture's tokens; None leaves them out.

    Raises:
        PosttrainError: the rows cannot be had, or do not go together.
    """
    source, prompt = getattr(cfg.data, split), cfg.data.system_prompt
    texts = [] if split == "eval" else text_columns(cfg.method)
    if getattr(source, "streaming", False):
        return _first_rows(cfg, load_streams(source, system_prompt=prompt, texts=texts))
    if getattr(source, "mixture", None) is None:
        notes: list[str] = []
        rows = load_source(source, system_prompt=prompt, texts=texts, notes=notes)
        return LoadedSplit(rows, tuple(f"data.{split}: {note}" for note in notes))
    column = str(getattr(cfg.method, "demonstration_column", "solution"))
    count = None if tokenizer is None else token_counter(tokenizer, column=column, **template_variables(cfg))
    mixture = build_mixture(source, system_prompt=prompt, texts=texts, count_tokens=count)
    where = cfg.where("data", split, "mixture")
    warnings = tuple(DataError(text, where=where) for text in mixture.warnings)
    mixing = source.mixing or "concat_shuffle"
    head = f"a mixture of {len(mixture.shares)} sources, {mixing}, {len(mixture.dataset)} rows an epoch"
    tokens = dict(_token_shares(mixture, count)) if count is not None else {}
    lines = [
        f"  {line}{tokens.get(share.name, '')}" for share, line in zip(mixture.shares, mixture.lines(), strict=True)
    ]
    notes = [f"data.{split}.mixture: {note}" for note in mixture.notes]
    return LoadedSplit(mixture.dataset, (head, *lines, *notes), warnings)


def _first_rows(cfg: RunConfig, streams: Any) -> LoadedSplit:
    head = streams.head(_SAMPLED)
    told = f"{len(streams.names)} streams, {', '.join(streams.names)}: the first {_SAMPLED} rows of each are checked "
    warnings = [
        DataError(
            "rows of the Hub may change during the run or while it is stopped; what follows would not be the same",
            where=cfg.where("data", "train", "mixture", index, "revision"),
            got=entry.revision,
            allowed="the 40 digits of a commit",
        )
        for index, entry in enumerate(cfg.data.train.mixture or ())
        if not is_local(str(entry.path)) and not _COMMIT.fullmatch(entry.revision or "")
    ]
    facts = (f"{told}here, the others when they are drawn",)
    return LoadedSplit(head, facts, streams=streams, warnings=tuple(warnings))


def _token_shares(mixture: Any, count: Any) -> Iterator[tuple[str, str]]:
    """(source, text) of its share of the tokens, estimated from its first rows."""
    places: dict[str, list[int]] = {}
    for place, name in enumerate(mixture.dataset[SOURCE_COLUMN]):
        places.setdefault(name, []).append(place)
    means = {
        name: sum(count(mixture.dataset[place]) for place in found[:_SAMPLED]) / len(found[:_SAMPLED])
        for name, found in places.items()
    }
    total = sum(means[name] * len(found) for name, found in places.items())
    for name, found in places.items():
        yield name, f", about {means[name] * len(found) / total:.2%} of the tokens"
