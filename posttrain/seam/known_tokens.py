"""Token ids of training rows against the model's embeddings, and their lengths against its positions."""

from __future__ import annotations

from typing import Any

import pyarrow.compute as pc
from datasets import Dataset

from posttrain.errors import DataError
from posttrain.models.positions import position_limit


def token_rows(model: Any) -> int:
    """Token ids that a model knows: rows of its embeddings, or of its head where that has fewer."""
    layers = [layer for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None]
    # deepspeed 0.19: a weight that ZeRO-3 has spread shows its shape as `ds_shape`.
    return min(int(getattr(layer.weight, "ds_shape", layer.weight.shape)[0]) for layer in layers)


def refuse_unreadable_rows(model: Any, rows: Any) -> None:
    """Refuse tokenised rows that the model cannot read; other kinds of data sets pass.

    Raises:
        DataError: an id is beyond its embeddings, or a sequence longer than it has positions; names the first row.
    """
    if not isinstance(rows, Dataset) or "input_ids" not in rows.column_names or not len(rows):
        return
    limit = position_limit(model.config)
    for column in [name for name in rows.column_names if name.endswith("input_ids")]:  # those of answers, too
        _refuse_unknown_tokens(model, rows, column)
        if limit is not None:
            _refuse_long_rows(rows, limit, column)


def _refuse_long_rows(rows: Dataset, limit: int, column: str) -> None:
    # trl 1.16: a packed row says how long its sequences are.
    packed = "seq_lengths" in rows.column_names
    cells = rows.data.column("seq_lengths" if packed else column)
    longest = pc.max(pc.list_flatten(cells) if packed else pc.list_value_length(cells)).as_py()
    if longest is None or longest <= limit:
        return
    for index, cell in enumerate(rows["seq_lengths" if packed else column]):
        length = max(cell, default=0) if packed else len(cell)
        if length > limit:
            raise DataError(
                f"a row is longer than the model's {limit} positions",
                where=f"train row {index}",
                got=f"{length} tokens",
                allowed=f"at most {limit}",
                fix="Shorten or drop it, or set max_position_embeddings in the model's configuration if it is meant "
                "to read further",
            )


def _refuse_unknown_tokens(model: Any, rows: Dataset, column: str) -> None:
    known = token_rows(model)
    highest = pc.max(pc.list_flatten(rows.data.column(column))).as_py()
    if highest is None or highest < known:
        return
    for index, ids in enumerate(rows[column]):
        refuse_unknown_token(max(ids, default=0), known, where=f"train row {index}")


def refuse_unknown_token(highest: int, known: int, *, where: str) -> None:
    """Raise DataError where the highest id of a row or prompt is beyond what `token_rows` gives."""
    if highest >= known:
        raise DataError(
            f"a row has a token beyond the model's {known} rows of embeddings",
            where=where,
            got=f"id {highest}",
            allowed=f"below {known}",
            fix="Use the tokenizer that the model was trained with, or resize the model's embeddings",
        )
