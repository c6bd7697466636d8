r"""The verdict of math-verify itself, for `strict: false`.

math-verify guards itself with signal.alarm, which only works in the main thread; here its timers are off and the input
is bounded instead, so rewards may run in any thread or process. Only its LaTeX grammar is used: its reader for plain
expressions hands text to Python's eval.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import Any

from posttrain.rewards.answers import normalise

MAX_ANSWER_CHARACTERS = 200
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


def lenient_verdict(reference: str, given: str) -> float | None:
    """1.0 where math-verify calls two bare answers equal, else 0.0; None where it cannot read the reference.

    An answer longer than `MAX_ANSWER_CHARACTERS`, or one over which computer algebra would take long (towers of
    powers, big factorials, sums, integrals), is only compared as text.
    """
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
