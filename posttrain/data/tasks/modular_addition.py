"""Add two numbers and give the remainder; half of the answers can be held back, and demonstrations can be wrong.

Made for comparing how methods use demonstrations: a model warmed up on low answers alone cannot find a high one by
trying, and has to take it from demonstrations of which a known part is wrong.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from posttrain.data.tasks.rows import Problem, checked_list, draw_rows
from posttrain.errors import ConfigError

TASK = "modular_addition"
HALVES = ("low", "high")
MAX_OPERAND = 9999


def generate(
    size: int,
    *,
    seed: int,
    modulus: int = 10,
    max_operand: int = 99,
    answers: str | Sequence[str] = HALVES,
    wrong_fraction: float = 0.0,
    split: str = "train",
) -> list[dict[str, Any]]:
    """Questions such as "47+08", whose answer modulo 10 is "5"; the demonstration is an answer alone.

    Args:
        size: number of rows.
        seed: of the data set.
        modulus: m, 2 to 100. The question does not name it.
        max_operand: both operands are drawn from 0 to this, at least m - 1 and up to 9999.
        answers: "low" (below m/2), "high", or a list of the two, which then take turns; each is a group.
        wrong_fraction: in [0, 1], chance that a row's demonstration is wrong: another of the answers asked for in
            `answers`, each as likely. The column `answer` is always right.
        split: "train", "eval" (disjoint from train for every seed; 47+38 and 38+47 are one problem) or "all".

    Returns:
        Rows as of `draw_rows`; the group is "low" or "high".

    Raises:
        ConfigError: for an option out of its range.
    """
    levels = _checked(modulus, max_operand, answers, wrong_fraction)
    width = len(str(max_operand))
    shown_answers = _answers(modulus, levels)

    def draw(generator: random.Random, level: str) -> Problem:
        while True:
            left, right = generator.randint(0, max_operand), generator.randint(0, max_operand)
            answer = (left + right) % modulus
            if (2 * answer < modulus) == (level == "low"):
                break
        shown = answer
        if generator.random() < wrong_fraction:
            shown = generator.choice([other for other in shown_answers if other != answer])
        return Problem(
            question=f"{left:0{width}}+{right:0{width}}",
            answer=str(answer),
            working="",
            group=level,
            identity="+".join(map(str, sorted((left, right)))),
            demonstration=str(shown),
        )

    return draw_rows(TASK, size, seed=seed, split=split, levels=levels, draw=draw)


def _answers(modulus: int, levels: Sequence[str]) -> list[int]:
    return [n for n in range(modulus) if ("low" if 2 * n < modulus else "high") in levels]


def _checked(modulus: Any, max_operand: Any, answers: Any, wrong_fraction: Any) -> list[str]:
    """The halves asked for, after every option was found to be usable."""
    for name, value, most in (("modulus", modulus, 100), ("max_operand", max_operand, MAX_OPERAND)):
        # From m - 1 on, every answer has a problem.
        least = 2 if name == "modulus" else modulus - 1
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ConfigError("out of range", where=f"{TASK}.{name}", got=value, allowed=f"integer {least} to {most}")
    number = isinstance(wrong_fraction, (int, float)) and not isinstance(wrong_fraction, bool)
    if not number or not 0 <= wrong_fraction <= 1:
        raise ConfigError("out of range", where=f"{TASK}.wrong_fraction", got=wrong_fraction, allowed="0 to 1")
    levels = checked_list(answers, where=f"{TASK}.answers", allowed=HALVES)
    if wrong_fraction and len(_answers(modulus, levels)) < 2:
        raise ConfigError(
            "only one answer is asked for, so none can be wrong",
            where=f"{TASK}.wrong_fraction",
            got=wrong_fraction,
            fix="Set it to 0, or ask for more answers",
        )
    return levels
