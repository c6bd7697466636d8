r"""Where the final answer of a completion is. One rule for every reward, so that verdicts agree.

A final answer is marked by a line that begins with one of `MARKERS` (#### is that of GSM8K), or by \boxed{...}. Case
and Markdown around the word do not matter, nor do "final" or "the ... is": "**Answer:** 42", "### Final answer: 42".
"""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MARKERS = ("Answer:", "####")
_BOX = re.compile(r"\\boxed\s{0,4}\{")
_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u200e\u200f"))
_MARK = re.compile(
    r"^[ \t>]{0,16}(?:"
    # A word with a colon, or a heading or bold line that is nothing but the word.
    r"(?P<open>(?:\#{1,6}[ \t]{0,4})?[*_]{0,3})(?P<word>(?:final[ \t])?answer|the[ \t](?:final[ \t])?answer[ \t]is)"
    r"(?:(?P<inner>[*_]{0,3})[ \t]{0,4}[:：](?P<close>[*_]{0,3})|(?P<alone>[*_]{0,3}[ \t]{0,4})$)"
    r"|(?P<hash>\#\#\#\#)(?!\#))",
    re.IGNORECASE | re.MULTILINE,
)


@dataclass(frozen=True)
class Mark:
    """A line mark: where what follows begins, and whether it is "####"."""

    end: int
    is_hash: bool
    emphasis: str  # opened before the word and not closed behind it


def completion_text(completion: str | Sequence[dict[str, Any]]) -> str:
    """Text of a completion: itself, or the content of the last message of a chat; "" where there is none."""
    if isinstance(completion, str):
        return completion
    content = completion[-1].get("content") if completion else None
    return content if isinstance(content, str) else ""


_DISPLAY = re.compile(r"(\$\$|\\\[)[ \t]*\n(.{1,2000}?)\n[ \t]*(?:\$\$|\\\])", re.DOTALL)
_CONTROL = re.compile(r"(?:\s*(?:<\|[^|<>\n]{1,40}\|>|</s>|<eos>|<end_of_turn>))+\s*$")


def marked_answer(text: str) -> str | None:
    """What follows the last marker on its own line or, if that is blank, on the next line that is not; stripped.

    None without a marker line, "" if nothing follows. A marker counts only at the beginning of a line (spaces, quote
    marks and Markdown before it are allowed). Emphasis around the whole answer is taken away, and control tokens
    behind it. Mathematics between $$ or \\[ \\] on lines of their own is one answer.
    """
    block = marked_block(text)
    if block is None:
        return None
    display = _DISPLAY.match(block)
    line = " ".join(display[2].split()) if display else block.split("\n", 1)[0]
    return _without_emphasis(_CONTROL.sub("", line).strip())


def marked_block(text: str) -> str | None:
    """What follows the last marker up to the end of the text, stripped, for answers of several lines; or None."""
    mark = last_mark(text)
    if mark is None:
        return None
    block = text[mark.end :].strip()
    if mark.emphasis and block.split("\n", 1)[0].rstrip().endswith(mark.emphasis):
        first, *rest = block.split("\n", 1)
        block = "\n".join([first.rstrip().removesuffix(mark.emphasis).rstrip(), *rest])
    return block


def last_mark(text: str) -> Mark | None:
    """The last marker that begins a line; None without one."""
    found = None
    for match in _MARK.finditer(text):
        # Without a colon the word must be a heading or emphasised: a line "answer" of prose is none.
        if match["alone"] is None or match["open"]:
            found = match
    if found is None:
        return None
    emphasis = (found["open"] or "").lstrip("# \t")
    closed = (found["inner"] or "") + (found["close"] or "") + (found["alone"] or "").strip()
    return Mark(found.end(), found["hash"] is not None, "" if emphasis == closed else emphasis)


def _without_emphasis(line: str) -> str:
    for mark in ("**", "__"):
        if line.startswith(mark) and line.endswith(mark) and len(line) > 2 * len(mark):
            inner = line[len(mark) : -len(mark)]
            return inner.strip() if mark not in inner else line
    return line


def boxed_answer(text: str) -> tuple[int, str] | None:
    r"""Position and content of the last \boxed{...} with balanced braces; None if there is none or it never closes."""
    box = last_box(text, _BOX)
    return None if box is None else (box[0], box[1].strip())


def last_box(text: str, opening: re.Pattern[str]) -> tuple[int, str] | None:
    """Position of the last match of `opening`, which ends in a brace, and what follows it up to the brace that closes
    it, as it stands; None if there is none or it never closes.
    """
    openings = deque(opening.finditer(text), maxlen=1)
    if not openings:
        return None
    begin, depth = openings[0].end(), 1
    for index in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return openings[0].start(), text[begin:index]
    return None


def normalise(answer: str) -> str:
    """Answer with outer space removed, each inner run of space made one, characters composed (NFC) and invisible ones
    (zero width, byte order marks) left out; nothing else is forgiven, case included.
    """
    return " ".join(unicodedata.normalize("NFC", answer.translate(_INVISIBLE)).split())
