r"""Whether two answers say the same: their structure here, the values in it by `math_values`.

Order and kind of brackets, sets against tuples, units, bases, both sides of relations and names are compared; values
inside are compared as numbers. What is not decided is not equal.
"""

from __future__ import annotations

from fractions import Fraction

from posttrain.rewards.math_exact import Budget, Undefined, symbols_of
from posttrain.rewards.math_intervals import OPPOSITE, REALS, Interval, intervals_of, items_of, variable_of
from posttrain.rewards.math_nodes import Node, number
from posttrain.rewards.math_numbers import approximate
from posttrain.rewards.math_units import unit_of
from posttrain.rewards.math_values import same_value

_SYNONYMS = {
    "dne": "does not exist", "no solutions": "no solution", "no real solutions": "no real solution",
    "empty set": "empty set", "none of these": "none of the above", "infinitely many solutions": "infinitely many",
}  # fmt: skip
_SHOUTED = frozenset("YES NO TRUE FALSE NONE ODD EVEN DNE".split())
_MAX_ITEMS = 64


def equal(first: Node, second: Node, budget: Budget) -> bool:
    """Whether two answers are the same. Raises TooLaborious, or Undefined for a value that does not exist."""
    first, second = (_unfold(node) for node in (first, second))
    budget.charge()
    for one, other in ((first, second), (second, first)):
        verdict = _by_kind(one, other, budget)
        if verdict is not None:
            return verdict
    if first.kind != second.kind:
        return False if _is_structure(first) or _is_structure(second) else _scalars(first, second, budget)
    if first.kind in ("tuple", "matrix", "det", "row", "ratio", "mod", "builder", "setop"):
        same_size = len(first.args) == len(second.args) and first.name == second.name
        return same_size and all(equal(a, b, budget) for a, b in zip(first.args, second.args, strict=True))
    return _scalars(first, second, budget)


def _by_kind(one: Node, other: Node, budget: Budget) -> bool | None:
    """Verdict where the kind of one of them says how to compare; None where it does not."""
    kinds = {one.kind, other.kind}
    if "text" in kinds:
        return one.kind == other.kind and _words(one.name) == _words(other.name)
    intervals = [intervals_of(node, budget) for node in (one, other)]
    if None not in intervals and (
        kinds & {"rel", "setop", "builder"} or REALS in (one, other) or _mixed_relations(one, other)
    ):
        return _same_intervals(one, other, intervals, budget)
    if one.kind == "rel":
        apart = _componentwise(one) if other.kind == "list" else None
        return _relation(one, other, budget) if apart is None else equal(apart, other, budget)
    if one.kind == "list" and kinds <= {"list", "set"} or one.kind == other.kind == "set":
        return _unordered(one, other, budget)
    if one.kind == other.kind == "cases":
        return _matching(one.args, other.args, budget)
    if one.kind == "unit":
        return _units(one, other, budget)
    if one.kind == "base":
        return _bases(one, other, budget)
    if "inf" in (one.kind, *(part.kind for part in one.args if one.kind == "neg")):
        return one == other
    if one.kind == "set" and not one.args and other.kind == "text":
        return _words(other.name) == "empty set"
    return None


def _is_structure(node: Node) -> bool:
    return node.kind in (
        "list", "set", "tuple", "matrix", "det", "row", "cases", "rel", "setop", "ratio", "mod", "builder", "text",
    ) or node.name.startswith("set ")  # fmt: skip


def _scalars(first: Node, second: Node, budget: Budget) -> bool:
    degrees = [_degrees_outside_functions(node) for node in (first, second)]
    # One side may leave the degree sign away, as answers to "how many degrees" do.
    is_left_away = degrees[0] != degrees[1]
    if is_left_away and same_value(_without_degrees(first), _without_degrees(second), budget):
        return True
    return same_value(first, second, budget)


def _degrees_outside_functions(node: Node) -> bool:
    return node.kind == "deg" or (
        node.kind in ("neg", "add", "mul", "div") and any(map(_degrees_outside_functions, node.args))
    )


def _without_degrees(node: Node) -> Node:
    if node.kind == "deg":
        return node.args[0]
    if node.kind in ("neg", "add", "mul", "div"):
        return Node(node.kind, tuple(map(_without_degrees, node.args)))
    return node


def _words(text: str) -> str:
    words = [
        word if len(word) == 1 or (word.isupper() and word not in _SHOUTED and len(word) < 5) else word.lower()
        for word in text.split()
    ]
    joined = " ".join(words)
    return _SYNONYMS.get(joined, joined)


# --- several values ---


