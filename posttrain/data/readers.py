"""The rows of one local file, as they stand in it: JSON, JSON Lines, CSV and parquet, plain or packed.

No type is inferred: a cell of a CSV is text, a JSON number keeps its literal (`posttrain.data.cells`), a text that
looks like a date stays one. What cannot be read is told with file, row and column.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import re
import sys
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from posttrain.data.cells import arrow_cells
from posttrain.data.json_values import DECODER, SURROGATE, Malformed, decoded
from posttrain.errors import DataError

# A row, and where the next one begins: bytes of the unpacked file, characters of a JSON array, rows of parquet.
Found = tuple[dict[str, Any], int]
_UNPACKERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_ARROW_CODECS = {b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4"}
_OTHER_ENCODINGS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
_SPACE = re.compile(r"\s*")
_PARQUET_ROWS = 1000
READ_FAULTS = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError)


@dataclass(frozen=True)
class LocalFile:
    """A file on this machine, or a member of an archive.

    Attributes:
        kind: "json", "csv" or "parquet".
        label: what messages call it.
        member: name inside a zip archive.
        separator: between the cells of a CSV.
        field: of a JSON file that holds one mapping, the key under which the rows are.
    """

    path: Path
    kind: str
    label: str
    member: str | None = None
    separator: str = ","
    field: str | None = None

    def rows(self, *, offset: int = 0, row: int = 0) -> Iterator[Found]:
        """(row, place of the next one) from row number `row` on, which begins at `offset`.

        Raises:
            DataError: the file, or a row of it, cannot be read.
        """
        if self.kind == "parquet":
            yield from self._parquet(offset)
            return
        try:
            with self.open() as handle:
                for found in (self._csv if self.kind == "csv" else self._json)(handle, offset, row):
                    yield found
                    row += 1
        except READ_FAULTS as error:
            raise self.fault(f"cannot be read: {reason(error)}", row) from error

    def fault(self, what: str, row: int | None = None, *, line: int | None = None, **facts: Any) -> DataError:
        """The error that names file and row."""
        place = self.label + ("" if row is None else f", row {row}") + ("" if line is None else f" (line {line})")
        return DataError(what, where=place, **facts)

    # ---- bytes ----

    def open(self) -> IO[bytes]:
        """The unpacked bytes."""
        if self.member is not None:
            return io.BufferedReader(zipfile.ZipFile(self.path).open(self.member))  # type: ignore[type-var]
        with self.path.open("rb") as handle:
            head = handle.read(6)
        for magic, unpack in _UNPACKERS.items():
            if head.startswith(magic):
                return unpack(self.path)  # type: ignore[no-any-return]
        for magic, codec in _ARROW_CODECS.items():
            if head.startswith(magic):
                with pa.input_stream(str(self.path), compression=codec) as stream:
                    return io.BufferedReader(io.BytesIO(stream.read()))  # type: ignore[arg-type]
        return self.path.open("rb")

    def _begin(self, handle: Any, offset: int) -> int:
        """Go to a place; at the beginning over a byte order mark. Where it is then."""
        if offset:
            handle.seek(offset)
            return offset
        head = handle.peek(4)[:4]
        if head.startswith(_OTHER_ENCODINGS) or b"\0" in head:
            raise self.fault("the file is not UTF-8 but UTF-16, UTF-32 or no text", fix="Save it as UTF-8")
        if head.startswith(b"PAR1"):
            raise self.fault("this is a parquet file", fix="Give its name the ending .parquet")
        if head.startswith(codecs.BOM_UTF8):
            handle.read(len(codecs.BOM_UTF8))
            return len(codecs.BOM_UTF8)
        return 0

    # ---- JSON ----

    def _json(self, handle: Any, offset: int, row: int) -> Iterator[Found]:
        begin = self._begin(handle, 0)
        first = handle.read(1)
        while first.isspace():
            first = handle.read(1)
        handle.seek(begin)
        if first == b"[" or self.field is not None:
            yield from self._json_text(handle, offset, row)
            return
        if offset:
            handle.seek(offset)
        offset = max(offset, begin)
        line = 0
        is_first = from_front = row == 0
        for raw in handle:
            line += 1
            offset += len(raw)
            if not raw.strip():
                continue
            try:
                value = self._value(raw, row)
            except Malformed as error:
                if is_first and _goes_on(raw):
                    handle.seek(begin)
                    yield from self._json_text(handle, 0, 0)
                    return
                raise self.fault(error.what, row, line=line if from_front else None, fix=error.fix) from None
            is_first = False
            yield self._mapping(value, row), offset
            row += 1

    def _value(self, raw: bytes, row: int) -> Any:
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._undecodable(raw, error, row) from None
        value = decoded(text)
        if "\\u" in text and SURROGATE.search(text):
            self._refuse_surrogates(value, row)
        return value

    def _json_text(self, handle: Any, offset: int, row: int) -> Iterator[Found]:
        """Rows of one JSON text that spreads over lines: an array, or values one after the other."""
        raw = handle.read()
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            raise self.fault(f"byte {raw[error.start]:#04x} is not UTF-8", line=line, fix="Save it as UTF-8") from None
        if self.field is not None:
            value = self._parsed(text, 0, 0)[0]
            rows = value.get(self.field) if isinstance(value, dict) else None
            if not isinstance(rows, list):
                raise self.fault("the file has no list of rows under this key", got=self.field)
            if SURROGATE.search(text):
                for number, item in enumerate(rows):
                    self._refuse_surrogates(item, number)
            yield from ((self._mapping(item, n), n + 1) for n, item in enumerate(rows) if n >= row)
            return
        at = _SPACE.match(text).end()  # type: ignore[union-attr]
        is_array = text.startswith("[", at)
        at = offset or (at + 1 if is_array else at)
        has_surrogates = SURROGATE.search(text) is not None
        while True:
            at = _SPACE.match(text, at).end()  # type: ignore[union-attr]
            if is_array and row and text.startswith(",", at):
                at = _SPACE.match(text, at + 1).end()  # type: ignore[union-attr]
            elif is_array and text.startswith("]", at):
                if text[at + 1 :].strip():
                    raise self._at("something follows the list of rows", row, text, at + 1)
                return
            elif is_array and row:
                raise self._at("not valid JSON: a comma or ] is missing", row, text, at)
            if not is_array and at == len(text):
                return
            value, at = self._parsed(text, at, row)
            if has_surrogates:
                self._refuse_surrogates(value, row)
            yield self._mapping(value, row), at
            row += 1

    def _parsed(self, text: str, at: int, row: int) -> tuple[Any, int]:
        try:
            return DECODER.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise self._at(f"not valid JSON: {error.msg.removesuffix(' at')}", row, text, error.pos) from None
        except (Malformed, RecursionError) as error:
            told = error if isinstance(error, Malformed) else Malformed("nested too deeply")
            raise self._at(told.what, row, text, at, fix=told.fix) from None

    def _at(self, what: str, row: int, text: str, place: int, **facts: Any) -> DataError:
        return self.fault(what, row, line=text.count("\n", 0, place) + 1, **facts)

    def _mapping(self, value: Any, row: int) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        if isinstance(value, str):
            return {"text": value}
        raise self.fault("a row is a mapping of columns to cells", row, got=value, fix="Write an object, {...}")

    def _refuse_surrogates(self, value: Any, row: int) -> None:
        """Half of a character, which no UTF-8 text can hold."""
        cells = value.items() if isinstance(value, dict) else [("text", value)]
        for name, cell in cells:
            try:
                json.dumps([name, cell], ensure_ascii=False).encode("utf-8")
            except UnicodeEncodeError:
                raise self.fault(
                    f"column {name!r} holds half of a character (a lone surrogate)",
                    row,
                    got=ascii(cell)[:80],
                    fix="Repair the text where it was cut",
                ) from None

    def _undecodable(self, raw: bytes, error: UnicodeDecodeError, row: int) -> DataError:
        """Bytes of another encoding, with the column that holds them."""
        column = None
        try:
            value = json.loads(raw.decode("utf-8", errors="surrogateescape"))
        except ValueError:
            value = {}
        for name, cell in value.items() if isinstance(value, dict) else ():
            try:
                json.dumps([name, cell], ensure_ascii=False).encode("utf-8")
            except UnicodeEncodeError:
                column = name
                break
        return self._encoding_fault(raw[error.start], row, column)

    def _encoding_fault(self, byte: int, row: int, column: str | None) -> DataError:
        place = "" if column is None else f" in column {column!r}"
        fix = "Save the file as UTF-8; it may be Latin-1 or Windows-1252"
        return self.fault(f"byte {byte:#04x}{place} is not UTF-8", row, fix=fix)

    # ---- CSV ----

    def _csv(self, handle: Any, offset: int, row: int) -> Iterator[Found]:
        csv.field_size_limit(sys.maxsize)
        lines = _Lines(handle, self._begin(handle, 0))
        reader = csv.reader(lines, strict=True, delimiter=self.separator)
        names: list[str] = []
        at: int | None = None  # before the names were read
        try:
            for cells in reader:
                if not cells:
                    continue
                if at is None:
                    names, at = self._names(cells), row
                    if offset:
                        handle.seek(offset)
                        lines.at = offset
                    continue
                if len(cells) != len(names):
                    raise self.fault(
                        f"the row has {len(cells)} cells and the first line names {len(names)} columns",
                        at,
                        got=self.separator.join(cells)[:80],
                        fix=separator_hint(names) or 'Write cells that hold commas or line ends in quotes ("...")',
                    )
                yield dict(zip(names, cells, strict=True)), lines.at
                at += 1
        except UnicodeDecodeError as error:
            raise self._latin(error, names, at) from None
        except csv.Error as error:
            told = str(error)
            what, fix = f"not valid CSV: {told}", "Quote cells that hold quotes, and double the quotes in them"
            if "unexpected end of data" in told:
                what, fix = "a quoted cell is not closed", "Close it; a quote inside a quoted cell is doubled"
            elif "new-line character" in told:
                what, fix = "lines end with CR alone", "Save it with line ends LF or CRLF"
            raise self.fault(what, at, fix=fix) from None

    def _names(self, cells: list[str]) -> list[str]:
        names = [name if name else f"Unnamed: {place}" for place, name in enumerate(cells)]
        for name in names:
            if names.count(name) > 1:
                raise self.fault("two columns have this name", got=name, fix="Rename one")
        return names

    def _latin(self, error: UnicodeDecodeError, names: list[str], at: int | None) -> DataError:
        column = None
        line = io.StringIO(error.object.decode("latin-1"), newline="")
        try:
            cells = next(csv.reader(line, delimiter=self.separator), [])
        except csv.Error:
            cells = []
        for name, cell in zip(names, cells, strict=False):
            try:
                cell.encode("latin-1").decode("utf-8")
            except UnicodeDecodeError:
                column = name
                break
        if at is None:
            fix = "Save the file as UTF-8; it may be Latin-1 or Windows-1252"
            return self.fault(f"byte {error.object[error.start]:#04x} in the first line is not UTF-8", fix=fix)
        return self._encoding_fault(error.object[error.start], at, column)

    # ---- parquet ----

    def batches(self) -> Iterator[Any]:
        """Record batches of a parquet file.

        Raises:
            DataError: it cannot be read.
        """
        try:
            with pq.ParquetFile(io.BytesIO(self.open().read()) if self.member else self.path) as file:
                names = file.schema_arrow.names
                for name in names:
                    if names.count(name) > 1:
                        raise self.fault("two columns have this name", got=name, fix="Rename one")
                if not file.metadata.num_rows:
                    yield pa.RecordBatch.from_pylist([], schema=file.schema_arrow)
                yield from file.iter_batches(batch_size=_PARQUET_ROWS)
        except (*READ_FAULTS, pa.ArrowException) as error:
            raise self.fault(f"cannot be read: {reason(error)}") from error

    def _parquet(self, offset: int) -> Iterator[Found]:
        at = 0
        for batch in self.batches():
            if at + batch.num_rows <= offset:
                at += batch.num_rows
                continue
            columns = [arrow_cells(column) for column in batch.columns]
            for cells in zip(*columns, strict=True):
                at += 1
                if at > offset:
                    yield dict(zip(batch.schema.names, cells, strict=True)), at


class _Lines:
    """Decoded lines of a file; `at` is the place after the last one given."""

    def __init__(self, handle: Any, at: int):
        self.handle, self.at = handle, at

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        raw = self.handle.readline()
        if not raw:
            raise StopIteration
        self.at += len(raw)
        return raw.decode("utf-8")  # type: ignore[no-any-return]


def separator_hint(names: list[str]) -> str | None:
    """What to do where the only name of a first line looks like several between other separators."""
    found = [word for sign, word in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")) if sign in names[0]]
    return f"The cells seem to stand between {found[0]}: write commas" if found and len(names) == 1 else None


def _goes_on(raw: bytes) -> bool:
    """Whether the first line may begin a value that goes on in the next ones."""
    return raw.strip().endswith((b"{", b"[", b",", b":")) or raw.strip() == b"{"


def reason(error: BaseException) -> str:
    """Why something could not be read, in one line."""
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
