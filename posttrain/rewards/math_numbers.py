r"""Whether two expressions have one value: exact arithmetic modulo primes, and real numbers at two precisions.

What only adds, multiplies, divides and takes whole powers is compared modulo two large primes at random points: equal
polynomials agree always, unequal ones with a probability below 10^-30, however large the powers are, and nothing is
expanded. Everything else is evaluated at random real points with 60 and with 140 digits: a difference that stays is
one, a difference that vanishes with the digits is none. Points are drawn from a fixed seed and the symbol's name.

Every operation is charged before it is carried out, by the size that its operands give its result; `TooLaborious` is
raised before anything large is built. Precision and points are bounded, so time is.
"""

from __future__ import annotations

import hashlib
import math as numbers
from functools import lru_cache
from typing import Any

from mpmath import MPContext

from posttrain.rewards.math_exact import Budget, NotRational, TooLaborious, Undefined, exact, symbols_of
from posttrain.rewards.math_functions import evaluate
from posttrain.rewards.math_nodes import Node

_PRIMES = (2**127 - 735, 2**107 - 663)  # both are 1 modulo 4, so that -1 has a root; see `_checked_primes`
_MODULAR_DRAWS, REAL_DRAWS, _ENOUGH = 3, 12, 3
# Digits of the two precisions; the pair is taken whose first exceeds the digits that sums lose by 60.
_LADDER = ((60, 140), (200, 280), (480, 560), (1040, 1120), (2160, 2240))
DIGITS = _LADDER[0]
_MAX_FACTORIAL = 20_000


# --- modulo primes ---


