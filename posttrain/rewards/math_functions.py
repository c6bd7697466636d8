"""The value of an expression at one random point, with mpmath; every operation is bounded before it is carried out."""

from __future__ import annotations

import random
from typing import Any

from posttrain.rewards.math_exact import (
    ARITHMETIC,
    Budget,
    NotRational,
    TooLaborious,
    Undefined,
    arithmetic,
    exact,
)
from posttrain.rewards.math_nodes import Node

_MAX_LOG2 = 2.0**60
_MAX_TRIG_LOG2 = 4_000
_MAX_GAMMA = 2**20
_MAX_WHOLE_LOG2 = 4_000
_POSITIVE_DRAWS = 7  # later points have signs
_UNARY = {
    "sin": "sin", "cos": "cos", "tan": "tan", "cot": "cot", "sec": "sec", "csc": "csc", "arcsin": "asin", "arccos":
    "acos", "arctan": "atan", "arccot": "acot", "arcsec": "asec", "arccsc": "acsc", "sinh": "sinh", "cosh": "cosh",
    "tanh": "tanh", "coth": "coth", "sech": "sech", "csch": "csch", "arsinh": "asinh", "arcosh": "acosh", "artanh":
    "atanh", "Re": "re", "Im": "im", "floor": "floor", "ceil": "ceil",
}  # fmt: skip


def point(name: str, draw: int) -> tuple[int, int]:
    """Numerator and denominator of a symbol's value at a draw, between 0.3 and 3 in size."""
    source = random.Random(f"{draw} {name}")
    value = source.randint(300_000, 3_000_000)
    return (value if draw < _POSITIVE_DRAWS or source.random() < 0.5 else -value), 999_983


def evaluate(node: Node, draw: int, context: Any, budget: Budget) -> Any:
    """Value as a real or complex number of the context.

    Raises:
        TooLaborious: before a result too large is built. Undefined, or an ArithmeticError: no value here.
    """
    _charge(1, context, budget)
    kind = node.kind
    if kind == "num":
        return context.mpf(node.value.numerator) / node.value.denominator
    if kind == "sym":
        return _symbol(node.name, draw, context)
    if kind == "inf":
        raise Undefined("infinity is no number")
    values = [evaluate(part, draw, context, budget) for part in node.args]
    if kind in ARITHMETIC:
        return arithmetic(kind, values)
    if kind == "add":
        for value in values:
            budget.see(_log2(value, context))
        return context.fsum(values) if all(map(context.isfinite, values)) else values[0]
    if kind == "deg":
        return values[0] * context.pi / 180
    if kind == "pow":
        return _power(values[0], values[1], context, budget)
    if kind == "root":
        return _root(values[0], values[1], context, budget)
    if kind in ("fact", "fact2", "binom"):
        return _factorial(kind, values, context, budget)
    if kind == "fn":
        return _function(node, values, context, budget)
    if kind == "call":
        return _unknown(node.name, values, context, budget)
    raise NotRational(kind)


def _symbol(name: str, draw: int, context: Any) -> Any:
    known = {"e": context.e, "i": context.j, "\\pi": context.pi}
    if name in known:
        return +known[name]
    above, below = point(name, draw)
    return context.mpf(above) / below


def _charge(units: float, context: Any, budget: Budget) -> None:
    budget.charge(units * max(1.0, context.dps / 60))


def _log2(value: Any, context: Any) -> float:
    """Size of a number as a power of two, a rough bound."""
    return 0.0 if value == 0 else float(context.mag(value))


def _power(base: Any, exponent: Any, context: Any, budget: Budget) -> Any:
    if base == 0:
        if context.re(exponent) <= 0:
            raise Undefined("zero to a power that is not positive")
        return context.mpf(0)
    if _log2(exponent, context) > 60 or abs(exponent) * max(1.0, abs(_log2(base, context))) > _MAX_LOG2:
        raise TooLaborious("a power too large")
    budget.see(_log2(exponent, context))
    _charge(4, context, budget)
    if context.im(exponent) == 0 and context.isint(exponent):
        return context.power(base, int(context.re(exponent)))
    return context.power(base, exponent)


def _root(value: Any, degree: Any, context: Any, budget: Budget) -> Any:
    if degree == 0:
        raise Undefined("a root of degree zero")
    _charge(4, context, budget)
    if context.im(degree) == 0 and context.isint(degree) and 0 < context.re(degree) < 10_000:
        whole = int(context.re(degree))
        if whole % 2 and context.im(value) == 0 and context.re(value) < 0:
            return -context.root(-value, whole)
        return context.sqrt(value) if whole == 2 else context.power(value, context.mpf(1) / whole) if value else value
    return _power(value, 1 / degree, context, budget)


def _factorial(kind: str, values: list[Any], context: Any, budget: Budget) -> Any:
    if any(abs(value) > _MAX_GAMMA for value in values):
        raise TooLaborious("a factorial too large")
    _charge(100, context, budget)
    if kind == "binom":
        return context.binomial(*values)
    return context.factorial(values[0]) if kind == "fact" else context.fac2(values[0])


def _function(node: Node, values: list[Any], context: Any, budget: Budget) -> Any:
    name = node.name
    _charge(8, context, budget)
    if name in ("gcd", "lcm"):
        value = exact(node, budget)
        return context.mpf(value.numerator) / value.denominator
    if name in ("max", "min"):
        if any(context.im(value) != 0 for value in values):
            raise Undefined("complex numbers have no order")
        return max(values, key=context.re) if name == "max" else min(values, key=context.re)
    if len(values) != 1:
        raise NotRational("a function of several arguments")
    value = values[0]
    if name == "sqrt":
        return context.sqrt(value)
    if name in ("ln", "log", "lg"):
        if value == 0:
            raise Undefined("logarithm of zero")
        # Whether "log" is to the base e or 10 nobody can tell: it is to a base of its own.
        above, below = point("base of log", 0)
        base = {"ln": context.e, "lg": context.mpf(10), "log": context.mpf(above) / below + 3}[name]
        return context.ln(value) / context.ln(base)
    if name not in _UNARY:
        raise NotRational(name)
    if _log2(value, context) > (_MAX_WHOLE_LOG2 if name in ("floor", "ceil") else _MAX_TRIG_LOG2):
        raise TooLaborious("an argument too large")
    budget.see(_log2(value, context))
    if name in ("sinh", "cosh", "tanh", "coth", "sech", "csch") and abs(value) > _MAX_LOG2:
        raise TooLaborious("an argument too large")
    return getattr(context, _UNARY[name])(value)


def _unknown(name: str, values: list[Any], context: Any, budget: Budget) -> Any:
    """A function that has only a name: a fixed smooth one that no other name has."""
    if any(_log2(value, context) > _MAX_TRIG_LOG2 for value in values):
        raise TooLaborious("an argument too large")
    _charge(8, context, budget)
    total = context.mpf(0)
    for place, value in enumerate(values):
        above, below = point(f"{name} {place}", 0)
        total += context.sin(value * above / below + place + 1)
    return total
