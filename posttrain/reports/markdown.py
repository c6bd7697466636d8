"""Markdown that text from outside cannot break: escaping, table cells, tables, numbers in words a reader expects."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

MISSING = "–"

# Everything that starts an inline construct, an HTML tag, an entity or a table cell. Common signs such as + - = . ( )
# mean something only at the start of a line or beside one of these, so they stay readable in the source.
_ACTIVE = re.compile(r"[\\`*_{}\[\]<>#|~$&!@^]")
_LINK = re.compile(r"(?i)(?<=www)\.|(?<=[a-z]):(?=[/\w+-])")
_MARKER = re.compile(r"(?m)^( *)([-+=]|\d+(?=[.)]))")
# Control characters, and the invisible ones that reorder or hide text.
_INVISIBLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


def escape(text: Any) -> str:
    """Text that Markdown shows as it is, on one line: signs become entities, line ends `<br>`, controls their code.

    Safe in a paragraph, a heading and a table cell, whatever the text holds.
    """
    shown = visible(text)
    shown = _ACTIVE.sub(lambda match: f"&#{ord(match[0])};", shown)
    shown = _LINK.sub(lambda match: f"&#{ord(match[0])};", shown)
    shown = _MARKER.sub(lambda match: f"{match[1]}&#{ord(match[2][0])};{match[2][1:]}", shown)
    lines = [
        re.sub(r"^ +| {2,}", lambda match: "&nbsp;" * len(match[0]), line.rstrip(" ")) for line in shown.split("\n")
    ]
    return "<br>".join(lines)


def visible(text: Any) -> str:
    """The text with tabs as spaces, and control and invisible characters as their code, for any form of report."""
    shown = str(text).replace("\r\n", "\n").replace("\t", "    ")
    return _INVISIBLE.sub(lambda match: f"\\u{ord(match[0]):04x}", shown)


def cell(text: Any, *, limit: int = 500) -> str:
    """`escape` of at most `limit` characters; says how many are left out, and shows empty text as such."""
    whole = str(text)
    if not whole.strip():
        return "*(empty)*"
    if len(whole) <= limit:
        return escape(whole)
    return f"{escape(whole[:limit])} *… ({len(whole) - limit} more characters)*"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, first column left-aligned and the others right-aligned; cells must be escaped already."""
    marks = [":---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, marks, *rows])


def percent(value: float | None, stderr: float | None = None) -> str:
    """A fraction in per cent, with its standard error in the same unit: 0.125, 0.029 -> "12.5 ± 2.9 %"."""
    if value is None:
        return MISSING
    return f"{100 * value:.1f} %" if stderr is None else f"{100 * value:.1f} ± {100 * stderr:.1f} %"


def points(value: float | None, stderr: float | None = None) -> str:
    """A difference of fractions in percentage points, signed: 0.3, 0.041 -> "+30.0 ± 4.1"."""
    if value is None:
        return MISSING
    return f"{100 * value:+.1f}" if stderr is None else f"{100 * value:+.1f} ± {100 * stderr:.1f}"


def number(value: float | None) -> str:
    """A count with thin grouping, or a number with up to two decimals."""
    if value is None:
        return MISSING
    if float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.2f}"


def duration(seconds: float | None) -> str:
    """Seconds as "42 s", "3 min 20 s" or "2 h 05 min"."""
    if seconds is None:
        return MISSING
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
