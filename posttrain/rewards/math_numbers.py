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
from fractions import Fraction
from functools import lru_cache
from typing import Any

from mpmath import MPContext

from posttrain.rewards.math_tree import Node

WORK = 40_000  # operations charged for one comparison of two answers; one costs some microseconds
_PRIMES = (2**127 - 735, 2**107 - 663)  # both are 1 modulo 4, so that -1 has a root; see `_checked_primes`
_MODULAR_DRAWS, _REAL_DRAWS, _ENOUGH = 3, 12, 3
# Digits of the two precisions; the pair is taken whose first exceeds the digits that sums lose by 60.
_LADDER = ((60, 140), (200, 280), (480, 560), (1040, 1120), (2160, 2240))
DIGITS = _LADDER[0]
_MAX_EXACT_BITS = 20_000
_MAX_FACTORIAL = 20_000


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


def same_value(first: Node, second: Node, budget: Budget) -> bool:
    """Whether two expressions are equal wherever both have a real value.

    A decimal number also equals an irrational or periodic value of which it is the correct rounding, to at least 6
    places and 6 digits, or to 10 digits.

    Raises:
        TooLaborious: it would take too long to find out. Undefined: an expression has no value anywhere.
    """
    from posttrain.rewards.math_decimals import is_rounding

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
    if not is_known and _real_equal(first, second, budget):
        return True
    return is_rounding(first, second, budget) or is_rounding(second, first, budget)


def _need_value(node: Node, budget: Budget) -> None:
    try:
        modular_zero(node, budget)
    except NotRational:
        if all(real_value(node, draw, DIGITS[0], budget) is None for draw in range(_REAL_DRAWS)):
            raise Undefined("no value") from None


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


# --- exactly ---


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
    if kind == "neg":
        return -values[0]
    if kind == "add":
        return sum(values, Fraction(0))
    if kind == "mul":
        return values[0] * values[1]
    if kind == "div":
        if values[1] == 0:
            raise Undefined("division by zero")
        return values[0] / values[1]
    if kind == "pct":
        return values[0] / 100
    if kind == "abs":
        return abs(values[0])
    return _exact_further(node, values)


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
    from posttrain.rewards.math_functions import evaluate

    try:
        value = evaluate(node, draw, context_of(digits), budget)
    except (ArithmeticError, ValueError, TypeError, NotRational):
        return None
    return value if context_of(digits).isfinite(value) else None


def is_real(value: Any, context: Any) -> bool:
    """Whether what is imaginary in a value is rounding."""
    return abs(context.im(value)) <= abs(value) * context.mpf(10) ** (-DIGITS[0] // 2)


def _real_equal(first: Node, second: Node, budget: Budget) -> bool:
    draws = _REAL_DRAWS if symbols_of(first) | symbols_of(second) else 1
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
        return False
    rough = [real_value(node, draw, digits[0], budget) for node in nodes]
    if None in rough:
        return False
    before = abs(context.mpmathify(rough[0]) - context.mpmathify(rough[1]))
    return not abs(before - difference) <= difference * context.mpf("1e-6")


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