def _unfold(node: Node) -> Node:
    r"""The answer with \pm as a list of both, lists of lists flat, and a name before a list on each of its items."""
    if node.kind == "list":
        items = [part for item in node.args for part in items_of(_unfold(item))]
        if items and items[0].kind == "rel" and _name_of(items[0]) and not any(i.kind == "rel" for i in items[1:]):
            named = items[0]
            items = [named, *(Node("rel", (named.args[0], item), "=") for item in items[1:])]
        names = {_name_of(item) for item in items}
        if len(names) == 1 and None not in names and all(item.name == "=" for item in items):
            values = Node("list", tuple(item.args[-1] for item in items), node.name)
            return Node("rel", (items[0].args[0], values), "=")
        return Node("list", tuple(items), node.name)
    if node.kind == "rel":
        if node.name == "in" and _name_of(node):
            return _unfold(node.args[1]) if node.args[1].kind != "set" else node.args[1]
        return Node("rel", tuple(map(_unfold, node.args)), node.name)
    if node.kind == "set":
        return Node("set", tuple(part for item in node.args for part in items_of(_unfold(item))))
    if node.kind == "unit" and _has_sign(node):
        return Node("list", tuple(Node("unit", (item,), node.name) for item in items_of(_unfold(node.args[0]))), "and")
    if not _is_structure(node) and _has_sign(node):
        both = (_signed(node, True), _signed(node, False))
        return Node("list", both, "and")
    return node


def _has_sign(node: Node) -> bool:
    return node.kind == "pm" or any(map(_has_sign, node.args))


def _signed(node: Node, is_upper: bool) -> Node:
    parts = tuple(_signed(part, is_upper) for part in node.args)
    if node.kind == "pm":
        return parts[0] if (node.name == "pm") == is_upper else Node("neg", parts)
    return Node(node.kind, parts, node.name, node.value, node.decimals)


def _unordered(one: Node, other: Node, budget: Budget) -> bool:
    firsts, seconds = one.args, other.args
    names = [{_name_of(item) for item in items} for items in (firsts, seconds)]
    if any(len(own - {None}) > 1 for own in names) and names[0] != names[1]:
        return False  # a = 1, b = 2 says more than 1, 2
    if one.kind == other.kind == "set":
        firsts, seconds = _distinct(firsts, budget), _distinct(seconds, budget)
    return _matching(firsts, seconds, budget)


def _distinct(items: tuple[Node, ...], budget: Budget) -> tuple[Node, ...]:
    kept: list[Node] = []
    for item in items[:_MAX_ITEMS]:
        if not any(equal(item, other, budget) for other in kept):
            kept.append(item)
    return tuple(kept) + items[_MAX_ITEMS:]


def _matching(firsts: tuple[Node, ...], seconds: tuple[Node, ...], budget: Budget) -> bool:
    """Whether each item has its partner, each partner used once."""
    if len(firsts) != len(seconds) or len(firsts) > _MAX_ITEMS:
        return firsts == seconds
    left = list(seconds)
    for item in firsts:
        for other in sorted(left, key=lambda candidate: candidate != item):
            if equal(item, other, budget):
                left.remove(other)
                break
        else:
            return False
    return True


# --- units and bases ---


def _units(one: Node, other: Node, budget: Budget) -> bool:
    """An answer without a unit leaves it away; two units must measure the same."""
    first = unit_of(one.name)
    if other.kind != "unit":
        if not _degrees_outside_functions(other):
            return equal(one.args[0], other, budget)
        if first == (1, frozenset({("degree", 1)})):
            return equal(one.args[0], _without_degrees(other), budget)
        return first == (1, frozenset({("radian", 1)})) and same_value(one.args[0], other, budget)
    second = unit_of(other.name)
    if first is None or second is None:
        return equal(one.args[0], other.args[0], budget)
    if first[1] != second[1]:
        return False
    if first[0] == second[0]:
        return equal(one.args[0], other.args[0], budget)
    scaled = [Node("mul", (number(unit[0]), node.args[0])) for unit, node in ((first, one), (second, other))]
    return same_value(scaled[0], scaled[1], budget)


_BASE_WORDS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}


def _bases(one: Node, other: Node, budget: Budget) -> bool:
    base = _base(one)
    if base == 10:
        plain = number(Fraction(one.name))
        return equal(plain, number(Fraction(other.name)) if _base(other) == 10 else other, budget)
    return other.kind == "base" and base is not None and base == _base(other) and int(one.name) == int(other.name)


def _base(node: Node) -> int | None:
    if node.kind != "base":
        return None
    written = node.args[0]
    if written.kind == "num" and written.value.denominator == 1:
        return int(written.value)
    return _BASE_WORDS.get(written.name)


# --- relations ---


def _name_of(node: Node) -> str | None:
    """What the first side of an equation names, where it is a name: x, x_1, f(x), |AB|, (x, y); None otherwise."""
    if node.kind != "rel" or not set(node.name.split()) <= {"=", "~", "in"}:
        return None
    return _as_name(node.args[0])


