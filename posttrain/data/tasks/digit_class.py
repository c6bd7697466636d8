"""Questions with several right answers: any digit that shares a property with the last digit of a sum.

Made for comparing what supervised and reinforcement learning forget: a demonstration names one digit of the class,
while the reward `one_of` accepts the whole class. The toy of arXiv 2507.05386's specification, in text.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from posttrain.data.tasks.rows import Problem, checked_list, draw_rows
from posttrain.errors import ConfigError

TASK = "digit_class"
DIGITS = range(10)
PRIMES = (2, 3, 5, 7)
RULES = ("same", "parity", "half", "remainder", "prime")
DEMONSTRATIONS = ("canonical", "random", "true", "mostly_true")
# Chance that a "mostly_true" demonstration names the digit itself; each other digit is as likely as the next.
TRUE_SHARE = 0.55
MAX_OPERAND = 9999


def generate(
    size: int,
    *,
    seed: int,
    rules: str | Sequence[str] = ("parity", "half", "remainder", "prime"),
    demonstrations: str = "canonical",
    accept_true: bool = True,
    max_operand: int = 99,
    split: str = "train",
) -> list[dict[str, Any]]:
    """Questions such as "parity 47+38", whose last digit is 5, so that 1, 3, 5, 7 and 9 are right.

    Args:
        size: number of rows.
        seed: of the data set.
        rules: "same" (the digit itself), "parity", "half" (0-4 or 5-9), "remainder" (of the digit divided by 3),
            "prime" (2, 3, 5, 7, or the others), or a list of them, which then take turns; each is a group.
        demonstrations: which right digit `solution` and `answer` name: "canonical" (the smallest of the class, one
            for each class), "random" (each as likely, drawn for the row), "true" (the digit itself), "mostly_true"
            (the digit itself with chance .55, each other digit with .05, whatever the rule: a model that learns this
            can do every task in part, and `solution` may be wrong).
        accept_true: false takes the digit itself out of the right answers, so that a model that gives it has to move;
            not with the rule "same" or demonstrations "true".
        max_operand: both numbers are drawn from 0 to this, 9 to 9999.
        split: "train", "eval" (disjoint from train for every rule and seed; 47+38 and 38+47 are one problem) or "all".

    Returns:
        Rows as of `draw_rows`; `entry` lists the right answers as "accepted", which the reward `one_of` reads.

    Raises:
        ConfigError: for an option out of its range.
    """
    levels = _checked(rules, demonstrations, accept_true, max_operand)
    width = len(str(max_operand))

    def draw(generator: random.Random, rule: str) -> Problem:
        left, right = generator.randint(0, max_operand), generator.randint(0, max_operand)
        digit = (left + right) % 10
        accepted = [other for other in accepted_digits(rule, digit) if accept_true or other != digit]
        others = [other for other in DIGITS if other != digit]
        noisy = digit if generator.random() < TRUE_SHARE else generator.choice(others)
        shown = {
            "canonical": accepted[0],
            "random": generator.choice(accepted),
            "true": digit,
            "mostly_true": noisy,
        }[demonstrations]
        return Problem(
            question=f"{rule} {left:0{width}}+{right:0{width}}",
            answer=str(shown),
            working="",
            group=rule,
            identity="+".join(map(str, sorted((left, right)))),
            demonstration=str(shown),
            accepted=tuple(map(str, accepted)),
        )

    return draw_rows(TASK, size, seed=seed, split=split, levels=levels, draw=draw)


def accepted_digits(rule: str, digit: int) -> list[int]:
    """The digits, in order, that share a rule's property with a digit; always the digit itself among them."""
    properties = {
        "same": lambda number: number,
        "parity": lambda number: number % 2,
        "half": lambda number: number >= 5,
        "remainder": lambda number: number % 3,
        "prime": lambda number: number in PRIMES,
    }
    found = properties[rule]
    return [other for other in DIGITS if found(other) == found(digit)]


def _checked(rules: Any, demonstrations: Any, accept_true: Any, max_operand: Any) -> list[str]:
    """The rules asked for, after every option was found to be usable."""
    levels = checked_list(rules, where=f"{TASK}.rules", allowed=RULES)
    if demonstrations not in DEMONSTRATIONS:
        allowed = f"one of: {', '.join(DEMONSTRATIONS)}"
        raise ConfigError("unknown value", where=f"{TASK}.demonstrations", got=demonstrations, allowed=allowed)
    if not isinstance(accept_true, bool):
        raise ConfigError("not a truth value", where=f"{TASK}.accept_true", got=accept_true, allowed="true or false")
    if isinstance(max_operand, bool) or not isinstance(max_operand, int) or not 9 <= max_operand <= MAX_OPERAND:
        allowed = f"integer 9 to {MAX_OPERAND}"
        raise ConfigError("out of range", where=f"{TASK}.max_operand", got=max_operand, allowed=allowed)
    if not accept_true and "same" in levels:
        what = "the rule 'same' accepts nothing but the digit itself"
        raise ConfigError(what, where=f"{TASK}.accept_true", got=False, fix="Take 'same' out of the rules")
    if not accept_true and demonstrations == "true":
        what = "the demonstration would be a wrong answer"
        raise ConfigError(what, where=f"{TASK}.accept_true", got=False, fix="Use demonstrations: canonical or random")
    return levels
