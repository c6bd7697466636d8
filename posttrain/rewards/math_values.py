"""Whether two expressions are equal as values, decimals of irrational ones included."""

from __future__ import annotations

from posttrain.rewards.math_decimals import is_rounding
from posttrain.rewards.math_exact import Budget, NotRational, Undefined
from posttrain.rewards.math_nodes import Node
from posttrain.rewards.math_numbers import DIGITS, REAL_DRAWS, modular_zero, real_equal, real_value


def same_value(first: Node, second: Node, budget: Budget) -> bool:
    """Whether two expressions are equal wherever both have a real value.

    A decimal number also equals an irrational or periodic value of which it is the correct rounding, to at least 6
    places and 6 digits, or to 10 digits.

    Raises:
        TooLaborious: it would take too long to find out. Undefined: an expression has no value anywhere.
    """
    if first == second:
        _need_value(first, budget)
        return True
    difference = Node("add", (first, Node("neg", (second,))))
    try:
        if modular_zero(difference, budget):
            return True
        is_known = True
    except NotRational:
        is_known = False
    if not is_known and real_equal(first, second, budget):
        return True
    return is_rounding(first, second, budget) or is_rounding(second, first, budget)


def _need_value(node: Node, budget: Budget) -> None:
    try:
        modular_zero(node, budget)
    except NotRational:
        if all(real_value(node, draw, DIGITS[0], budget) is None for draw in range(REAL_DRAWS)):
            raise Undefined("no value") from None
