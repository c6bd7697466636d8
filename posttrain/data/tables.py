"""Gather rows as they are stored, batch by batch, into a data set with our columns."""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from datasets import Dataset, DatasetInfo, Features
from datasets.features.features import generate_from_arrow_type

from posttrain.data.cells import arrow_cells
from posttrain.data.columns import FurtherColumn
from posttrain.data.readers import LocalFile
from posttrain.data.rendering import ASSISTANT_MESSAGES
from posttrain.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset, Features

# File, number of the first row in it, columns as lists or Arrow arrays, rows.
Batch = tuple[LocalFile, int, dict[str, Any], int]
_ROWS_AT_ONCE = 1000
_INPUTS = ("tools", "documents")


class Table:
    """A data set in the making.

    Args:
        path: of the source, for messages.
        choose: names of the columns that are stored -> our column -> theirs; raises DataError where one is missing.
        make: (cells of the stored columns, row numbers, columns=, label=) -> cells of ours.
        features: (further columns of ours, is_open=) -> types of ours.
        nulls: takes the places of cells of JSON files in which a null is written that no template will see.
    """

    def __init__(
        self,
        path: str,
        *,
        choose: Callable[[list[str]], dict[str, str]],
        make: Callable[..., dict[str, list[Any]]],
        features: Callable[..., Features],
        nulls: list[str] | None = None,
    ):
        self.path, self.choose, self.make, self.features = path, choose, make, features
        self._nulls = nulls
        self._present: dict[str, None] = {}
        self._columns: dict[str, str] = {}
        self._waiting: list[Batch] = []  # until the columns that are asked for have come
        self._ours: dict[str, list[Any]] = {}
        self._further: dict[str, FurtherColumn] = {}
        self._types: Mapping[str, Any] = {}  # that a library knows better than Arrow: images, classes
        self._count = 0
        self._has_messages = False  # whether demonstrations are messages
        self._is_open = False  # whether messages have more than role and content

    def read_dataset(self, dataset: Dataset, limit: int | None = None) -> Dataset:
        """From rows that a library has read; arguments and errors as in `read`."""
        self._types = dataset.features
        return self.read(_batches(dataset, self.path), limit)

    def read(self, batches: Iterable[Batch], limit: int | None = None) -> Dataset:
        """From batches of rows, at most `limit` rows.

        Raises:
            DataError: no row at all, a column is missing, or a row cannot be used.
        """
        problem: DataError | None = None
        left = limit
        for file, start, columns, count in batches:
            if left is not None and count > left:
                columns, count = {name: cells[:left] for name, cells in columns.items()}, left
            self._waiting.append((file, start, columns, count))
            if problem is not None or not self._present.keys() >= columns.keys():
                self._present.update(dict.fromkeys(columns))
                try:
                    self._columns, problem = self.choose(list(self._present)), None
                except DataError as error:
                    problem = error
            if problem is None:
                for batch in self._waiting:
                    self._add(*batch)
                self._waiting.clear()
            left = None if left is None else left - count
            if left == 0:
                break
        if not self._present:
            raise DataError("there are no rows", where=self.path, fix="Check split, limit and file")
        if problem is not None:
            raise problem
        return self._dataset()

    def _add(self, file: LocalFile, start: int, columns: dict[str, Any], count: int) -> None:
        needed = {theirs if theirs in columns else theirs.split(".")[0] for theirs in self._columns.values()}
        batch = {name: _listed(columns[name]) if name in columns else [None] * count for name in needed}
        if file.kind == "json" and self._nulls is not None:
            for name in filter(columns.__contains__, (self._columns["prompt"], *_INPUTS)):
                self._nulls += [
                    f"{file.label}, row {start + place}, column {name!r}"
                    for place, cell in enumerate(columns[name])
                    if _has_null(cell, own=name not in _INPUTS)
                ]
        made = self.make(batch, range(start, start + count), columns=self._columns, label=file.label)
        self._has_messages |= ASSISTANT_MESSAGES in made
        kinds = self._our_features()
        if "role" in str(kinds["prompt"]) and _has_more(made["prompt"]):
            self._is_open, kinds = True, self._our_features(is_open=True)
            self._ours["prompt"] = [_json_messages(part.to_pylist()) for part in self._ours.get("prompt", [])]
        for field in kinds.arrow_schema:
            parts = self._ours.setdefault(field.name, [pa.nulls(self._count, field.type)] if self._count else [])
            is_open = self._is_open and field.name == "prompt"
            cells = made.get(field.name, [None] * count)
            parts.append(_json_messages(cells) if is_open else pa.array(cells, field.type))
        for name in self._present.keys() - self._used() - self._further.keys():
            self._further[name] = FurtherColumn(name, file.kind)
            if self._count:
                self._further[name].add(None, self._count, str)
        for name, column in self._further.items():
            column.add(columns.get(name), count, lambda place: f"{file.label}, row {start + place}")
        self._count += count

    def _dataset(self) -> Dataset:
        names = [name for name in self._present if name in self._further and name not in self._used()]
        further = {name: self._further[name].array() for name in names}
        ours = self._our_features()
        arrays = {field.name: pa.chunked_array(self._ours[field.name], field.type) for field in ours.arrow_schema}
        self._refuse_unknown_types(further)
        schema = pa.schema([pa.field(name, array.type) for name, array in further.items()])
        known = {name: self._types[name] for name in names if name in self._types}
        features = Features({**Features.from_arrow_schema(schema), **known, **ours})
        table = pa.table({**further, **arrays}).cast(features.arrow_schema)
        # A name of its own: hashing all rows for one costs a copy of them, and no cache is kept of these.
        return Dataset(table, info=DatasetInfo(features=features), fingerprint=uuid.uuid4().hex[:16])

    def _refuse_unknown_types(self, further: Mapping[str, Any]) -> None:
        """Types of Arrow that `datasets` cannot hold, such as maps of parquet."""
        for name, array in further.items():
            try:
                generate_from_arrow_type(array.type)
            except ValueError:
                fix = "Write it as JSON text, or leave the column out of the file"
                what = "no column can have this type"
                raise DataError(what, where=f"{self.path}, column {name!r}", got=str(array.type), fix=fix) from None

    def _our_features(self, *, is_open: bool = False) -> Features:
        named = [name for name in self._columns if name not in self.features()]
        named += [ASSISTANT_MESSAGES] if self._has_messages else []
        return self.features(named, is_open=is_open or self._is_open)

    def _used(self) -> set[str]:
        return {*self.features(), *self._columns, *self._columns.values(), ASSISTANT_MESSAGES}


