r"""Mathematical equality with the reference answer, by math-verify.

math-verify guards itself with signal.alarm, which only works in the main thread; here its timers are off and the input
is bounded instead, so rewards may run in any thread or process. Only its LaTeX grammar is used: its reader for plain
expressions hands text to Python's eval. A grader in a process of its own with a clock is left out of this file.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from posttrain.rewards.answers import boxed_answer, completion_text, marked_answer, marker_end, normalise

MAX_ANSWER_CHARACTERS = 200
_MAX_TEXT_CHARACTERS = 20_000
_MAX_DIGITS = 60
_MAX_DEPTH = 12
_MAX_POWER = 10_000
_MAX_POLYNOMIAL_POWER = 12
# Sums, searches, derivatives and big factorials (Gamma is one) that a computer algebra system would carry out,
# whatever the length of the text.
_LABORIOUS = re.compile(
    r"\\(sum|prod|int|iint|oint|lim|limsup|liminf|Gamma|partial)(?![A-Za-z])|!!|[^\dA-Za-z]!|\d{3,}!"
    r"|\{\s*d(\^[^{}]*|\^\s*\{[^{}]*\})?\s*\}\s*\{\s*d\s*\\?[A-Za-z]"
)
_FACTORIAL = re.compile(r"!|\\[dt]?binom")
_EXPONENT = re.compile(r"(\)|\})?\s*(?:\^|\*\*)\s*(\{|\()?")


def math(
    prompts: Sequence[Any], completions: Sequence[Any], *, answer: Sequence[str | None] | None = None, **_: Any
) -> list[float | None]:
    r"""1.0 where the final answer is mathematically equal to the reference, else 0.0.

    The final answer is the content of the last \boxed{...} or the text after the last line mark ("Answer:", "####"),
    whichever stands later; a completion with neither is wrong. It is read as LaTeX: 1/2, 0.5 and \frac{1}{2} are
    equal, as are 1,000 and 1000. An answer longer than `MAX_ANSWER_CHARACTERS`, or one over which computer algebra
    would take long (towers of powers, big factorials, sums, integrals), is only compared as text.

    Args:
        prompts: not read.
        completions: strings or chat message lists.
        answer: references, one for each completion, with or without \boxed{...} or dollar signs.

    Returns:
        One value for each completion; None where the reference is missing or blank, and where it cannot be read and is
        not equal as text.
    """
    references = answer if answer is not None else [None] * len(completions)
    return [score_one(text, reference) for text, reference in zip(completions, references, strict=True)]


def warm_up() -> None:
    """Load what the first comparison would load, which takes seconds."""
    score_one("Answer: \\frac{1}{2}", "0.5")


def score_one(completion: Any, answer: str | None) -> float | None:
    """Verdict on one completion, see `math`. Safe in any thread; pure but for a cache of parsed references."""
    if answer is None or not answer.strip():
        return None
    reference = _bare(_final_answer(answer) or answer)
    stated = _final_answer(completion_text(completion)[-_MAX_TEXT_CHARACTERS:])
    given = _bare(stated) if stated else ""
    if given and normalise(given) == normalise(reference):
        return 1.0
    parsed_reference = _parse_reference(reference)
    if not parsed_reference:
        return None
    if not given or _is_laborious(given):
        return 0.0
    _, verify = _math_verify()
    # math-verify 0.9: errors inside the comparison are logged by it and count as "not equal".
    return float(verify(list(parsed_reference), _parse(given), timeout_seconds=None))


def _final_answer(text: str) -> str | None:
    """Content of the last box or marked line, whichever begins later in the text."""
    boxed, mark = boxed_answer(text), marker_end(text)
    if boxed and (mark is None or boxed[0] >= mark):
        return boxed[1]
    return marked_answer(text)


def _bare(answer: str) -> str:
    """Answer without the math signs around it and without a full stop at its end."""
    bare = answer.strip().rstrip(".").strip()
    for begin, end in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if bare.startswith(begin) and bare.endswith(end) and len(bare) > len(begin) + len(end):
            inner = bare[len(begin) : len(bare) - len(end)]
            return inner.strip() if begin not in inner else bare
    return bare


def _is_laborious(answer: str) -> bool:
    """Whether reading or comparing the answer could take long: a bound on its text, not on the time."""
    if len(answer) > MAX_ANSWER_CHARACTERS or _LABORIOUS.search(answer):
        return True
    longest = max(map(len, re.findall(r"\d+", answer)), default=0)
    if longest > _MAX_DIGITS or (_FACTORIAL.search(answer) and (longest > 3 or "^" in answer or "**" in answer)):
        return True
    depth = deepest = 0
    for character in answer:
        depth += {"(": 1, "{": 1, "[": 1, ")": -1, "}": -1, "]": -1}.get(character, 0)
        deepest = max(deepest, depth)
    return deepest > _MAX_DEPTH or _has_large_power(answer)


def _has_large_power(answer: str) -> bool:
    """Whether the product of all numbers in exponents exceeds its bound, or a power stands inside an exponent."""
    product, polynomial_product = 1, 1
    has_variables = re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", answer))
    for match in _EXPONENT.finditer(answer):
        base_end, opening = match.groups()
        exponent = _group(answer, match.end(), opening) if opening else answer[match.end() : match.end() + 12]
        if opening and ("^" in exponent or "**" in exponent):
            return True
        for number in re.findall(r"\d+", exponent if opening else exponent.split(" ")[0])[:20]:
            product *= max(1, int(number))
            if base_end and has_variables:
                polynomial_product *= max(1, int(number))
    return product > _MAX_POWER or polynomial_product > _MAX_POLYNOMIAL_POWER


def _group(text: str, begin: int, opening: str) -> str:
    closing = {"{": "}", "(": ")"}[opening]
    depth = 1
    for index in range(begin, len(text)):
        depth += {opening: 1, closing: -1}.get(text[index], 0)
        if depth == 0:
            return text[begin:index]
    return text[begin:]


@lru_cache(maxsize=4096)
def _parse_reference(reference: str) -> tuple[Any, ...]:
    return () if _is_laborious(reference) else tuple(_parse(reference))


def _parse(answer: str) -> list[Any]:
    parse, _ = _math_verify()
    from math_verify import LatexExtractionConfig

    # Inside a box the whole answer is read or nothing; without one, math-verify would search it for readable parts.
    return parse(
        f"\\boxed{{{answer}}}",
        extraction_config=[LatexExtractionConfig(boxed_match_priority=0)],
        fallback_mode="no_fallback",
        parsing_timeout=None,
    )


@lru_cache(maxsize=1)
def _math_verify() -> tuple[Any, Any]:
    from math_verify import parse, verify

    # math-verify 0.9 warns on every process's first call that its timers are off, which is on purpose here.
    for name in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return parse, verify
