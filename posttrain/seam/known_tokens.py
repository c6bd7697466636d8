"""Token ids of training rows against the model's embeddings."""

from __future__ import annotations

from typing import Any

import pyarrow.compute as pc
from datasets import Dataset

from posttrain.errors import DataError


def token_rows(model: Any) -> int:
    """Token ids that a model knows: rows of its embeddings, or of its head where that has fewer."""
    layers = [layer for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None]
    # deepspeed 0.19: a weight that ZeRO-3 has spread shows its shape as `ds_shape`.
    return min(int(getattr(layer.weight, "ds_shape", layer.weight.shape)[0]) for layer in layers)


def refuse_unknown_tokens(model: Any, rows: Any) -> None:
    """Refuse tokenised rows with ids beyond the model's embeddings; other kinds of data sets pass.

    Raises:
        DataError: names the first such row and the id.
    """
    if not isinstance(rows, Dataset) or "input_ids" not in rows.column_names or not len(rows):
        return
    known = token_rows(model)
    highest = pc.max(pc.list_flatten(rows.data.column("input_ids"))).as_py()
    if highest is None or highest < known:
        return
    for index, ids in enumerate(rows["input_ids"]):
        if max(ids, default=0) >= known:
            raise DataError(
                f"a row has a token beyond the model's {known} rows of embeddings",
                where=f"train row {index}",
                got=f"id {max(ids)}",
                allowed=f"below {known}",
                fix="Use the tokenizer that the model was trained with, or resize the model's embeddings",
            )
