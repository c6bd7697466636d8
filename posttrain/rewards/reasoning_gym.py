"""The verdict of a reasoning-gym task by that task's own scorer."""

from __future__ import annotations

import importlib
import json
import re
import warnings
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from math import isfinite
from typing import Any

from posttrain.errors import RewardError, SupportError, need
from posttrain.rewards.answers import completion_text, marked_block, normalise

MAX_ANSWER_CHARACTERS = 4000

# reasoning-gym 0.1.25: these scorers hand the answer to Python's eval, or to sympy's parse_expr, which calls it;
# composite may forward to any of them.
EVALUATING_TASKS = frozenset(
    {
        "binary_matrix",
        "composite",
        "intermediate_integration",
        "n_queens",
        "polynomial_multiplication",
        "simple_integration",
        "spiral_matrix",
        "string_insertion",
    }
)
# So do these, but their answers are sums and products of whole numbers: what else is written never reaches the scorer.
ARITHMETIC_TASKS = frozenset({"countdown", "puzzle24"})
_ARITHMETIC = re.compile(r"(?!.*\*\s*\*)(?!.*\d{7})[0-9\s()+\-*/]{1,200}", re.DOTALL)
# Fraction("1e999999999") and its like would build the whole number; commas are deleted before it reads a text, and it
# reads over underscores.
_HUGE_EXPONENT = re.compile(r"[\d.][eE][+-]?\d{4}")
_SEPARATORS = re.compile(r"[,_\s]")
# float() and complex() read these, and a comparison with NaN can come out as full marks (complex_arithmetic).
_NOT_FINITE = re.compile(r"(?<![a-z])(nan|inf|infinity)j?(?![a-z])", re.IGNORECASE)
# Scorers that accept what is not the answer: game_of_life_halting any text at all, coin_flip the first digits of the
# number ("0" for 0.25), gsm_symbolic the first digits in any text ("-5" and "5*7" for 5). Here the answer must be the
# reference as a text, or as a number.
TEXT_TASKS = frozenset({"game_of_life_halting"})
NUMBER_TASKS = frozenset({"coin_flip", "gsm_symbolic"})
_PLAIN_NUMBER = re.compile(r"[-+]?(?=\.?\d)[\d,]{0,40}(\.\d{0,40})?([eE][-+]?\d{1,3})?(/\d{1,40})?")
_NUMBER_TOLERANCE = 1e-4
# Scorers that look for what they want and pass over the rest of the text ("(1, 2)7", "UUDx", "-1 0 1"): here the whole
# answer must have this form.
_SIGNED = r"[-+]?\s*\d[\d,]*(?:\.\d*)?(?:[eE][-+]?\d{1,3})?"
_WHOLE_FORMS = {
    "advanced_geometry": rf"\(?\s*{_SIGNED}\s*(?:,\s*{_SIGNED}\s*)*\)?\s*(?:°|degrees)?\.?",
    "fraction_simplification": r"\$?\s*-?\s*(?:\\[dt]?frac\s*\{\s*-?\d+\s*\}\s*\{\s*\d+\s*\}|-?\d+\s*/\s*\d+)"
    r"\s*\$?\.?",
    "kakurasu": r"[01\s]+",
    "polynomial_equations": rf"(?:{_SIGNED}(?:\s*,\s*{_SIGNED})*)?",
    "quantum_lock": r"[A-Ca-c](?:\s*(?:→|->)\s*[A-Ca-c])*",
    "sokoban": r"[UDLRudlr\s]+",
}
# What a scorer raises over a text that it cannot read.
_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, SyntaxError, RecursionError)


def reasoning_gym(
    prompts: Sequence[Any], completions: Sequence[Any], *, entry: Sequence[str | None] | None = None, **_: Any
) -> list[float | None]:
    """What the task's own scorer says about the final answer; most tasks know only 0.0 and 1.0.

    The final answer is everything after the last "Answer:" or "####" at the beginning of a line, up to the end,
    because some answers are grids of several lines; without such a mark it is the content of the last
    <answer>...</answer>, else the whole completion.

    Args:
        prompts: not read.
        completions: strings or chat message lists.
        entry: the `entry` column that the reasoning-gym adapter wrote, one JSON text for each completion.

    Returns:
        One value in [0, 1] for each completion; None where the row has no entry. An answer that the scorer cannot
        read is wrong, as long as it can read the task's own answer.

    Raises:
        RewardError: if an entry is not one of the adapter's. Whatever the scorer raises, if it is broken.
        SupportError: without the package, or for a task whose scorer evaluates the answer as Python.
    """
    entries = entry if entry is not None else [None] * len(completions)
    return [score_one(text, stored) for text, stored in zip(completions, entries, strict=True)]


