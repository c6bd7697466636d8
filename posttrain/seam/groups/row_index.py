"""The place of every row of a batch in the training data, so that a method can draw per row.

What follows from (seed, epoch, place) is the same after a resume, in another split into micro-batches and on any
number of processes. A packed row has one place, that of the packed row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from datasets import Dataset

from posttrain.errors import SupportError

ROW_INDEX = "row_index"
_ROW_LENGTH = "row_length"


def numbered(dataset: Any) -> Dataset:
    """A prepared data set with the column `ROW_INDEX`.

    Raises:
        SupportError: a `datasets.IterableDataset`, whose rows have no numbers.
    """
    if not isinstance(dataset, Dataset):
        raise SupportError(
            "the method draws by row, and the rows of a stream have no numbers",
            where="train_dataset",
            got=type(dataset).__name__,
            allowed="a datasets.Dataset, or posttrain.data.streams.RowStreams where rows are drawn group by group",
        )
    return dataset.add_column(ROW_INDEX, list(range(len(dataset))))


class NumberedCollator:
    """A collator that also gives each row's place and its length before padding; rows without a place pass."""

    def __init__(self, collator: Any):
        self.collator = collator

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collator(examples)
        if all(ROW_INDEX in example for example in examples):
            batch[ROW_INDEX] = [example[ROW_INDEX] for example in examples]
            batch[_ROW_LENGTH] = [len(example["input_ids"]) for example in examples]
        return batch


def row_spans(batch: dict[str, Any]) -> Iterator[tuple[int, slice]]:
    """(place in the training data, its tokens in the flattened (B*S,) batch) of every row.

    Padded on the right, or all rows after one another in a single one. The tokens of a row that has its answers below
    it are those of all of them.
    """
    (rows, width), count = batch["input_ids"].shape, len(batch[ROW_INDEX])
    below = max(1, rows // count)
    begin = 0
    for number, (place, length) in enumerate(zip(batch[ROW_INDEX], batch[_ROW_LENGTH], strict=True)):
        begin = begin if rows < count else number * width * below
        yield place, slice(begin, begin + (length if below == 1 else width * below))
        begin += length


def blank_rows(batch: dict[str, Any], first: int, *, below: int = 1) -> None:
    """Take the labels of rows `first` and on out of a batch; without numbers, `below` rows of the tensor are one."""
    labels = batch["labels"]
    if ROW_INDEX not in batch:
        labels[first * below :] = -100
        return
    for _, span in list(row_spans(batch))[first:]:
        labels.view(-1)[span] = -100


def drop_numbers(batch: dict[str, Any]) -> None:
    """Take what `NumberedCollator` added out of a batch again: the model does not know it."""
    for name in (ROW_INDEX, _ROW_LENGTH):
        batch.pop(name, None)