@lru_cache(maxsize=1)
def _checked_primes() -> tuple[tuple[int, int], ...]:
    """Primes and a square root of -1 modulo each; the largest below the bounds that are 1 modulo 4."""
    found = []
    for below in _PRIMES:
        prime = below - (below - 1) % 4
        while not _is_prime(prime):
            prime -= 4
        base = next(b for b in range(2, 200) if pow(b, (prime - 1) // 2, prime) == prime - 1)
        found.append((prime, pow(base, (prime - 1) // 4, prime)))
    return tuple(found)


def _is_prime(n: int) -> bool:
    odd, twos = n - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43):
        power = pow(base, odd, n)
        if power in (1, n - 1):
            continue
        for _ in range(twos - 1):
            power = power * power % n
            if power == n - 1:
                break
        else:
            return False
    return True


def modular_zero(node: Node, budget: Budget) -> bool:
    """Whether a rational expression is zero at all points where it has a value. Raises Undefined if it has none."""
    tried = 0
    for prime, root in _checked_primes():
        for draw in range(_MODULAR_DRAWS):
            try:
                value = _modular(node, draw, prime, root, budget)
            except Undefined:
                continue
            tried += 1
            if value != 0:
                return False
    if not tried:
        raise Undefined("no value")
    return True


def _modular(node: Node, draw: int, prime: int, root: int, budget: Budget) -> int:
    budget.charge()
    kind = node.kind

    def of(part: Node) -> int:
        return _modular(part, draw, prime, root, budget)

    if kind == "num":
        return node.value.numerator * _inverse(node.value.denominator, prime) % prime
    if kind == "sym":
        return root if node.name == "i" else _hash(node.name, draw) % prime
    if kind == "neg":
        return -of(node.args[0]) % prime
    if kind == "add":
        return sum(of(part) for part in node.args) % prime
    if kind == "mul":
        return of(node.args[0]) * of(node.args[1]) % prime
    if kind == "div":
        return of(node.args[0]) * _inverse(of(node.args[1]), prime) % prime
    if kind == "pct":
        return of(node.args[0]) * _inverse(100, prime) % prime
    if kind == "deg":
        return of(node.args[0]) * _hash("\\pi", draw) * _inverse(180, prime) % prime
    if kind == "pow":
        exponent = exact(node.args[1], budget)
        if exponent.denominator != 1:
            raise NotRational
        base = of(node.args[0])
        if base == 0 and exponent <= 0:
            raise Undefined("zero to a power that is not positive")
        budget.charge(exponent.numerator.bit_length() / 64)
        return pow(base, int(exponent), prime)
    if kind in ("fact", "fact2", "binom"):
        return _products(node, prime, budget)
    value = exact(node, budget)
    return value.numerator * _inverse(value.denominator, prime) % prime


def _products(node: Node, prime: int, budget: Budget) -> int:
    whole = [exact(part, budget) for part in node.args]
    if any(value.denominator != 1 for value in whole):
        raise NotRational
    if any(value < 0 for value in whole):
        raise Undefined("factorial of a negative number")
    n = int(whole[0])
    if node.kind == "binom":
        k = int(whole[1])
        if k > n:
            return 0
        k = min(k, n - k)
        _charge_loop(k, budget)
        above = below = 1
        for step in range(k):
            above, below = above * (n - step) % prime, below * (step + 1) % prime
        return above * _inverse(below, prime) % prime
    _charge_loop(n, budget)
    result = 1
    for factor in range(n, 0, -1 if node.kind == "fact" else -2):
        result = result * factor % prime
    return result


def _charge_loop(count: int, budget: Budget) -> None:
    if count > _MAX_FACTORIAL:
        raise TooLaborious("a factorial too large")
    budget.charge(count / 20)


def _inverse(value: int, prime: int) -> int:
    if value % prime == 0:
        raise Undefined("division by zero")
    return pow(value, -1, prime)


def _hash(name: str, draw: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{draw} {name}".encode()).digest(), "big")


# --- as real and complex numbers ---


@lru_cache(maxsize=16)
def context_of(digits: int) -> Any:
    """An arithmetic of its own: mpmath's global one may be in use by others."""
    context = MPContext()
    context.dps = digits
    return context


def _has_i(node: Node) -> bool:
    return (node.kind == "sym" and node.name == "i") or any(map(_has_i, node.args))


def real_value(node: Node, draw: int, digits: int, budget: Budget) -> Any:
    """Value at a point, or None where there is none."""
    try:
        value = evaluate(node, draw, context_of(digits), budget)
    except (ArithmeticError, ValueError, TypeError, NotRational):
        return None
    return value if context_of(digits).isfinite(value) else None


def is_real(value: Any, context: Any) -> bool:
    """Whether what is imaginary in a value is rounding."""
    return abs(context.im(value)) <= abs(value) * context.mpf(10) ** (-DIGITS[0] // 2)


def real_equal(first: Node, second: Node, budget: Budget) -> bool:
    """Whether two expressions have one value at points where both are real. Raises Undefined, TooLaborious."""
    draws = REAL_DRAWS if symbols_of(first) | symbols_of(second) else 1
    is_complex = _has_i(first) or _has_i(second)
    budget.peak, level = 0.0, 0
    while True:
        digits = _LADDER[level]
        pairs = [[real_value(node, draw, digits[1], budget) for node in (first, second)] for draw in range(draws)]
        if budget.peak + DIGITS[0] <= digits[0] + 2:
            break
        level = next((n for n, own in enumerate(_LADDER) if own[0] + 2 >= budget.peak + DIGITS[0]), len(_LADDER))
        if level == len(_LADDER):
            raise TooLaborious("too many digits are lost")
    context = context_of(digits[1])
    known = [draw for draw in range(draws) if None not in pairs[draw]]
    if not known:
        raise Undefined("no value")
    real = [draw for draw in known if all(is_real(value, context) for value in pairs[draw])]
    if draws == 1 or is_complex or len(real) < _ENOUGH:
        # Without enough real points, complex ones decide; a value that is real in one only is a difference.
        real = known
    return all(_vanishes((first, second), draw, pairs[draw], digits, budget) for draw in real)


def _vanishes(nodes: tuple[Node, Node], draw: int, fine: list[Any], digits: tuple[int, int], budget: Budget) -> bool:
    """Whether the difference at a point goes to zero as digits are added."""
    context = context_of(digits[1])
    difference = abs(fine[0] - fine[1])
    size = max(abs(fine[0]), abs(fine[1]))
    if difference == 0:
        return True
    if difference > size * context.mpf(10) ** (-DIGITS[0] // 2):
        return 0 in fine and _is_noise(nodes, draw, budget)
    rough = [real_value(node, draw, digits[0], budget) for node in nodes]
    if None in rough:
        return False
    before = abs(context.mpmathify(rough[0]) - context.mpmathify(rough[1]))
    return not abs(before - difference) <= difference * context.mpf("1e-6")


def _is_noise(nodes: tuple[Node, Node], draw: int, budget: Budget) -> bool:
    """Whether what is left of a value against an exact zero (sin pi) is gone with the most digits there are.

    A value that stays at its size is none, however small.
    """
    few, many = _LADDER[-1]
    rough, fine = ([real_value(node, draw, digits, budget) for node in nodes] for digits in (few, many))
    if None in rough or None in fine:
        return False
    context = context_of(many)
    before, left = abs(context.mpmathify(rough[0]) - context.mpmathify(rough[1])), abs(fine[0] - fine[1])
    return bool(left < context.mpf(10) ** (-many * 9 // 10) and not abs(before - left) <= left * context.mpf("1e-6"))


def approximate(node: Node, budget: Budget) -> float:
    """A constant as a float, for ordering. Raises Undefined for what is not real or has no value."""
    if node.kind == "inf":
        return numbers.inf
    if node.kind == "neg" and node.args[0].kind == "inf":
        return -numbers.inf
    value = None if symbols_of(node) else real_value(node, 0, DIGITS[0], budget)
    if value is None or not is_real(value, context_of(DIGITS[0])):
        raise Undefined("not a real number")
    return float(context_of(DIGITS[0]).re(value))
