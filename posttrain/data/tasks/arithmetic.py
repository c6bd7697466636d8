"""Written arithmetic with carry: addition, subtraction with borrow, multiplication by one digit.

The demonstration works column by column from the right, as taught at school; the last carry leads the answer.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from posttrain.data.tasks.rows import Problem, checked_list, draw_rows
from posttrain.errors import ConfigError

OPERATIONS = ("+", "-", "*")


def generate(
    size: int,
    *,
    seed: int,
    digits: int | Sequence[int] = 2,
    terms: int = 2,
    operations: str | Sequence[str] = "+",
    split: str = "train",
) -> list[dict[str, Any]]:
    """Arithmetic questions such as "47+38=?" with the worked columns "7+8+0=15 4+3+1=8" and "Answer: 85".

    Args:
        size: number of rows.
        seed: of the data set.
        digits: digits of every number, 1 to 6; a list gives levels in turn, and each level is a group.
        terms: numbers in a sum, 2 to 4; more than 2 only with operations "+".
        operations: "+", "-" (the result is never negative), "*" (the second number has one digit), or a list of them.
        split: "train", "eval" (disjoint from train for every seed) or "all".

    Returns:
        Rows as of `draw_rows`; the group is "2 digits", with the operation before it if there are several.

    Raises:
        ConfigError: for an option out of its range.
    """
    widths = checked_list(digits, where="arithmetic.digits", allowed=range(1, 7))
    signs = checked_list(operations, where="arithmetic.operations", allowed=OPERATIONS)
    checked_list(terms, where="arithmetic.terms", allowed=range(2, 5))
    if terms > 2 and signs != ["+"]:
        raise ConfigError("more than 2 terms need operations '+'", where="arithmetic.terms", got=terms)
    levels = [(sign, width) for width in widths for sign in signs]

    def draw(generator: random.Random, level: tuple[str, int]) -> Problem:
        sign, width = level
        numbers = [_number(generator, width) for _ in range(terms)]
        group = f"{width} digit{'s' if width > 1 else ''}"
        if len(set(signs)) > 1:
            group = f"{sign} {group}"
        if sign == "-":
            numbers.sort(reverse=True)
        elif sign == "*":
            numbers[1] = generator.randint(2, 9)
        working, result = _WORKED[sign](numbers)
        identity = sign.join(map(str, numbers if sign == "-" else sorted(numbers)))
        return Problem(f"{sign.join(map(str, numbers))}=?", str(result), working, group, identity)

    return draw_rows("arithmetic", size, seed=seed, split=split, levels=levels, draw=draw)


def _number(generator: random.Random, width: int) -> int:
    return generator.randint(0 if width == 1 else 10 ** (width - 1), 10**width - 1)


def _columns(number: int, width: int) -> list[int]:
    """Digits from the right, padded with zeros to the width."""
    return [int(digit) for digit in reversed(str(number).zfill(width))]


def _worked_sum(numbers: list[int]) -> tuple[str, int]:
    width = max(len(str(number)) for number in numbers)
    carry, steps = 0, []
    for column in zip(*(_columns(number, width) for number in numbers), strict=True):
        total = sum(column) + carry
        steps.append(f"{'+'.join(map(str, column))}+{carry}={total}")
        carry = total // 10
    return " ".join(steps), sum(numbers)


def _worked_difference(numbers: list[int]) -> tuple[str, int]:
    larger, smaller = numbers
    width = len(str(larger))
    borrow, steps = 0, []
    for upper, lower in zip(_columns(larger, width), _columns(smaller, width), strict=True):
        taken = upper if upper >= lower + borrow else upper + 10
        steps.append(f"{taken}-{lower}-{borrow}={taken - lower - borrow}")
        borrow = int(taken != upper)
    return " ".join(steps), larger - smaller


def _worked_product(numbers: list[int]) -> tuple[str, int]:
    number, factor = numbers
    carry, steps = 0, []
    for digit in _columns(number, len(str(number))):
        total = digit * factor + carry
        steps.append(f"{digit}*{factor}+{carry}={total}")
        carry = total // 10
    return " ".join(steps), number * factor


_WORKED = {"+": _worked_sum, "-": _worked_difference, "*": _worked_product}
