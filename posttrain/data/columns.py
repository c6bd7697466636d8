"""Columns of a table from cells as they stand in files: further ones get the type that loses nothing."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from posttrain.data.cells import WrittenFloat
from posttrain.errors import DataError

_INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?(e[+-][0-9]+)?")
_TRUTHS = ({"True", "False"}, {"true", "false"})


class FurtherColumn:
    """A column that nothing here reads as text, gathered batch by batch.

    Numbers, truth values, lists and mappings of JSON keep their type; a column with cells of several types is kept as
    JSON. Cells of a CSV become numbers or truth values if every one of them can be written back from it as it stands
    (so 007 and 1.10 stay text), and nothing if they are empty. Arrow's types stay.
    """

    def __init__(self, name: str, kind: str):
        self.name, self.kind = name, kind
        self._arrays: list[Any] = []
        self._types: dict[Any, str] = {}  # of Arrow, and where each was first met
        self._is_mixed = False

    def add(self, cells: Any, count: int, where: Callable[[int], str]) -> None:
        """Cells of the next rows.

        Args:
            cells: a list, an Arrow array, or None where the rows have no such column.
            count: of rows. where: place of a row for messages.

        Raises:
            DataError: a number that no column can hold.
        """
        if cells is None:
            self._arrays.append(pa.nulls(count))
        elif not isinstance(cells, list):
            self._types.setdefault(cells.type, where(0))
            self._arrays.append(cells)
        elif self.kind == "csv":
            self._arrays.append(pa.array(cells, pa.string()))
        else:
            array = self._typed(cells, where)
            self._arrays.append(array)

    def _typed(self, cells: list[Any], where: Callable[[int], str]) -> Any:
        for place, cell in enumerate(cells):
            if isinstance(cell, WrittenFloat) and math.isinf(cell):
                self._refuse(cell.text, where(place))
        if not self._is_mixed:
            try:
                return pa.array(cells)
            except (pa.ArrowException, TypeError, ValueError, OverflowError):
                self._be_mixed()
        for place, cell in enumerate(cells):
            if isinstance(cell, int) and not -(1 << 63) <= cell < 1 << 64:
                self._refuse(str(cell), where(place))
        return _as_json(cells)

    def _refuse(self, text: str, where: str) -> None:
        raise DataError(
            "the number is too large for a column of numbers",
            where=f"{where}, column {self.name!r}",
            got=text,
            fix="Write it as text, in quotes, or leave the column out",
        )

    def _be_mixed(self) -> None:
        self._is_mixed = True
        self._arrays = [_as_json(array.to_pylist()) for array in self._arrays]

    def array(self) -> Any:
        """All cells as one Arrow array."""
        if not self._arrays:
            return pa.chunked_array([], pa.string())
        try:
            table = pa.concat_tables([pa.table({"x": array}) for array in self._arrays], promote_options="permissive")
        except pa.ArrowException as error:
            if self.kind == "parquet":
                kinds = " and ".join(f"{kind} ({place})" for kind, place in list(self._types.items())[:2])
                what = f"column {self.name!r} has different types: {kinds}"
                raise DataError(what, fix="Convert the column where it differs") from error
            self._be_mixed()
            table = pa.concat_tables([pa.table({"x": array}) for array in self._arrays])
        found = table["x"]
        if pa.types.is_null(found.type):
            return found.cast(pa.string()) if self.kind == "csv" else found
        return _csv_type(found) if self.kind == "csv" else found


def _as_json(cells: list[Any]) -> Any:
    texts = [None if cell is None else json.dumps(cell, ensure_ascii=False) for cell in cells]
    return pa.ExtensionArray.from_storage(pa.json_(), pa.array(texts, pa.string()))


def _csv_type(texts: Any) -> Any:
    """Texts of a CSV as numbers or truth values, if nothing is lost by it; empty ones as nothing."""
    filled = pc.if_else(pc.equal(texts, ""), None, texts)
    if filled.null_count == len(filled):
        return filled
    if pc.all(pc.match_substring_regex(filled, _INTEGER)).as_py():
        return filled.cast(pa.int64())
    first = filled.drop_null()[0].as_py()
    for truths in _TRUTHS:
        if first in truths and set(pc.unique(filled.drop_null()).to_pylist()) <= truths:
            return pc.equal(filled, max(truths))
    cells = filled.to_pylist()
    if all(cell is None or _is_plain_number(cell) for cell in cells):
        return pa.chunked_array([pa.array([None if cell is None else float(cell) for cell in cells], pa.float64())])
    return filled


def _is_plain_number(text: str) -> bool:
    """Whether the text is what Python writes for the number, with or without ".0"."""
    if _NUMBER.fullmatch(text) is None:
        return False
    value = float(text)
    return repr(value) in (text, f"{text}.0") and math.isfinite(value)
