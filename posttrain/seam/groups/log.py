"""What training has taken of each source of a mixture, or of each group of its rows, and how well each is learnt.

`mixture/<name>_rows` and `_tokens` are totals over the whole run, interruptions included, and over all ranks;
`_fraction` are their shares. Supervised methods count the rows they train (packed rows, if rows are packed) and their
trained tokens; policy methods count prompts drawn and tokens generated for them. `mixture/<name>_loss` is the mean
negative log-likelihood of the group's trained tokens since the last log line, in nats, whatever loss is minimised.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor

from posttrain.data.mixture import SOURCE_COLUMN
from posttrain.data.streams import RowStreams
from posttrain.errors import DataError
from posttrain.seam.groups.row_index import row_spans

GROUP_IDS = "group_ids"


def group_column(dataset: Any, named: str | None = None) -> str | None:
    """Column that tells the group of a row: that of a mixture's sources, else `named`; None where neither is there."""
    columns = (dataset.column_names or []) if isinstance(dataset, Dataset | RowStreams) else []
    return next((name for name in (SOURCE_COLUMN, named) if name in columns), None)


def group_numbers(
    dataset: Dataset, column: str, *, names: Sequence[str] | None = None, split: str = "data.train"
) -> tuple[list[str], np.ndarray]:
    """Groups of a data set's rows.

    Args:
        dataset: rows with the column.
        column: of texts, none empty.
        names: groups in order; None = those of the rows, sorted. split: for messages.

    Returns:
        names, and (N,) int32 numbers of each row's group in `names`.

    Raises:
        DataError: a row without group, or with one that is not in `names`.
    """
    table = dataset.select_columns([column]).with_format("arrow")[:]
    encoded = table.column(column).cast(pa.string()).combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    found = encoded.dictionary.to_pylist()
    # A column that a source does not have is filled with empty texts.
    missing = encoded.is_null().to_numpy(zero_copy_only=False)
    if "" in found:
        missing = missing | (encoded.indices.fill_null(-1).to_numpy() == found.index(""))
    if missing.any():
        raise DataError(
            "a row has no group",
            where=split,
            got=f"row {missing.argmax()}, column {column!r}; {missing.sum()} of {len(missing)} rows",
            fix="Name its group, map the column under columns: {group: ...}, or remove the row",
        )
    known = sorted(found) if names is None else list(names)
    if unknown := sorted(set(found) - set(known)):
        raise DataError(
            "rows belong to groups that are not listed",
            where=split,
            got=f"{', '.join(unknown)} in column {column!r}",
            allowed=", ".join(known),
            fix="List them in method.groups, or remove these rows",
        )
    places = np.array([known.index(name) for name in found], dtype=np.int32)
    numbers = encoded.indices.to_numpy()
    return known, places[numbers] if len(places) else numbers.astype(np.int32)


