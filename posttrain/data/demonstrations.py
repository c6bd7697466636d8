"""Demonstrations as tokens: one way for every method, so that a demonstration row and a rollout row look alike to the
model.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, Features, Json
from transformers import PreTrainedTokenizerBase

from posttrain.data.answers import message_of, render_answer
from posttrain.data.markers import Markers, markers_of
from posttrain.data.rendering import SPECIAL_TOKENS, encode_document, encode_prompt, render_prompt, template_inputs
from posttrain.errors import DataError

__all__ = [
    "encode_demonstration",
    "encode_example",
    "encode_pair",
    "encode_prompt",
    "encode_row",
    "encode_rows",
    "not_text",
    "template_inputs",
    "with_variables",
]

# Tags that open a thought; a prompt may end in one.
_OPEN = re.compile(r"<think(?:ing)?>|<seed:think>|\[THINK\]|<\|begin_of_thought\|>")
# Characters that a text is put behind where its prompt's own do not serve.
_ANCHORS = ("\n", "|", "a", "0", ".")
# As `demonstration_column` it says: the prompt is a document, and all its tokens are learnt.
DOCUMENT_COLUMN = "prompt"

_logger = logging.getLogger(__name__)


def encode_demonstration(
    tokenizer: PreTrainedTokenizerBase,
    solution: str,
    *,
    prompt_ids: Sequence[int] = (),
    special_tokens_in_text: str = "text",
    **_: Any,
) -> list[int]:
    """Token ids of a demonstration behind a prompt of which only the ids are known; see `encode_pair`.

    Args:
        tokenizer: must have an end token.
        solution: assistant text. Where the prompt already ends in an opened think tag, the same tag at the start of
            the text is dropped. End tokens at its end are dropped, too, before the one that is added.
        prompt_ids: ids from `encode_prompt`.

    Returns:
        ids; never empty, since the end token is always there.

    Raises:
        DataError: the tokenizer has no end token.
    """
    tail = tokenizer.decode(list(prompt_ids)[-16:]) if prompt_ids and _OPEN.match(solution.lstrip()) else ""
    text, markers = _written(tokenizer, solution, behind=tail), markers_of(tokenizer)
    if special_tokens_in_text == "text":
        text = str(markers.hide(text))
    return [*_continued(tokenizer, text, markers), tokenizer.eos_token_id]


def encode_pair(
    tokenizer: PreTrainedTokenizerBase, prompt: Any, solution: str, **chat_template_kwargs: Any
) -> tuple[list[int], list[int]]:
    """Tokens of a prompt, and of the demonstration as the model would have generated it behind them.

    Both together are the tokens of prompt and demonstration as one text, and the end token. Where a tokenizer joins
    the last characters of the prompt with the first of the demonstration into one token, that is not so, since
    generation starts from the prompt's own tokens: the demonstration is then cut as text that follows a boundary.
    A demonstration that is a message (`assistant_messages` of the row) is what the template writes of it.

    Args: as in `encode_prompt` and `encode_demonstration`.
    """
    given, learnt, _ = encode_joined(tokenizer, prompt, solution, **chat_template_kwargs)
    return given, learnt


def encode_joined(
    tokenizer: PreTrainedTokenizerBase, prompt: Any, solution: str, **chat_template_kwargs: Any
) -> tuple[list[int], list[int], bool]:
    """`encode_pair`, and whether the tokens of the whole text begin with those of the prompt."""
    rendered = render_prompt(tokenizer, prompt, **chat_template_kwargs)
    given = rendered.ids(tokenizer)
    if not given:
        raise DataError("a prompt has no tokens", got=prompt, fix="Remove the row")
    if (message := message_of(solution, chat_template_kwargs)) is not None and not isinstance(prompt, str):
        _refuse_no_end(tokenizer)
        text, is_ended = render_answer(tokenizer, prompt, message, rendered, **chat_template_kwargs)
    else:
        text, is_ended = rendered.hide(_written(tokenizer, solution, behind=rendered.text)), False
    whole = rendered.ids(tokenizer, text)
    begins = whole[: len(given)] == given
    learnt = whole[len(given) :] if begins else _continued(tokenizer, text, rendered.markers)
    return given, learnt if is_ended else [*learnt, tokenizer.eos_token_id], begins


def _written(tokenizer: PreTrainedTokenizerBase, solution: str, *, behind: str) -> str:
    """A demonstration's text without end tokens at its end, and without a think tag that the prompt has opened."""
    _refuse_no_end(tokenizer)
    end = str(tokenizer.eos_token)
    while end.strip() and solution.rstrip().endswith(end):
        solution = solution.rstrip().removesuffix(end)
    opened = _OPEN.match(solution.lstrip())
    if opened is not None and behind.rstrip().endswith(opened[0]):
        solution = solution.lstrip().removeprefix(opened[0]).lstrip("\n")
    return solution


