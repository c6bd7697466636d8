"""Parts of an answer, of which the parser makes trees."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

CURRENCY = {"$": "dollar", "€": "euro", "£": "pound", "¥": "yen", "₹": "rupee"}


class Opaque(Exception):
    """The answer holds an operation that is deliberately not carried out."""


@dataclass(frozen=True)
class Node:
    """A part of an answer; which `kind`s there are is told by the parser's methods that make them."""

    kind: str
    args: tuple[Node, ...] = ()
    name: str = ""
    value: Fraction = Fraction(0)
    decimals: int | None = None


def number(value: int | Fraction, decimals: int | None = None) -> Node:
    """A number as it was written."""
    return Node("num", value=Fraction(value), decimals=decimals)