def _as_name(node: Node) -> str | None:
    if node.kind == "mul" and node.args[0] == Node("sym", name="m"):  # the measure of an angle
        return _as_name(node.args[1]) if node.args[1].name.startswith("\\angle") else None
    if node.kind == "sym" and node.name not in ("e", "i", "\\pi") and not node.name.startswith("set "):
        return node.name
    if node.kind in ("call", "abs", "tuple"):
        names = [_as_name(part) if part.kind != "num" else str(part.value) for part in node.args]
        return None if None in names else f"{node.kind} {node.name}({','.join(map(str, names))})"
    return None


def _componentwise(relation: Node) -> Node | None:
    """(x, y) = (1, 2) as x = 1, y = 2; None for other relations."""
    sides = relation.args
    if relation.name != "=" or [side.kind for side in sides] != ["tuple"] * 2 or not _as_name(sides[0]):
        return None
    pairs = list(zip(sides[0].args, sides[1].args, strict=False))
    return Node("list", tuple(Node("rel", pair, "=") for pair in pairs), "and")


def _relation(one: Node, other: Node, budget: Budget) -> bool:
    """An equation or inequality against an answer of any kind."""
    name, value = _stated(one, budget)
    if other.kind != "rel":
        return value is not None and equal(value, other, budget)
    other_name, other_value = _stated(other, budget)
    if value is not None and other_value is not None and name == other_name:
        return equal(value, other_value, budget)
    signs = one.name.split(), other.name.split()
    if len(signs[0]) != 1 or len(signs[1]) != 1 or any(map(_is_structure, (*one.args, *other.args))):
        return signs == (signs[1],) * 2 and all(equal(a, b, budget) for a, b in zip(one.args, other.args, strict=True))
    return _proportional(one, other, budget)


def _stated(relation: Node, budget: Budget) -> tuple[str | None, Node | None]:
    """(name, value) that a chain of equations states; a value of None for a relation that states none."""
    signs = relation.name.split()
    if not set(signs) <= {"=", "~"}:
        return None, None
    name, sides = _name_of(relation), list(relation.args)
    if name is not None and any(name in symbols_of(side) for side in sides[1:]):
        return None, None  # x = x + 1 says nothing of x
    if name is None and _as_name(sides[-1]) and len(sides) == 2 and signs == ["="] and not symbols_of(sides[0]):
        name, sides = _as_name(sides[-1]), sides[::-1]
    values = sides[1:] if name is not None else sides
    if "~" in signs:  # what follows "is about" is not the answer
        values = values[: max(1, signs.index("~") + (0 if name is not None else 1))]
    elif name is None and any(map(symbols_of, sides)):
        return None, None
    if all(equal(values[0], value, budget) for value in values[1:]):
        return name, values[-1]
    return name, None


def _proportional(one: Node, other: Node, budget: Budget) -> bool:
    """Whether two equations or inequalities say the same: both sides' difference is a multiple of the other's."""
    if one == other:
        return True
    sides = []
    for relation in (one, other):
        left, right = relation.args
        sign = relation.name
        if sign in (">", ">="):
            left, right, sign = right, left, OPPOSITE[sign]
        if sign not in ("=", "!=", "<", "<="):
            return one == other
        sides.append((Node("add", (left, Node("neg", (right,)))), sign))
    (first, sign), (second, other_sign) = sides
    if sign != other_sign or not symbols_of(first) or symbols_of(first) != symbols_of(second):
        return False
    # The factor is what both are at one point, where each symbol has its own value.
    at_point = [_at_point(node) for node in (first, second)]
    try:
        factor = approximate(at_point[0], budget) / approximate(at_point[1], budget)
    except (Undefined, ZeroDivisionError, OverflowError):
        return False
    if sign in ("<", "<=") and factor <= 0:
        return False
    crosswise = [Node("mul", (first, at_point[1])), Node("mul", (second, at_point[0]))]
    return same_value(crosswise[0], crosswise[1], budget)


def _at_point(node: Node) -> Node:
    if node.kind == "sym" and node.name not in ("e", "i", "\\pi"):
        digits = sum(ord(letter) * 31**place for place, letter in enumerate(node.name[:20]))
        return number(Fraction(digits % 997 + 3, 409))
    return Node(node.kind, tuple(map(_at_point, node.args)), node.name, node.value, node.decimals)


# --- intervals ---


def _mixed_relations(one: Node, other: Node) -> bool:
    return any(item.kind == "rel" and item.name != "=" for node in (one, other) for item in items_of(node))


def _same_intervals(one: Node, other: Node, parts: list[list[Interval] | None], budget: Budget) -> bool:
    names = [{variable_of(item) for item in items_of(node) if item.kind == "rel"} for node in (one, other)]
    if names[0] and names[1] and names[0] != names[1]:
        return False
    first, second = parts[0] or [], parts[1] or []
    return len(first) == len(second) and all(
        a[1] == b[1] and a[2] == b[2] and equal(a[0], b[0], budget) and equal(a[3], b[3], budget)
        for a, b in zip(first, second, strict=True)
    )
