"""The part of a reference that is compared with an answer, where the reference has its working before it.

A source says so with `answer_after`, such as "####". Without it only the form of GSM8K is known: every reference ends
in its one line "#### <number>". All others stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

GSM8K = "####"
_NUMBER = re.compile(r"[-+]?[$€£]?\d[\d,]*(\.\d+)?(/\d+)?%?")


def after_mark(reference: str, mark: str) -> str:
    """What follows the last mark that begins a line, up to the end of the line; the whole text without one."""
    lines = [line.strip() for line in reference.split("\n") if line.strip().startswith(mark)]
    return lines[-1].removeprefix(mark).strip() if lines else reference


def cut_references(references: Sequence[str], mark: str | None) -> tuple[list[str], str | None]:
    """References, cut where the source or their form asks for it.

    Args:
        references: texts; empty ones stay.
        mark: `answer_after` of the source; None = cut those of GSM8K's form, if all are of it.

    Returns:
        The references, and a sentence that says how many were cut, with an example; None if there is nothing to say.
    """
    filled = [text for text in references if text.strip()]
    if mark is None:
        like = [text for text in filled if GSM8K in text and _is_gsm8k(text)]
        if not like:
            return list(references), None
        if len(like) < len(filled):
            told = f"{len(like)} of {len(filled)} references end in a line '#### <number>', the others do not"
            return list(references), f"{told}; all stay whole. To cut them, set answer_after: '####'"
    wanted = mark or GSM8K
    cut = [after_mark(text, wanted) for text in references]
    changed = [(text, short) for text, short in zip(references, cut, strict=True) if text != short]
    if not changed:
        return cut, f"none of {len(filled)} references has a line that begins with {wanted!r}; they stay whole"
    why = f"answer_after {mark!r}" if mark is not None else "as all end in one line '#### <number>' (GSM8K)"
    example = f"{_shown(changed[0][0])} became {_shown(changed[0][1])}"
    rest = f"; {len(filled) - len(changed)} have no such line and stay whole" if len(changed) < len(filled) else ""
    return cut, f"{len(changed)} of {len(filled)} references are cut, {why}, e.g. {example}{rest}"


def _is_gsm8k(text: str) -> bool:
    lines = [line.strip() for line in text.strip().split("\n")]
    marked = [line for line in lines if line.startswith(GSM8K)]
    return len(marked) == 1 and marked[0] == lines[-1] and bool(_NUMBER.fullmatch(lines[-1][len(GSM8K) :].strip()))


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:25]}...{text[-30:]}")
