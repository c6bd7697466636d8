"""Rows of several sources that are read while training goes on and never held together: one stream for each group.

Row n of a source is the n-th of its files, in the order in which they are stored; a source that is through begins
again. Which row is drawn when therefore follows from numbers alone, as it does for rows in memory: the same rows for
every number of processes, and for a run that was stopped. Where a stream stands is kept as well, but only so that a
continued run finds its place without reading everything before it.

What cannot be exact is refused: a random order within a stream (it would need the whole stream or a buffer whose rows
a stop loses), parts of a stream by fraction, and groups by a column (a row's group is not known before it is read).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from pyarrow import ArrowException, array

from posttrain.data.files import PLACE, UNREADABLE, StoredRows, local_files, read_stream, unreadable
from posttrain.data.mixture import SOURCE_COLUMN, field_of
from posttrain.data.sources import ANSWERS, COLUMNS, RowMaker
from posttrain.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

_logger = logging.getLogger(__name__)
# A row's number tells source and place: source * 2**40 + place.
_PLACES = 1 << 40
# Rows between two marks of where a stream stands, and how many marks are kept: the loader reads ahead of training.
_MARK_EVERY, _MARKS = 1000, 8
_HEAD = 200
# Fields of the trainer that streams do not go with, and why.
NOT_WITH_STREAMS = {
    "packing": "rows are packed before training, and those of a stream are not there then",
    "dataloader_num_workers": "a stream is read by the process that trains, which knows where it stands",
}


class RowStream:
    """The rows of one source, by number, read from the front; cheap for numbers that grow.

    Args:
        name: of the source.
        source: mapping or object with `path`; further fields as in `load_source`, of those of a file or Hub data set.
        system_prompt, texts: as in `load_source`.

    Raises:
        DataError: no such file or data set, columns that are not there, or no row at all.
    """

    def __init__(self, name: str, source: Any, *, system_prompt: str | None = None, texts: Sequence[str] = ()):
        self.name, self._source = name, source
        self.limit: int | None = field_of(source, "limit")
        self._length: int | None = None  # known once the end was reached
        self._marks: list[tuple[int, dict[str, Any]]] = []
        self._iterator: Iterator[Any] | None = None
        self._at = 0  # rows that the iterator has given in this pass
        self._from_front = self._open()  # iterated anew after every pass: opening may ask the Hub
        first = next(self._told(iter(self._from_front), 0), None)
        if first is None:
            raise DataError("the stream has no row", where=self._where(), fix="Check split, limit and file")
        self._maker = RowMaker.of(source, first, system_prompt=system_prompt, texts=texts)
        self.columns = list(self._maker.row(first, 0))

    def row(self, number: int) -> dict[str, Any]:
        """Row `number` from 0, counted through: after the last row comes the first.

        Raises:
            DataError: the row cannot be read or used; names it.
        """
        while True:
            place = number if self._length is None else number % self._length
            if self._iterator is None or place < self._at:
                self._seek(place)
            raw = self._next()
            while raw is not None and self._at <= place:
                raw = self._next()
            if raw is not None:
                return self._maker.row(raw, place)
            if self._length is not None:
                found = f"{self._at} rows, before {self._length}"
                raise DataError("the stream has become shorter", where=self._where(), got=found)
            if not self._at:
                raise DataError("the stream has no row any more", where=self._where())
            self._length, self._iterator = self._at, None
            if os.environ.get("RANK", "0") == "0":
                _logger.warning("%s: all %d rows were read; the stream begins again", self._where(), self._length)

    def head(self, count: int) -> list[dict[str, Any]]:
        """The first rows, or all if there are fewer; the place where the stream stands stays."""
        rows = self._read()
        return [self._maker.row(raw, place) for place, raw in zip(range(count), rows, strict=False)]

    def every(self) -> Iterator[tuple[int, dict[str, Any] | DataError]]:
        """(place, row) of the whole stream once, or what is wrong with a row; the place where it stands stays."""
        for place, raw in enumerate(self._read()):
            try:
                row: dict[str, Any] | DataError = self._maker.row(raw, place)
            except DataError as error:
                row = error
            yield place, row

    # ---- where it stands ----

    def state(self) -> dict[str, Any]:
        """Marks to continue from, as JSON."""
        return {"length": self._length, "marks": [[place, mark] for place, mark in self._marks]}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned."""
        self._length = state["length"]
        self._marks = [(int(place), mark) for place, mark in state["marks"]]
        if isinstance(self._from_front, StoredRows):  # marks of another reader, of an earlier version, say nothing
            self._marks = [(place, mark) for place, mark in self._marks if mark.keys() == PLACE.keys()]
        self._iterator = None

    def _seek(self, place: int) -> None:
        """Open the stream at the last mark before a place, or at its beginning."""
        self._at, mark = max(
            ((at, mark) for at, mark in self._marks if at <= place), default=(0, None), key=itemgetter(0)
        )
        self._rows = self._from_front
        if mark is not None:
            self._rows = self._open()
            self._rows.load_state_dict(mark)
        self._iterator = self._told(iter(self._rows), self._at)

    def _next(self) -> Any:
        """The next raw row; None at the end."""
        assert self._iterator is not None
        if self._at == self.limit:
            return None
        raw = next(self._iterator, None)
        if raw is not None:
            self._at += 1
            if self._at % _MARK_EVERY == 0:
                self._marks = [*self._marks[1 - _MARKS :], (self._at, self._rows.state_dict())]
        return raw

    # ---- the files ----

    def _open(self) -> Any:
        return read_stream(
            str(field_of(self._source, "path")),
            name=field_of(self._source, "configuration"),
            split=field_of(self._source, "split") or "train",
            revision=field_of(self._source, "revision"),
        )

    def _read(self) -> Iterator[Any]:
        """Raw rows from the first on, at most `limit`."""
        rows = self._told(iter(self._open()), 0)
        return rows if self.limit is None else (raw for _, raw in zip(range(self.limit), rows, strict=False))

    def _told(self, rows: Iterator[Any], at: int) -> Iterator[Any]:
        """The same rows; what cannot be read is told with its place."""
        while True:
            try:
                raw = next(rows)
            except StopIteration:
                return
            except UNREADABLE as error:
                raise unreadable(error, f"{self._where()}, after row {at}") from error
            at += 1
            yield raw

    def _where(self) -> str:
        return f"mixture source {self.name!r} ({field_of(self._source, 'path')})"

    def facts(self) -> dict[str, Any]:
        """What tells another stream from this one: its fields, first rows, and the hashes of its files."""
        fields = ("path", "configuration", "split", "revision", "columns", "limit", "format", "answer_after")
        found = {name: value for name in fields if (value := field_of(self._source, name)) is not None}
        if files := local_files(str(found["path"])):
            # The names alone: where files lie does not say what their rows are.
            found |= {"path": Path(str(found["path"])).expanduser().name, "files": files}
        return {**found, "head": self.head(_HEAD)}