def _refuse_no_end(tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.eos_token_id is None:
        raise DataError("the tokenizer has no end token, so a demonstration cannot end", fix="Set tokenizer.eos_token")


def _continued(tokenizer: PreTrainedTokenizerBase, text: str, markers: Markers) -> list[int]:
    """Ids of a hidden text where it follows another: behind a character that does not join with it."""
    for anchor in _ANCHORS:
        before = markers.encode(tokenizer, anchor)
        whole = markers.encode(tokenizer, anchor + text)
        if before and whole[: len(before)] == before:
            return whole[len(before) :]
    return markers.encode(tokenizer, text)


def encode_row(
    tokenizer: PreTrainedTokenizerBase, prompt: Any, text: str, *, column: str, **chat_template_kwargs: Any
) -> tuple[list[int], list[int]]:
    """Tokens that are given and tokens that are learnt, of one supervised row.

    With `column` `DOCUMENT_COLUMN` the tokens are those of the text as it is, as in the next-token loss of
    mid-training: the first is given, all others are learnt, and no end token is added but by the tokenizer itself.

    Args:
        prompt, text: cells of the row. column: that `text` is from.
    """
    if column == DOCUMENT_COLUMN:
        ids = encode_document(tokenizer, text, **chat_template_kwargs)
        if not ids:
            raise DataError("a prompt has no tokens", got=prompt, fix="Remove the row")
        return ids[:1], ids[1:]
    return encode_pair(tokenizer, prompt, text, **chat_template_kwargs)


def encode_example(
    row: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    column: str,
    max_length: int | None,
    where: str,
    variables: Mapping[str, Any] | None = None,
) -> dict[str, list[int]]:
    """`input_ids` and `labels` (-100 on the prompt) of one row; arguments as in `encode_rows`.

    Raises:
        DataError: as there; `where` names the row.
    """
    if column == DOCUMENT_COLUMN and not isinstance(row[column], str):
        raise DataError(
            "a document is text, not a chat",
            where=f"{where}, column {column!r}",
            got=row[column],
            fix="Set data.train.format: text, or name the column of the demonstrations",
        )
    if row[column] is not None and not isinstance(row[column], str):
        raise not_text(row[column], f"{where}, column {column!r}")
    if not (row[column] or "").strip():
        raise DataError(
            "empty demonstration", where=f"{where}, column {column!r}", got=row[column], fix="Drop the row"
        )
    inputs = template_inputs(row, variables)
    try:
        prompt, completion = encode_row(tokenizer, row["prompt"], row[column], column=column, **inputs)
    except DataError as error:
        raise error.at(where) from error
    if max_length is not None and len(prompt) + len(completion) > max_length:
        raise DataError(
            "prompt and demonstration are longer than a row may be",
            where=where,
            got=f"{len(prompt)} + {len(completion)} tokens",
            allowed=f"at most {max_length} (trainer.max_length)",
            fix="Raise trainer.max_length or drop the row",
        )
    return {"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion}


def not_text(value: Any, where: str) -> DataError:
    """The error for a demonstration that is a list of messages or no text at all."""
    fix = (
        "Write the assistant's text there, with what else its message has in `assistant_messages` "
        "(posttrain.data.answers), or use TRL's columns prompt and completion, or messages, with method sft"
    )
    return DataError("a demonstration is text", where=where, got=value, fix=fix)


def _refuse_typed_tokens(dataset: Dataset, tokenizer: Any) -> None:
    """Refuse chats in TRL's formats that spell control tokens: TRL would read what a user typed as tokens."""
    names = [name for name in ("messages", "prompt", "completion") if name in dataset.column_names]
    if tokenizer is None or not tokenizer.chat_template or not names:
        return
    markers, found = markers_of(tokenizer), dict[int, set[str]]()
    for index, row in enumerate(dataset.select_columns(names)):
        said = [message for name in names if isinstance(row[name], list) for message in row[name]]
        hidden = [markers.hide(message, role=str(message.get("role"))) for message in said]
        if typed := markers.found(hidden):
            found[index] = typed
    if found:
        raise DataError(
            f"the text of {len(found)} of {len(dataset)} chats spells control tokens, which TRL reads as tokens",
            where=f"train row {min(found)}",
            got=", ".join(sorted(found[min(found)])),
            fix="Use the columns prompt and solution, where they are read as text, or take them out; if they are "
            f'meant as tokens, set chat_template_kwargs={{"{SPECIAL_TOKENS}": "token"}}',
        )


def with_variables(dataset: Any, variables: Mapping[str, Any] | None, tokenizer: Any = None) -> Any:
    """Chats in TRL's formats with the variables of the template in the column that TRL reads; others as they are.

    What a row says itself comes first.

    Raises:
        DataError: the chats spell control tokens of the tokenizer, and no variable says that they are meant.
    """
    if not isinstance(dataset, Dataset) or not {"messages", "prompt"} & set(dataset.column_names):
        return dataset
    if (variables or {}).get(SPECIAL_TOKENS) != "token":
        _refuse_typed_tokens(dataset, getattr(tokenizer, "tokenizer", tokenizer))
    if not variables:
        return dataset
    own = {name: value for name, value in variables.items() if name != SPECIAL_TOKENS}

    def merged(row: dict[str, Any]) -> dict[str, Any]:
        return {"chat_template_kwargs": {**own, **template_inputs({**row, "tools": None, "documents": None})}}

    # Of no fixed type: columns of a struct would fill rows up with None, which a template takes for a value.
    features = Features({**dataset.features, "chat_template_kwargs": Json()})
    return dataset.map(merged, features=features, desc=None, load_from_cache_file=False)


def encode_rows(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    column: str,
    max_length: int | None,
    keep: tuple[str, ...] = (),
    variables: Mapping[str, Any] | None = None,
) -> Dataset:
    """A dataset of `input_ids` and `labels` (-100 on the prompt) for supervised training.

    Args:
        dataset: columns `prompt` and `column`.
        column: demonstration text; `DOCUMENT_COLUMN` to learn the prompts, which must then be text.
        max_length: most tokens of a row; None = any.
        keep: columns carried along unchanged.
        variables: of the chat template, see `encode_prompt`; a row's own come before them, see `template_inputs`.

    Raises:
        DataError: an empty demonstration, or a row longer than `max_length` (a cut one would train a text that never
            ends); names the row.
    """

    def encode(row: dict[str, Any], index: int) -> dict[str, list[int]]:
        where = f"train row {index}"
        return encode_example(row, tokenizer, column=column, max_length=max_length, where=where, variables=variables)

    drop = [name for name in dataset.column_names if name not in keep]
    encoded = dataset.map(encode, with_indices=True, remove_columns=drop, desc=None, load_from_cache_file=False)
    if column == DOCUMENT_COLUMN and (short := sum(len(ids) < 2 for ids in encoded["input_ids"])):
        _logger.warning("%d of %d documents have one token, and nothing to learn", short, len(encoded))
    return encoded