def warm_up() -> None:
    """Load the package, which takes seconds."""
    import_package()


def score_one(completion: Any, entry: str | None) -> float | None:
    """Score of one completion, see `reasoning_gym`."""
    if not entry:
        return None
    try:
        stored = json.loads(entry)
        name, options, original = stored["dataset"], stored["options"], stored["entry"]
    except (ValueError, KeyError, TypeError):
        what, fix = "not an entry of a reasoning-gym task", "Use the reward 'exact'"
        raise RewardError(what, where="reward reasoning_gym", got=entry, fix=fix) from None
    answer = final_answer(completion_text(completion))
    if len(answer) > MAX_ANSWER_CHARACTERS:
        return 0.0
    if name in ARITHMETIC_TASKS and not _ARITHMETIC.fullmatch(answer):
        return 0.0
    reference = original.get("answer")
    # Hexadecimal answers look like a number with an exponent; then nothing here is read as a decimal one.
    if _is_huge(answer) and not _is_huge(str(reference)):
        return 0.0
    if name in NUMBER_TASKS and not _PLAIN_NUMBER.fullmatch(_bare(answer)):
        return 0.0
    form = _WHOLE_FORMS.get(name)
    if form is not None and not re.fullmatch(form, answer) and normalise(answer) != normalise(str(reference)):
        return 0.0
    if _NOT_FINITE.search(answer) and not _NOT_FINITE.search(str(reference)):
        return 0.0
    score = scorer(name, json.dumps(options, sort_keys=True))
    if name in TEXT_TASKS:
        return float(normalise(answer).lower() == normalise(str(reference)).lower())
    try:
        value = float(score(answer, original))
        if name in NUMBER_TASKS and abs(_number(answer) - _number(reference)) > _NUMBER_TOLERANCE:
            return 0.0
    except _UNREADABLE:
        if isinstance(reference, str):
            score(reference, original)
        return 0.0
    return min(max(value, 0.0), 1.0) if isfinite(value) else 0.0


def _is_huge(text: str) -> bool:
    return _HUGE_EXPONENT.search(_SEPARATORS.sub("", text)) is not None


def _bare(text: str) -> str:
    return text.strip().strip("$%").rstrip(".")


def _number(text: str) -> Fraction:
    return Fraction(_bare(text).replace(",", ""))


def final_answer(text: str) -> str:
    """Final answer of a completion by the rule of `reasoning_gym`, stripped."""
    marked = marked_block(text)
    if marked is not None:
        return marked
    begin = text.rfind("<answer>")
    if begin >= 0:
        return text[begin + len("<answer>") :].split("</answer>")[0].strip()
    return text.strip()


@lru_cache(maxsize=64)
def scorer(name: str, options: str) -> Any:
    """`score_answer` of a task with the given options (a JSON text, so that it can be a cache key)."""
    refuse_evaluating(name)
    return import_package().create_dataset(name, size=1, seed=0, **json.loads(options)).score_answer


def import_package() -> Any:
    """The package reasoning_gym, which is an optional extra; SupportError without it."""
    need("reasoning_gym", where="reasoning_gym")
    with warnings.catch_warnings():
        # reasoning-gym 0.1.25: a dependency compares with `is` where it should not, and says so on every import.
        warnings.simplefilter("ignore", SyntaxWarning)
        return importlib.import_module("reasoning_gym")


def refuse_evaluating(name: str) -> None:
    """Raise SupportError for a task whose scorer evaluates what the model wrote."""
    if name in EVALUATING_TASKS:
        raise SupportError(
            "the scorer of this task evaluates the answer as Python code, so a completion could run anything",
            where=f"reasoning_gym task {name!r}",
            fix="Choose another task",
        )
