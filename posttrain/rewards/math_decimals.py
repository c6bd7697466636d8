"""Decimal numbers against values that have none: a correct rounding to enough places is the value."""

from __future__ import annotations

from fractions import Fraction

from posttrain.rewards.math_exact import Budget, NotRational, exact, symbols_of
from posttrain.rewards.math_nodes import Node
from posttrain.rewards.math_numbers import DIGITS, context_of, is_real, real_value

_SIGNIFICANT, _PLACES, _MANY = 6, 6, 10


def written_decimal(node: Node, budget: Budget) -> tuple[Fraction, int] | None:
    """(value, places behind the point) of a decimal number, with a sign or a power of ten; None for others."""
    if node.kind == "num":
        return None if node.decimals is None else (node.value, node.decimals)
    if node.kind == "neg":
        inner = written_decimal(node.args[0], budget)
        return inner and (-inner[0], inner[1])
    if node.kind == "mul" and node.args[1].kind == "pow" and node.args[1].args[0] == Node("num", value=Fraction(10)):
        inner = written_decimal(node.args[0], budget)
        if inner:
            exponent = exact(node.args[1].args[1], budget)
            if exponent.denominator == 1 and abs(exponent) < 10_000:
                return inner[0] * Fraction(10) ** int(exponent), inner[1] - int(exponent)
    return None


def _has_decimal(node: Node) -> bool:
    return (node.kind == "num" and node.decimals is not None) or any(map(_has_decimal, node.args))


def is_rounding(given: Node, value: Node, budget: Budget) -> bool:
    """Whether `given` is a decimal that rounds `value`, which is irrational or periodic; or is it but for the noise of
    a computer's floating-point number.
    """
    decimal = written_decimal(given, budget)
    if decimal is None or symbols_of(value):
        return False
    rounded, places = decimal
    other = written_decimal(value, budget)
    if other:
        digits = max(len(str(abs(number.numerator))) for number in (rounded, other[0]))
        return digits >= 16 and abs(rounded - other[0]) * 10**15 * 2 < abs(rounded)
    significant = len(str(abs(int(rounded * Fraction(10) ** places))).lstrip("0"))
    if _has_decimal(value) or significant < _SIGNIFICANT or (places < _PLACES and significant < _MANY):
        return False
    try:
        rational = exact(value, budget)
        rest = rational.denominator
        for prime in (2, 5):
            while rest % prime == 0:
                rest //= prime
        return rest != 1 and abs(rational - rounded) * 2 <= Fraction(10) ** -places
    except NotRational:
        pass
    found = real_value(value, 0, DIGITS[0], budget)
    context = context_of(DIGITS[0])
    if found is None or not is_real(found, context):
        return False
    distance = abs(context.re(found) - context.mpf(rounded.numerator) / rounded.denominator)
    return bool(2 * distance <= context.mpf(10) ** -places)