class GroupStats:
    """Counts and losses by group.

    Every rank calls `count_batches` or `count_rollouts`, and `show_losses`, at the same steps: they sum over ranks.

    Args:
        names: each group once, in order.
        numbers: (N,) number of every training row's group; None = rows of streams, whose own number tells it.
        column: that tells the group of a row.
    """

    def __init__(self, names: Sequence[str], numbers: np.ndarray | None, *, column: str = SOURCE_COLUMN):
        self.names, self.numbers, self.column = list(names), numbers, column
        self._place = {name: place for place, name in enumerate(self.names)}
        # (m, 2) negative log-likelihood and tokens since the last log line, of this rank.
        self.losses: Tensor | None = None

    @classmethod
    def of(cls, dataset: Any, column: str | None = SOURCE_COLUMN, *, names: Sequence[str] | None = None) -> Any:
        """A `GroupStats` of streams, or of rows that have the column; None for any other data set."""
        if isinstance(dataset, RowStreams):
            if names is not None:
                dataset.order(names)
            return cls(dataset.names, None)
        if column is None or not isinstance(dataset, Dataset) or column not in dataset.column_names:
            return None
        return cls(*group_numbers(dataset, column, names=names), column=column)

    @property
    def sizes(self) -> list[int] | None:
        """Training rows of each group; None = not known, of streams."""
        if self.numbers is None:
            return None
        return np.bincount(self.numbers, minlength=len(self.names)).tolist()

    def group_of(self, place: int) -> int:
        """Number of the group of a training row."""
        return RowStreams.group_of(place) if self.numbers is None else int(self.numbers[place])

    def count_batches(self, trainer: Any, batches: Iterable[dict[str, Any]]) -> None:
        """Add the numbered micro-batches of an optimizer step; rows without a trained token are left out.

        Each batch gets `GROUP_IDS` (B, S), the group of every token, for `add_losses`.
        """
        found = []
        for batch in batches:
            labels = batch["labels"]
            flat, groups = labels.reshape(-1) != -100, torch.zeros(labels.numel(), dtype=torch.long)
            for place, span in row_spans(batch):
                number, trained = self.group_of(place), int(flat[span].sum())
                groups[span] = number
                found.append((number, float(trained > 0), trained))
            batch[GROUP_IDS] = groups.view(labels.shape).to(labels.device)
        self._add(trainer, found)

    def count_rollouts(self, trainer: Any, rows: Iterable[dict[str, Any]], lengths: Iterable[int]) -> None:
        """Add the rows of a generation batch, each of which is one completion of its prompt, with their lengths.

        A method that makes its own prompts may have rows without a source; they are not counted.
        """
        share = 1.0 / trainer.num_generations
        pairs = zip(rows, lengths, strict=True)
        self._add(trainer, [(self._place[row[self.column]], share, int(n)) for row, n in pairs if self.column in row])

    def _add(self, trainer: Any, found: Iterable[tuple[int, float, int]]) -> None:
        device = trainer.accelerator.device
        local = torch.zeros(len(self.names), 2, dtype=torch.float64 if device.type == "cpu" else torch.float32)
        for number, rows, tokens in found:
            local[number] += torch.tensor([rows, tokens], dtype=local.dtype)
        added = trainer.accelerator.reduce(local.to(device), reduction="sum").tolist()
        for quantity, place in (("rows", 0), ("tokens", 1)):
            totals = [
                trainer.add_total(f"mixture/{name}_{quantity}", numbers[place])
                for name, numbers in zip(self.names, added, strict=True)
            ]
            whole = sum(totals)
            for name, total in zip(self.names, totals, strict=True):
                share = total / whole if whole else 0.0
                trainer.set_metric(f"mixture/{name}_{quantity}_fraction", share)

    # ---- losses ----

    def add_losses(self, log_probs: Tensor, label_mask: Tensor, group_ids: Tensor) -> None:
        """Add a micro-batch of training.

        Args:
            log_probs, label_mask: (B, S-1), of the token after each position.
            group_ids: (B, S) from the batch.
        """
        dtype = torch.float64 if log_probs.device.type == "cpu" else torch.float32
        if self.losses is None:
            self.losses = torch.zeros(len(self.names), 2, dtype=dtype, device=log_probs.device)
        groups, mask = group_ids[:, 1:].reshape(-1), label_mask.reshape(-1)
        values = torch.stack(
            [-log_probs.detach().reshape(-1).to(dtype).masked_fill(~mask, 0.0), mask.to(dtype)], dim=1
        )
        self.losses.index_add_(0, groups, values)

    def show_losses(self, trainer: Any) -> None:
        """Put the losses since the last call into the log of training, for groups with a trained token; collective."""
        device = trainer.accelerator.device
        dtype = torch.float64 if device.type == "cpu" else torch.float32
        local = torch.zeros(len(self.names), 2, dtype=dtype, device=device)
        if self.losses is not None:
            local += self.losses.to(device)
        for name, (total, tokens) in zip(self.names, trainer.accelerator.reduce(local, "sum").tolist(), strict=True):
            if tokens:
                trainer.set_metric(f"mixture/{name}_loss", total / tokens)
        self.losses = None
