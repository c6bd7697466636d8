"""Values of rational constants, exactly, and the bound on the work that all comparisons of values share."""

from __future__ import annotations

import math as numbers
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from posttrain.rewards.math_nodes import Node

WORK = 40_000  # operations charged for one comparison of two answers; one costs some microseconds
_MAX_EXACT_BITS = 20_000


class TooLaborious(Exception):
    """The size of a result, or the work in all, is beyond the bound."""


class NotRational(Exception):
    """The expression holds more than sums, products, quotients and whole powers."""


class Undefined(ArithmeticError):
    """No value at this point: a division by zero, an argument outside of a function's domain, infinity."""


class Budget:
    """What is left of the work that one comparison may cost."""

    def __init__(self, work: int = WORK):
        self.left = work
        self.peak = 0.0  # decimal digits before the point of the largest number that was added or was an argument

    def charge(self, units: float = 1) -> None:
        self.left -= max(1, int(units))
        if self.left < 0:
            raise TooLaborious("too many operations")

    def see(self, log2: float) -> None:
        """Note the size of a number whose absolute error matters."""
        self.peak = max(self.peak, log2 * 0.30103)


def symbols_of(node: Node) -> frozenset[str]:
    """Names of variables; e, i and pi are none."""
    if node.kind == "sym":
        return frozenset() if node.name in ("e", "i", "\\pi") else frozenset({node.name})
    own = frozenset({f"{node.name}()"}) if node.kind == "call" else frozenset()
    return own.union(*(symbols_of(part) for part in node.args))


ARITHMETIC = frozenset({"neg", "mul", "div", "pct", "abs"})


def arithmetic(kind: str, values: Sequence[Any]) -> Any:
    """Value of one of `ARITHMETIC` from those of its parts, numbers of any one kind. Raises Undefined."""
    if kind == "neg":
        return -values[0]
    if kind == "mul":
        return values[0] * values[1]
    if kind == "div":
        if values[1] == 0:
            raise Undefined("division by zero")
        return values[0] / values[1]
    return values[0] / 100 if kind == "pct" else abs(values[0])


def exact(node: Node, budget: Budget) -> Fraction:
    """Value of a rational constant. Raises NotRational, Undefined, TooLaborious."""
    budget.charge()
    kind, parts = node.kind, node.args
    if kind == "num":
        return node.value
    if kind not in ("neg", "add", "mul", "div", "pct", "pow", "fact", "binom", "abs", "fn", "root"):
        raise NotRational
    if kind == "fn" and node.name not in ("floor", "ceil", "max", "min", "gcd", "lcm"):
        raise NotRational
    values = [exact(part, budget) for part in parts]
    if sum(_bits(value) for value in values) > _MAX_EXACT_BITS:
        raise TooLaborious("numbers too long")
    if kind == "add":
        return sum(values, Fraction(0))
    return arithmetic(kind, values) if kind in ARITHMETIC else _exact_further(node, values)


def _bits(value: Fraction) -> int:
    return value.numerator.bit_length() + value.denominator.bit_length()


def _exact_further(node: Node, values: list[Fraction]) -> Fraction:
    if node.kind == "pow":
        base, exponent = values
        if exponent.denominator != 1:
            raise NotRational
        if base == 0 and exponent <= 0:
            raise Undefined("zero to a power that is not positive")
        if abs(base) != 1 and abs(exponent) * _bits(base) > _MAX_EXACT_BITS:
            raise TooLaborious("a power too large")
        return Fraction(base ** int(exponent % 2 if abs(base) == 1 else exponent))
    if node.kind == "root":
        if values[1].denominator != 1 or not 1 <= values[1] <= 64 or values[0] < 0:
            raise NotRational
        roots = [_whole_root(part, int(values[1])) for part in (values[0].numerator, values[0].denominator)]
        if None in roots:
            raise NotRational
        return Fraction(roots[0] or 0, roots[1] or 1)
    if node.kind == "fn" and node.name in ("floor", "ceil"):
        return Fraction(numbers.floor(values[0]) if node.name == "floor" else numbers.ceil(values[0]))
    if node.kind == "fn" and node.name in ("max", "min"):
        return max(values) if node.name == "max" else min(values)
    if any(value.denominator != 1 for value in values):
        raise NotRational
    whole = [int(value) for value in values]
    if node.kind == "fn":
        return Fraction(numbers.gcd(*whole) if node.name == "gcd" else numbers.lcm(*whole))
    if any(value < 0 for value in whole):
        raise Undefined("factorial of a negative number")
    if whole[0] * max(1, whole[0].bit_length()) > _MAX_EXACT_BITS:
        raise TooLaborious("a factorial too large")
    return Fraction(numbers.factorial(whole[0]) if node.kind == "fact" else numbers.comb(*whole))


def _whole_root(value: int, degree: int) -> int | None:
    low, high = 0, 1 << (value.bit_length() // degree + 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**degree <= value else (low, middle - 1)
    return low if low**degree == value else None
