"""Parts of the real line, however they are written: brackets, unions, inequalities, all reals without some."""

from __future__ import annotations

from posttrain.rewards.math_exact import Budget, Undefined, symbols_of
from posttrain.rewards.math_nodes import Node
from posttrain.rewards.math_numbers import approximate

OPPOSITE = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
REALS = Node("sym", name="set R")
Interval = tuple[Node, str, str, Node]  # left end, its bracket, the right one, right end


def items_of(node: Node) -> tuple[Node, ...]:
    """Items of a list; anything else is its own item."""
    return node.args if node.kind == "list" else (node,)


def intervals_of(node: Node, budget: Budget) -> list[Interval] | None:
    """Disjoint parts of the real line in order; None for what is no such set."""
    found = _raw_intervals(node, budget)
    if found is None:
        return None
    try:
        return sorted(found, key=lambda part: approximate(part[0], budget))
    except Undefined:
        return None


def _raw_intervals(node: Node, budget: Budget) -> list[Interval] | None:
    infinite, everything = Node("inf"), [(Node("neg", (Node("inf"),)), "(", ")", Node("inf"))]
    if node == REALS:
        return everything
    if node.kind == "tuple" and len(node.args) == 2:
        return [(node.args[0], node.name[0], node.name[1], node.args[1])]
    if node.kind == "setop" and node.name == "cup":
        parts = [_raw_intervals(part, budget) for part in node.args]
        return None if None in parts else [part for found in parts for part in found or []]
    if node.kind == "setop" and node.name == "setminus" and node.args[0] == REALS and node.args[1].kind == "set":
        points = sorted(node.args[1].args, key=lambda point: approximate(point, budget))
        ends = [Node("neg", (infinite,)), *points, infinite]
        return [(left, "(", ")", right) for left, right in zip(ends, ends[1:], strict=False)]
    if node.kind == "builder":
        return _raw_intervals(node.args[1], budget)
    if node.kind == "list" and _is_about_onevariable_of(node):
        parts = [_raw_intervals(item, budget) for item in node.args]
        if None in parts:
            return None
        flat = [part for found in parts for part in found or []]
        return _meeting(flat, budget) if node.name == "and" and len(flat) == 2 else flat
    return _of_relation(node) if node.kind == "rel" else None


def _is_about_onevariable_of(node: Node) -> bool:
    return all(item.kind == "rel" for item in node.args) and len({variable_of(item) for item in node.args}) == 1


def _meeting(parts: list[Interval], budget: Budget) -> list[Interval]:
    """Two rays that overlap are a bounded interval; two that do not were meant as a union."""
    for low, high in (parts, parts[::-1]):
        if _is_ray(low, high) and approximate(low[0], budget) < approximate(high[3], budget):
            return [(low[0], low[1], high[2], high[3])]
    return parts


def _is_ray(low: Interval, high: Interval) -> bool:
    return low[3].kind == "inf" and high[0] == Node("neg", (Node("inf"),)) and high[3].kind != "inf"


def variable_of(relation: Node) -> str | None:
    """The one variable that a relation is about, if it stands alone on a side; None otherwise."""
    names = [side.name for side in relation.args if side.kind == "sym" and symbols_of(side)]
    others = [side for side in relation.args if side.kind != "sym" and symbols_of(side)]
    return names[0] if len(names) == 1 and not others else None


def _of_relation(relation: Node) -> list[Interval] | None:
    variable, signs = variable_of(relation), relation.name.split()
    if variable is None or not set(signs) <= {"<", "<=", ">", ">=", "!="}:
        return None
    sides = list(relation.args)
    place = next(i for i, side in enumerate(sides) if side.kind == "sym" and side.name == variable)
    infinite, below = Node("inf"), Node("neg", (Node("inf"),))
    if len(sides) == 2:
        sign = signs[0] if place == 0 else OPPOSITE[signs[0]]
        end = sides[1 - place]
        if sign == "!=":
            return [(below, "(", ")", end), (end, "(", ")", infinite)]
        if sign in ("<", "<="):
            return [(below, "(", "]" if sign == "<=" else ")", end)]
        return [(end, "[" if sign == ">=" else "(", ")", infinite)]
    if len(sides) != 3 or place != 1 or "!=" in signs or signs[0][0] != signs[1][0]:
        return None
    if signs[0][0] == ">":
        sides, signs = sides[::-1], [OPPOSITE[sign] for sign in signs[::-1]]
    return [(sides[0], "[" if signs[0] == "<=" else "(", "]" if signs[1] == "<=" else ")", sides[2])]
