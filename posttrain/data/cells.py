"""A cell of a file as Python has it, and as text.

JSON numbers keep the literal that stands in the file. Arrow's are written out: integers and decimals exactly, floats
by the shortest text that gives the same number in their own width, dates and times in ISO form, truth values as true
and false.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import types


class WrittenFloat(float):
    """A number whose literal is not what Python would write: 1.10, 1e3, 1E400 (which is infinite)."""

    text: str

    def __new__(cls, text: str, value: float | None = None) -> WrittenFloat:
        made = super().__new__(cls, text if value is None else value)
        made.text = text
        return made


class WrittenInt(int):
    """The same of a whole number: -0."""

    text: str

    def __new__(cls, text: str) -> WrittenInt:
        made = super().__new__(cls, text)
        made.text = text
        return made


def json_float(text: str) -> float:
    """The number of a JSON literal with point or exponent."""
    value = float(text)
    return value if repr(value) == text else WrittenFloat(text)


def json_int(text: str) -> int | float:
    """The number of a JSON literal without either; one of more digits than Python converts counts as infinite."""
    try:
        value = int(text)
    except ValueError:
        return WrittenFloat(text, math.inf)
    return WrittenInt(text) if text == "-0" else value


def written(cell: Any) -> str | None:
    """The text of a scalar cell; None for one that has none: lists, mappings, bytes, NaN, nothing."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, WrittenFloat | WrittenInt):
        return cell.text
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, int):
        return str(cell)
    if isinstance(cell, float):
        return repr(float(cell)) if math.isfinite(cell) else None
    if isinstance(cell, Decimal):
        return format(cell, "f") if cell.is_finite() else None
    if isinstance(cell, datetime | date | time):
        return cell.isoformat()
    return None


def arrow_cells(array: Any) -> list[Any]:
    """Cells of an Arrow array, floats of less than 64 bits with the text of their own width."""
    if isinstance(array, pa.ChunkedArray):
        return [cell for chunk in array.chunks for cell in arrow_cells(chunk)]
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    convert = _narrow(array.type)
    cells = array.to_pylist()
    return cells if convert is None else [convert(cell) for cell in cells]


def _narrow(kind: Any) -> Callable[[Any], Any] | None:
    """What gives the cells of a type their text; None where they need nothing."""
    if types.is_float16(kind) or types.is_float32(kind):
        width = np.float16 if types.is_float16(kind) else np.float32
        return lambda cell: cell if cell is None or not math.isfinite(cell) else WrittenFloat(str(width(cell)), cell)
    if types.is_struct(kind):
        fields = {field.name: convert for field in kind if (convert := _narrow(field.type)) is not None}
        if not fields:
            return None
        return lambda cell: (
            None
            if cell is None
            else {name: fields[name](value) if name in fields else value for name, value in cell.items()}
        )
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        convert = _narrow(kind.value_type)
        if convert is None:
            return None
        return lambda cell: None if cell is None else [convert(item) for item in cell]
    return None
