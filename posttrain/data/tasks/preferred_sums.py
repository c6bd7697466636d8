"""Sums with two worked answers, a right one and one that goes wrong at the end: pairs to learn preferences from."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from posttrain.data.tasks.arithmetic import generate as arithmetic


def generate(size: int, *, seed: int, digits: int | Sequence[int] = 2, split: str = "train") -> list[dict[str, Any]]:
    """Rows of the task arithmetic with `chosen`, its demonstration, and `rejected`, the same with a wrong answer.

    Args:
        size, seed, digits, split: as of arithmetic, sums of two numbers.

    Returns:
        Rows as of arithmetic with two more columns; the wrong answer is off by 1 to 9 or has two digits swapped.

    Raises:
        ConfigError: for an option out of its range.
    """
    rows = arithmetic(size, seed=seed, digits=digits, split=split)
    for index, row in enumerate(rows):
        wrong = _wrong(row["answer"], random.Random(f"{seed} {index}"))
        head = row["solution"].rpartition(row["answer"])[0]
        row |= {"chosen": row["solution"], "rejected": head + wrong}
    return rows


def _wrong(answer: str, generator: random.Random) -> str:
    """Another number that looks like the answer."""
    swapped = answer[:-2] + answer[-2:][::-1]
    if len(answer) > 1 and swapped != answer and swapped[0] != "0" and generator.random() < 0.5:
        return swapped
    return str(
        int(answer) + generator.choice([-1, 1]) * generator.randint(1, 9) if int(answer) > 9 else int(answer) + 1
    )
