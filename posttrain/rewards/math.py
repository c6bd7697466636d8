r"""Mathematical equality with the reference answer.

Text is read by a grammar of our own (`math_text`, `math_tree`), never by an evaluator of Python code; structure is
compared by `math_equality`, values by `math_values`. docs/rewards.md says what counts as equal. With `strict` off
math-verify decides instead (`math_lenient`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from posttrain.rewards.answers import boxed_answer, completion_text, last_mark, marked_answer, normalise
from posttrain.rewards.math_equality import equal
from posttrain.rewards.math_exact import Budget, TooLaborious, Undefined
from posttrain.rewards.math_nodes import Node, Opaque, number
from posttrain.rewards.math_text import Unreadable, clean, tokens_of
from posttrain.rewards.math_tree import parse
from posttrain.rewards.math_units import is_unit, with_units_as_words

MAX_ANSWER_CHARACTERS = 2_000
_MAX_TEXT_CHARACTERS = 20_000
_PROSE = re.compile(r"[A-Za-z][A-Za-z'-]*(?:[ ,]+[A-Za-z][A-Za-z'-]*)*[.!]?")
_TEXT_MACRO = re.compile(r"\\(?:text|textbf|textit|mathrm|mbox|textrm)\s*\{([^{}]*)\}")
# What is no mathematics but can be compared as text: dates, times, names with numbers.
_TEXT = re.compile(r"(?=.*[A-Za-z]{2})[^\W_][\w\s.,:;'\"!?()-]{0,500}")
_ALL_REALS = frozenset(("all real numbers", "all reals", "the real numbers", "all real values", "any real number"))
_SHORT_WORDS = frozenset("no on up at in it is we he me so us or if of to by an as".split())
_ANNOUNCED = re.compile(
    r"(?:so,? |thus,? |therefore,? |hence,? )?(?:the )?(?:final |correct )?answer is:?\s+", re.IGNORECASE
)
# \text{Answer: }, \text{The total is }; Option C, C).
_LABEL = re.compile(r"^\$*\\text\s*\{(?![^{}]*\bnot\b)[A-Za-z][A-Za-z ]{0,40}(?::| is:?| =)\s*\}(?=\s*\S)")
_CHOICE = re.compile(
    r"(?:\\(?:text|textbf|mathrm|mathbf)\s*\{)?\s*(?:[Oo]ption\s+|[Cc]hoice\s+)?\(?([A-J])[).:]?\s*\}?[).]?"
)
_HOPE = re.compile(r"\.?\s*I hope (?:it|this) is correct\.?$", re.IGNORECASE)


def math(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    *,
    answer: Sequence[str | None] | None = None,
    strict: bool = True,
    **_: Any,
) -> list[float | None]:
    r"""1.0 where the final answer is mathematically equal to the reference, else 0.0.

    The final answer is the content of the last \boxed{...} or what follows the last line mark ("Answer:", "####"),
    whichever stands later; a completion with neither is wrong. 1/2, 0.5 and \frac{1}{2} are equal, as are 1,000 and
    1000; case, brackets, order in brackets, units, percent, number bases and the left side of an equation count. An
    answer whose value cannot be found within a computed bound of work is compared as text only.

    Args:
        prompts: not read.
        completions: strings or chat message lists.
        answer: references, one for each completion, with or without \boxed{...} or dollar signs.
        strict: False = math-verify's own verdict on the two answers.

    Returns:
        One value for each completion; None where the reference is missing or blank, and where it cannot be read and is
        not equal as text.
    """
    references = answer if answer is not None else [None] * len(completions)
    pairs = zip(completions, references, strict=True)
    return [score_one(text, reference, strict=strict) for text, reference in pairs]


def warm_up() -> None:
    """Load what the first comparison would load, which takes seconds."""
    for strict in (True, False):
        score_one("Answer: \\sqrt{\\frac{1}{2}}", "0.5", strict=strict)


def score_one(completion: Any, answer: str | None, *, strict: bool = True) -> float | None:
    """Verdict on one completion, see `math`. Safe in any thread; pure but for a cache of parsed references."""
    if answer is None or not answer.strip():
        return None
    reference = bare(final_answer(answer) or answer)
    stated = final_answer(completion_text(completion)[-_MAX_TEXT_CHARACTERS:])
    given = bare(stated) if stated else ""
    if not strict:
        from posttrain.rewards.math_lenient import lenient_verdict

        return lenient_verdict(reference, given)
    verdict = compare(reference, given)
    return None if verdict is None else float(verdict)


def compare(reference: str, given: str) -> bool | None:
    """Whether two bare answers are equal; None where the reference has no meaning here and the texts differ."""
    if given and _plain(given) == _plain(reference):
        return True
    readings = _readings(reference)
    if not readings and _TEXT.fullmatch(_TEXT_MACRO.sub(r"\1", reference).strip()):
        return _plain(given).casefold() == _plain(reference).casefold()
    if not readings or not _is_decidable(reference):
        return None
    if not given or len(given) > MAX_ANSWER_CHARACTERS:
        return False
    others, budget = _readings(given), Budget()
    for place in range(max(len(readings), len(others)) if others else 0):
        try:
            one, other = readings[min(place, len(readings) - 1)], others[min(place, len(others) - 1)]
            if _counts_something(other, one) and equal(one, other, budget):
                return True
        except (TooLaborious, Undefined, RecursionError):
            continue
    return False


def _counts_something(given: Node, reference: Node) -> bool:
    """Whether every word behind a number of the answer is a unit."""
    said = frozenset(word for unit in _units_in(reference) for word in unit.name.split())
    one = number(1)
    return all(is_unit(unit.name, said=said, is_one=unit.args[0] == one) for unit in _units_in(given))


def _units_in(node: Node) -> Iterator[Node]:
    if node.kind == "unit":
        yield node
    for part in node.args:
        yield from _units_in(part)


def final_answer(text: str) -> str | None:
    """Content of the last box or marked line, whichever begins later in the text.

    A heading of words behind a box ("#### Check") is no answer.
    """
    boxed, mark = boxed_answer(text), last_mark(text)
    if boxed and (mark is None or boxed[0] >= mark.end or (mark.is_hash and _is_heading(marked_answer(text)))):
        return boxed[1]
    return marked_answer(text)


def _is_heading(line: str | None) -> bool:
    return not line or bool(re.match(r"[*_\s]*[A-Za-z]{3}", line))


def bare(answer: str) -> str:
    """Answer without the math signs, emphasis and box around it, and without a full stop at its end."""
    text = _HOPE.sub("", answer.strip())
    announced = _ANNOUNCED.match(text)
    text = text[announced.end() :] if announced else text
    text = _LABEL.sub("", text)
    choice = _CHOICE.fullmatch(text.strip(" $."))
    text = choice[1] if choice else text
    for _ in range(4):
        before = text
        text = text.strip()
        text = re.sub(r"\\(?:[,;:! ]|\\*)$", "", text)
        text = text if text.endswith("...") else text.rstrip(".;, ").strip()
        for mark in ("**", "__", "`", "*"):
            if text.startswith(mark) and text.endswith(mark) and len(text) > 2 * len(mark):
                inner = text[len(mark) : -len(mark)]
                text = inner if mark not in inner else text
        for begin, end in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
            if text.startswith(begin) and text.endswith(end) and len(text) > len(begin) + len(end):
                inner = text[len(begin) : len(text) - len(end)]
                text = inner.strip() if begin not in inner and not inner.endswith("\\") else text
        boxed = boxed_answer(text)
        if boxed and boxed[0] == 0 and text.endswith("}") and boxed[1]:
            text = boxed[1]
        if text == before:
            break
    return text


def _plain(text: str) -> str:
    """Text for comparison as text: one spelling of characters, and no space that only sets symbols apart."""
    spelled = _TEXT_MACRO.sub(r" \1 ", clean(_without_math_signs(text[:_MAX_TEXT_CHARACTERS])))
    return re.sub(r"(?<![A-Za-z0-9]) | (?![A-Za-z0-9])", "", normalise(spelled)).strip(".")


def _without_math_signs(text: str) -> str:
    text = re.sub(r"\\[()]|(?<!\\)\\[\[\]]", " ", text)
    inline = re.sub(r"(?<!\\)\$([^$]*[^$\\\s])\$", r" \1 ", text)
    return inline if "$" not in inline or "\\$" in inline else text


@lru_cache(maxsize=4096)
def _readings(answer: str) -> tuple[Node, ...]:
    """Trees of an answer: as it stands, and with letters at its end as units. Empty where it cannot be read."""
    if len(answer) > MAX_ANSWER_CHARACTERS:
        return ()
    text = clean(_without_math_signs(answer))
    prose = _prose(text)
    if prose is not None and prose.lower() in _ALL_REALS:
        return (parse(r"\mathbb{R}"),)
    if prose is not None:
        return (Node("text", name=prose),)
    found = []
    for reading in (text, with_units_as_words(text)):
        if reading is not None:
            try:
                found.append(parse(reading))
            except (Unreadable, Opaque, RecursionError):
                continue
    return tuple(found)


def _prose(text: str) -> str | None:
    """The words of an answer that has nothing but words; None for others."""
    words = _TEXT_MACRO.sub(r"\1", text).strip(" .\"'!")
    if not _PROSE.fullmatch(words):
        return None
    pieces = re.findall(r"[A-Za-z'-]+", words)
    if len(pieces) == 1 and pieces[0].lower() in _SHORT_WORDS:
        return words
    if any(_is_word(piece) and piece not in ("and", "or", "if") for piece in pieces):
        return " ".join(pieces)
    return None


def _is_word(piece: str) -> bool:
    parts = re.findall(r"[A-Za-z]+", piece)
    return any(token.kind == "word" for part in parts for token in tokens_of(part))


@lru_cache(maxsize=4096)
def _is_decidable(reference: str) -> bool:
    """Whether the reference's own value can be found within the bound."""
    for reading in _readings(reference):
        try:
            if equal(reading, reading, Budget()):
                return True
        except (TooLaborious, Undefined, RecursionError):
            continue
    return False
