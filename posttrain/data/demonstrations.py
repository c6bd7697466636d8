"""Demonstrations as tokens: one way for every method, so that a demonstration row and a rollout row look alike to the
model.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from posttrain.errors import DataError

_OPEN_THINK = "<think>"
# As `demonstration_column` it says: the prompt is a document, and all its tokens are learnt.
DOCUMENT_COLUMN = "prompt"

_logger = logging.getLogger(__name__)


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: str | list[dict[str, str]], **chat_template_kwargs: Any
) -> list[int]:
    """Token ids that generation starts from: chat messages through the template, text as it is.

    Args:
        tokenizer: with a chat template if the prompt is messages.
        prompt: messages or text.
        chat_template_kwargs: variables of the template, as given to the trainer.

    Raises:
        DataError: messages but no chat template, or a prompt without any token.
    """
    if isinstance(prompt, str):
        ids = tokenizer(prompt)["input_ids"]
    else:
        if tokenizer.chat_template is None:
            raise DataError(
                "the prompts are chat messages but the tokenizer has no chat template",
                fix="Use an instruct model's tokenizer, or text prompts (data format: text)",
            )
        ids = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=True, return_dict=True, **chat_template_kwargs
        )["input_ids"]
    if not len(ids):
        raise DataError("a prompt has no tokens", got=prompt, fix="Remove the row")
    return list(ids)


def encode_demonstration(
    tokenizer: PreTrainedTokenizerBase, solution: str, *, prompt_ids: Sequence[int] = ()
) -> list[int]:
    """Token ids of a demonstration as the model would have generated it, end token included.

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
    if tokenizer.eos_token_id is None:
        raise DataError("the tokenizer has no end token, so a demonstration cannot end", fix="Set tokenizer.eos_token")
    if prompt_ids and solution.lstrip().startswith(_OPEN_THINK):
        tail = tokenizer.decode(list(prompt_ids)[-16:]).rstrip()
        if tail.endswith(_OPEN_THINK):
            solution = solution.lstrip().removeprefix(_OPEN_THINK).lstrip("\n")
    ids = list(tokenizer(solution, add_special_tokens=False)["input_ids"])
    while ids and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    return [*ids, tokenizer.eos_token_id]


def encode_row(
    tokenizer: PreTrainedTokenizerBase, prompt: Any, text: str, *, column: str, **chat_template_kwargs: Any
) -> tuple[list[int], list[int]]:
    """Tokens that are given and tokens that are learnt, of one supervised row.

    With `column` `DOCUMENT_COLUMN` the tokens are those of the text as it is, as in the next-token loss of
    mid-training: the first is given, all others are learnt, and no end token is added.

    Args:
        prompt, text: cells of the row. column: that `text` is from.
    """
    if column == DOCUMENT_COLUMN:
        ids = encode_prompt(tokenizer, text)
        return ids[:1], ids[1:]
    given = encode_prompt(tokenizer, prompt, **chat_template_kwargs)
    return given, encode_demonstration(tokenizer, text, prompt_ids=given)


def encode_example(
    row: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    column: str,
    max_length: int | None,
    where: str,
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
    if not isinstance(row[column], str) or not row[column].strip():
        raise DataError(
            "empty demonstration", where=f"{where}, column {column!r}", got=row[column], fix="Drop the row"
        )
    prompt, completion = encode_row(tokenizer, row["prompt"], row[column], column=column)
    if max_length is not None and len(prompt) + len(completion) > max_length:
        raise DataError(
            "prompt and demonstration are longer than a row may be",
            where=where,
            got=f"{len(prompt)} + {len(completion)} tokens",
            allowed=f"at most {max_length} (trainer.max_length)",
            fix="Raise trainer.max_length or drop the row",
        )
    return {"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion}


def encode_rows(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    column: str,
    max_length: int | None,
    keep: tuple[str, ...] = (),
) -> Dataset:
    """A dataset of `input_ids` and `labels` (-100 on the prompt) for supervised training.

    Args:
        dataset: columns `prompt` and `column`.
        column: demonstration text; `DOCUMENT_COLUMN` to learn the prompts, which must then be text.
        max_length: most tokens of a row; None = any.
        keep: columns carried along unchanged.

    Raises:
        DataError: an empty demonstration, or a row longer than `max_length` (a cut one would train a text that never
            ends); names the row.
    """

    def encode(row: dict[str, Any], index: int) -> dict[str, list[int]]:
        return encode_example(row, tokenizer, column=column, max_length=max_length, where=f"train row {index}")

    drop = [name for name in dataset.column_names if name not in keep]
    encoded = dataset.map(encode, with_indices=True, remove_columns=drop, desc=None, load_from_cache_file=False)
    if column == DOCUMENT_COLUMN and (short := sum(len(ids) < 2 for ids in encoded["input_ids"])):
        _logger.warning("%d of %d documents have one token, and nothing to learn", short, len(encoded))
    return encoded
