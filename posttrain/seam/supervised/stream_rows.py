"""Rows of streams as the trainer draws them: encoded one at a time, when their batch is made."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from posttrain.data.demonstrations import DOCUMENT_COLUMN, encode_example
from posttrain.data.streams import NOT_WITH_STREAMS, RowStreams
from posttrain.errors import ConfigError, DataError, SupportError
from posttrain.registry import METHODS
from posttrain.seam.groups.row_index import ROW_INDEX


class EncodedStreams:
    """`RowStreams` with a row's token ids and labels in place of its texts; indexed by the row's number.

    Args:
        rows: the streams. tokenizer: encodes. column: of the demonstration, or `DOCUMENT_COLUMN`.
        max_length: most tokens of a row; None = any. variables: of the chat template.

    Raises:
        ConfigError, DataError: no tokenizer, no such column.
    """

    def __init__(
        self,
        rows: RowStreams,
        tokenizer: Any,
        *,
        column: str,
        max_length: int | None,
        variables: dict[str, Any] | None = None,
    ):
        if tokenizer is None:
            raise ConfigError("the tokenizer is needed to encode rows", where="processing_class", got=None)
        if column not in rows.column_names:
            raise DataError(
                "the demonstration column is missing",
                where="train_dataset",
                got=column,
                allowed=f"columns: {', '.join(rows.column_names)}",
            )
        self.rows, self.tokenizer, self.column, self.max_length = rows, tokenizer, column, max_length
        self.variables = variables

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Token ids and labels of a row.

        Raises:
            DataError: the row cannot be read, is empty, or is too long; names it.
        """
        return {**self.encoded(self.rows[number], where=self.rows.where(number)), ROW_INDEX: number}

    def encoded(self, row: dict[str, Any], *, where: str) -> dict[str, Any]:
        """The same of a row that is at hand; `where` names it."""
        encoded = encode_example(
            row,
            self.tokenizer,
            column=self.column,
            max_length=self.max_length,
            where=where,
            variables=self.variables,
        )
        limit = self.rows.max_prompt_length
        given = len(encoded["input_ids"]) if self.column == DOCUMENT_COLUMN else encoded["labels"].count(-100)
        if limit is not None and given > limit:
            raise DataError(
                "the prompt is too long",
                where=where,
                got=f"{given} tokens",
                allowed=f"at most {limit} (data.max_prompt_length)",
                fix="Raise the limit, or take the row out of the stream",
            )
        return encoded

    def head(self) -> Dataset:
        """The first row of every stream, encoded: what upstream looks at before training."""
        places = [self.rows.number(group, 0) for group in range(len(self.rows.names))]
        return Dataset.from_list([{key: self[place][key] for key in ("input_ids", "labels")} for place in places])


def refuse_for_streams(args: Any, *, draws_groups: bool) -> None:
    """Settings under which rows of a stream would not be drawn, or not be drawn again alike.

    Args:
        args: a `SupervisedConfig`. draws_groups: whether the trainer draws rows group by group.

    Raises:
        SupportError: names the setting.
    """
    if not draws_groups:
        by_groups = [key for key, method in METHODS.items() if "streams" in method.inputs]
        raise SupportError(
            "rows of a stream are drawn group by group, and this method puts its rows into a random order",
            where="train_dataset",
            got="streams",
            fix=f"Load them without streaming, or use a method that draws by groups: {', '.join(by_groups)}",
        )
    for name, told in NOT_WITH_STREAMS.items():
        if getattr(args, name):
            raise SupportError(
                told, where=f"trainer.{name}", got=getattr(args, name), allowed=type(getattr(args, name))()
            )
