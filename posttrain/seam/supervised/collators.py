"""What a batch of supervised rows holds beside token ids and labels: columns, and further answers to its prompts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets

from posttrain.data.demonstrations import encode_row, encode_rows
from posttrain.data.rendering import template_inputs
from posttrain.errors import DataError

_IDS, _LABELS = "_input_ids", "_labels"


class WithColumns:
    """A collator that carries columns along, which trl 1.16's own collator leaves out of the batch.

    Numbers become a (B,) tensor, anything else a list of B values.
    """

    def __init__(self, collator: Any, columns: tuple[str, ...]):
        self.collator, self.columns = collator, columns

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collator(examples)
        for name in self.columns:
            values = [example[name] for example in examples]
            numeric = all(isinstance(value, bool | int | float) for value in values)
            batch[name] = torch.tensor(values) if numeric else values
        return batch


class WithAnswers:
    """A collator that puts a row's further answers below it, as rows of their own.

    B rows with n answers each become (B (1 + n), S) tokens: the first row, its answers in the order of `columns`, the
    second row, and so on. All are padded together.
    """

    def __init__(self, collator: Any, columns: tuple[str, ...]):
        self.collator, self.columns = collator, columns

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        rows = []
        for example in examples:
            rows.append(example)
            rows += [
                {**example, "input_ids": example[name + _IDS], "labels": example[name + _LABELS]}
                for name in self.columns
            ]
        return self.collator(rows)


def with_answers(
    encoded: Dataset, rows: Dataset, tokenizer: Any, columns: tuple[str, ...], **options: Any
) -> tuple[Dataset, tuple[str, ...]]:
    """Encoded rows with what `WithAnswers` reads, and the names of these columns.

    Args:
        encoded: of `encode_rows`. rows: what it was made of. columns: with an answer each.
        options: max_length and variables of `encode_rows`.

    Raises:
        DataError: an answer is no text, or too long; names the row.
    """
    names: list[str] = []
    for column in columns:
        found = encode_rows(rows, tokenizer, column=column, **options)
        found = found.rename_columns({"input_ids": column + _IDS, "labels": column + _LABELS})
        names += found.column_names
        encoded = concatenate_datasets([encoded, found], axis=1)
    return encoded, tuple(names)


def column_findings(rows: Mapping[str, Dataset], args: Any, *, tokenizer: Any) -> Iterator[DataError]:
    """Columns of answers and of numbers that are missing, empty, too long, or the same; the first row is named.

    Args:
        rows: data sets by the name of their block.
        args: a `SupervisedConfig`, with its `answer_columns` and `number_columns`.
        tokenizer: None leaves lengths out.
    """
    for name, data in rows.items():
        where = f"data.{name}"
        for column in (*args.answer_columns, *args.number_columns):
            if column not in data.column_names:
                allowed = f"columns: {', '.join(data.column_names)}"
                what = "a column that the method reads is missing"
                yield DataError(what, where=where, got=column, allowed=allowed, fix="Add it, or name its file")
            elif column in args.answer_columns:
                yield from _answer_findings(data, column, where, args, tokenizer)
            else:
                wrong = [i for i, value in enumerate(data[column]) if not _is_number(value)]
                if wrong:
                    what = f"no finite number in {len(wrong)} of {len(data)} rows (row {wrong[0]}, column {column!r})"
                    yield DataError(what, where=where, got=data[wrong[0]][column], fix="Write one in every row")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _answer_findings(data: Dataset, column: str, where: str, args: Any, tokenizer: Any) -> Iterator[DataError]:
    texts, first = data[column], args.demonstration_column
    empty = [index for index, text in enumerate(texts) if not isinstance(text, str) or not text.strip()]
    same = []
    if first in data.column_names:
        same = [index for index, pair in enumerate(zip(texts, data[first], strict=True)) if pair[0] == pair[1]]
    if empty:
        what = f"an answer is empty in {len(empty)} of {len(data)} rows (row {empty[0]}, column {column!r})"
        yield DataError(what, where=where, fix="Fill them, or drop these rows")
    elif same:
        what = f"{first!r} and {column!r} are the same in {len(same)} of {len(data)} rows (row {same[0]})"
        yield DataError(what, where=where, fix="Drop these rows: nothing can be learnt from such a pair")
    elif tokenizer is not None and args.max_length is not None:
        yield from _long_answers(data, column, where, tokenizer, args.max_length, args.chat_template_kwargs)


def _long_answers(
    data: Dataset, column: str, where: str, tokenizer: Any, limit: int, variables: Mapping[str, Any] | None
) -> Iterator[DataError]:
    """The first row whose prompt and answer have too many tokens; a token has one character or more."""
    for index, row in enumerate(data):
        if len(str(row["prompt"])) + len(row[column]) < limit:
            continue
        inputs = template_inputs(row, variables)
        length = sum(map(len, encode_row(tokenizer, row["prompt"], row[column], column=column, **inputs)))
        if length > limit:
            what = f"prompt and answer of row {index}, column {column!r}, are longer than a row may be"
            fix = "Raise trainer.max_length, or drop the row"
            allowed = f"at most {limit} (trainer.max_length)"
            yield DataError(what, where=where, got=f"{length} tokens", allowed=allowed, fix=fix)
            return