def _batches(dataset: Dataset, path: str) -> Iterator[Batch]:
    file = LocalFile(Path(path), "parquet", path)
    start = 0
    for table in dataset.with_format("arrow").iter(_ROWS_AT_ONCE):
        yield file, start, dict(zip(table.column_names, table.columns, strict=True)), table.num_rows
        start += table.num_rows
    if not start:
        empty = dataset.features.arrow_schema.empty_table()
        yield file, 0, dict(zip(empty.column_names, empty.columns, strict=True)), 0


def told_nulls(places: list[str]) -> list[str]:
    """A sentence about the places that a `Table` has found nulls in, if any."""
    told = "fields that are null within messages, tools or documents are left out, in"
    kept = "tools and documents that are JSON text keep them"
    return [f"{told} {len(places)} cells (the first: {places[0]}); {kept}"] if places else []


def _has_null(cell: Any, *, own: bool) -> bool:
    """Whether a null stands in the mappings of a list; those of the outermost do not count if they are `own`."""
    if isinstance(cell, list):
        return any(_has_null(item, own=own) for item in cell)
    if not isinstance(cell, Mapping):
        return False
    return any((item is None and not own) or _has_null(item, own=False) for item in cell.values())


def _has_more(prompts: list[Any]) -> bool:
    """Whether any message has fields beside role and content."""
    return any(len(message) > 2 for prompt in prompts for message in prompt)


def _json_messages(prompts: list[Any]) -> Any:
    """Messages with fields of any kind, as the type `List(Json())` stores them."""
    texts = [[json.dumps(message, ensure_ascii=False) for message in prompt] for prompt in prompts]
    flat = pa.array([text for prompt in texts for text in prompt], pa.string())
    ends = pa.array(itertools.accumulate((len(prompt) for prompt in texts), initial=0), pa.int32())
    return pa.ListArray.from_arrays(ends, pa.ExtensionArray.from_storage(pa.json_(), flat))


def _listed(cells: Any) -> list[Any]:
    return cells if isinstance(cells, list) else arrow_cells(cells)
