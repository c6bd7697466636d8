r"""Where the final answer of a completion is. One rule for every reward, so that verdicts agree.

A final answer is marked by a line that begins with "Answer:" or "####" (the mark of GSM8K), or by \boxed{...}.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MARKERS = ("Answer:", "####")
_BOX = "\\boxed{"


def completion_text(completion: str | Sequence[dict[str, Any]]) -> str:
    """Text of a completion: itself, or the content of the last message of a chat; "" where there is none."""
    if isinstance(completion, str):
        return completion
    content = completion[-1].get("content") if completion else None
    return content if isinstance(content, str) else ""


def marked_answer(text: str) -> str | None:
    """What follows the last marker on its own line, stripped; None without a marker line, "" if nothing follows.

    A marker counts only at the beginning of a line (spaces before it are allowed).
    """
    position = marker_end(text)
    return None if position is None else text[position:].split("\n", 1)[0].strip()


def marked_block(text: str) -> str | None:
    """What follows the last marker up to the end of the text, stripped, for answers of several lines; or None."""
    position = marker_end(text)
    return None if position is None else text[position:].strip()


def marker_end(text: str) -> int | None:
    """Index right after the last marker that begins a line; None without one."""
    end = len(text)
    while end >= 0:
        begin = text.rfind("\n", 0, end) + 1
        stripped = text[begin:end].lstrip()
        for marker in MARKERS:
            if stripped.startswith(marker):
                return end - len(stripped) + len(marker)
        end = begin - 1
    return None


def boxed_answer(text: str) -> tuple[int, str] | None:
    r"""Position and content of the last \boxed{...} with balanced braces; None if there is none or it never closes."""
    position = text.rfind(_BOX)
    if position < 0:
        return None
    begin = position + len(_BOX)
    depth = 1
    for index in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return position, text[begin:index].strip()
    return None


def normalise(answer: str) -> str:
    """Answer with outer space removed and each inner run of space made one; nothing else is forgiven."""
    return " ".join(answer.split())
