"""JSON values as they stand: literals of numbers are kept, keys that come twice and NaN are refused."""

from __future__ import annotations

import json
import re
from typing import Any

from posttrain.data.cells import json_float, json_int

# What may be half of a character; two such halves in the right order are one.
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class Malformed(ValueError):
    """A JSON value that is refused; `what` and `fix` are those of the error."""

    def __init__(self, what: str, fix: str | None = None):
        super().__init__(what)
        self.what, self.fix = what, fix


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Malformed(f"the key {twice!r} is written twice", "Keep one of them")
    return found


def _constant(text: str) -> Any:
    raise Malformed(f"{text} is no JSON number", "Write null, a number, or text in quotes")


DECODER = json.JSONDecoder(
    parse_float=json_float, parse_int=json_int, parse_constant=_constant, object_pairs_hook=_pairs, strict=False
)


def decoded(text: str) -> Any:
    """The one value of a text.

    Raises:
        Malformed: it is none, or is refused.
    """
    text = text.strip()
    try:
        value, end = DECODER.raw_decode(text)
        if end != len(text):
            raise Malformed(f"not valid JSON: something follows the row at character {end + 1}")
        return value
    except json.JSONDecodeError as error:
        raise Malformed(f"not valid JSON: {error.msg.removesuffix(' at')} at character {error.colno}") from None
    except RecursionError:
        raise Malformed("nested too deeply") from None