class RowStreams:
    """Rows of several streams by one number each, which tells the stream and the place in it.

    Attributes:
        names: of the streams, which are the groups, in order.
        max_prompt_length: most tokens of a prompt; None = any. Whoever encodes the rows keeps to it.
    """

    def __init__(self, streams: Sequence[RowStream]):
        self.streams = sorted(streams, key=lambda stream: stream.name)
        self.max_prompt_length: int | None = None
        self._fingerprint: dict[str, Any] | None = None

    @property
    def names(self) -> list[str]:
        return [stream.name for stream in self.streams]

    @property
    def column_names(self) -> list[str]:
        """Columns of the rows, those that only some streams have included."""
        return [*dict.fromkeys(name for stream in self.streams for name in stream.columns), SOURCE_COLUMN]

    def order(self, names: Sequence[str]) -> None:
        """Number the streams in another order.

        Raises:
            DataError: these are not the names.
        """
        if sorted(names) != sorted(self.names):
            raise DataError(
                "these are not the sources of the mixture",
                where="method.groups",
                got=", ".join(names),
                allowed=", ".join(self.names),
            )
        self.streams.sort(key=lambda stream: list(names).index(stream.name))

    @staticmethod
    def number(group: int, place: int) -> int:
        """Number of a row."""
        return group * _PLACES + place

    @staticmethod
    def group_of(number: int) -> int:
        """Stream of a row."""
        return number // _PLACES

    def where(self, number: int) -> str:
        """Name of a row for messages."""
        group, place = divmod(number, _PLACES)
        return f"mixture source {self.names[group]!r}, row {place}"

    def __getitem__(self, number: int) -> dict[str, Any]:
        group, place = divmod(int(number), _PLACES)
        return {**self.streams[group].row(place), SOURCE_COLUMN: self.names[group]}

    def head(self, count: int = _HEAD) -> Dataset:
        """The first rows of each stream, in memory.

        Raises:
            DataError: cells of one of our columns that do not go together.
        """
        rows = [{**row, SOURCE_COLUMN: stream.name} for stream in self.streams for row in stream.head(count)]
        found = {}
        for name in dict.fromkeys(name for row in rows for name in row):
            cells = [row.get(name) for row in rows]
            try:
                array(cells)
            except (ArrowException, TypeError, ValueError) as error:
                if name not in (*COLUMNS, *ANSWERS):
                    continue  # a further column that no table can hold, and that nothing here reads
                raise DataError(
                    f"the cells of column {name!r} do not go together: {' '.join(str(error).split())[:200]}",
                    where="data.train.mixture",
                    got=", ".join(self.names),
                    fix="Give all sources one format (chat or text), and convert the column where it differs",
                ) from None
            found[name] = cells
        return Dataset.from_dict(found)

    def fingerprint(self) -> dict[str, Any]:
        """For `run.json`: columns, and SHA-256 of every stream's facts and first rows; `rows` is None."""
        if self._fingerprint is None:
            facts = {stream.name: stream.facts() for stream in self.streams}
            digest = hashlib.sha256(json.dumps(facts, sort_keys=True, ensure_ascii=False, default=_kind).encode())
            self._fingerprint = {"rows": None, "columns": sorted(self.column_names), "sha256": digest.hexdigest()}
        return self._fingerprint

    def state(self) -> dict[str, Any]:
        """Where every stream stands, as JSON; may differ between ranks."""
        return {stream.name: stream.state() for stream in self.streams}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned."""
        for stream in self.streams:
            stream.load(state[stream.name])


def load_streams(block: Any, *, system_prompt: str | None = None, texts: Sequence[str] = ()) -> RowStreams:
    """The streams that a recipe's `data.train` with `streaming: true` describes.

    Args:
        block: mapping or object with `mixture`, entries with `name`, `path` and what else `RowStream` reads.
        system_prompt, texts: as in `load_source`.
    """
    return RowStreams(
        [
            RowStream(str(field_of(entry, "name")), entry, system_prompt=system_prompt, texts=texts)
            for entry in field_of(block, "mixture")
        ]
    )


def _kind(value: Any) -> str:
    """What stands for a cell that is no JSON, such as an image: its own text may hold an address."""
    return type(value).__name__
