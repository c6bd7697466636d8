"""The rows that a run trains, and those whose loss it measures, as its recipe names them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from posttrain.config.verdict import template_variables
from posttrain.data.mixture import build_mixture, token_counter
from posttrain.data.rendering import encode_prompt, template_inputs
from posttrain.data.sources import load_source, text_columns
from posttrain.data.streams import RowStreams, load_streams

Say = Callable[[str], None]


def load_rows(config: Any, source: Any, tokenizer: Any, *, say: Say | None = None) -> tuple[Any, Any]:
    """Rows of one source, or of a mixture.

    Args:
        config: blocks without stages.
        source: `data.train` or `data.validation`.
        tokenizer: counts a mixture's tokens.
        say: takes what was made of cells, and a mixture's warnings; None leaves them out.

    Returns:
        The data set or `RowStreams`, and the `Mixture` with its tokens counted; None where there is none.
    """
    prompt, texts = config.data.system_prompt, text_columns(config.method)
    if source.streaming:
        return load_streams(source, system_prompt=prompt, texts=texts), None
    if source.mixture is None:
        notes: list[str] = []
        found = load_source(source, system_prompt=prompt, texts=texts, notes=notes)
        _tell(say, notes)
        return found, None
    column = getattr(config.method, "demonstration_column", "solution")
    count = token_counter(tokenizer, column=column, **template_variables(config))
    mixture = build_mixture(source, system_prompt=prompt, texts=texts, count_tokens=count)
    _tell(say, [*mixture.notes, *(f"warning: {warning}" for warning in mixture.warnings)])
    return mixture.dataset, mixture.with_tokens(count)


def _tell(say: Say | None, lines: Iterable[str]) -> None:
    if say is not None:
        for line in lines:
            say(line)


def short_enough(config: Any, rows: Any, tokenizer: Any, *, split: str, say: Say | None = None) -> Any:
    """The rows whose prompt has at most `data.max_prompt_length` tokens; streams refuse longer ones as they come.

    Args:
        config: blocks without stages.
        rows: data set with `prompt`.
        tokenizer: with the template of the run.
        split: name for the message. say: is told how many rows were left out.
    """
    if isinstance(rows, RowStreams):
        rows.max_prompt_length = config.data.max_prompt_length
        return rows
    variables, limit = template_variables(config), config.data.max_prompt_length
    kept = [
        i
        for i, row in enumerate(rows)
        if len(encode_prompt(tokenizer, row["prompt"], **template_inputs(row, variables))) <= limit
    ]
    if len(kept) == len(rows):
        return rows
    if say is not None:
        say(f"left out {len(rows) - len(kept)} of {len(rows)} {split} rows: prompt longer than {limit} tokens")
    return rows.select(kept)
