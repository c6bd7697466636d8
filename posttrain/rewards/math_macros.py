r"""What LaTeX macros and named functions stand for, as parts of the tree: the second half of the parser."""

from __future__ import annotations

from typing import Any

from posttrain.rewards.math_nodes import CURRENCY, Node, Opaque, number
from posttrain.rewards.math_text import FUNCTIONS, GREEK_NAMES, Unreadable

OPAQUE = frozenset(
    "sum prod int iint oint lim limsup liminf partial nabla Gamma to mapsto forall exists implies iff Rightarrow "
    "rightarrow".split()
)
_MATRICES = {"pmatrix", "bmatrix", "Bmatrix", "matrix", "smallmatrix", "array", "vmatrix", "Vmatrix"}
_ORNAMENTS = {"vec", "hat", "widehat", "overrightarrow", "overline", "bar", "tilde", "dot", "mathcal", "mathfrak"}
_CLOSING = {"lfloor": ("rfloor", "floor"), "lceil": ("rceil", "ceil")}
_NO_UNIT = frozenset(
    "not no is are was were isn wrong less more fewer least most than plus minus times divided over half halves "
    "double twice maybe perhaps but except about around point third thirds fourths quarters percent "
    # What multiplies, changes or denies the number is no unit, nor is a second number.
    "quarter fifth fifths sixth sixths sevenths eighth eighths ninths tenth tenths sixteenths hundredth hundredths "
    "thousandth thousandths millionths tens hundreds thousands millions billions lakh crore score gross googol mil bn "
    "factorial root rooted doubled tripled halved inverse reciprocal opposite complement negative "
    "positive cent. pct mille permille permil basis base modulo mod choose remainder zero one two three four five six "
    "seven eight nine ten eleven twelve twenty thirty forty fifty sixty seventy eighty ninety false untrue incorrect "
    "true nope never none neither nor guess unless otherwise instead rather alternatively versus vs bound ish "
    "roughly nearly almost below above under beyond max sin cos tan log ln sqrt exp percentage dozen dozens "
    "ones twos threes fours fives sixes sevens eights nines zeros zeroes halved roots "
    "factorials reciprocals inverses opposites negatives doubles multiples parts always versus does".split()
)
_NAMES = {"angle", "triangle", "ell", "hbar", "prime", "star", "bullet"}


def read(parser: Any, name: str) -> Node:
    """The part of a tree that begins with this command; the parser stands behind its name."""
    if name == "frac":
        return Node("div", (parser.argument(), parser.argument()))
    if name == "binom":
        return Node("binom", (parser.argument(), parser.argument()))
    if name == "sqrt":
        return _root(parser)
    if name == "infty":
        return Node("inf")
    if name == "emptyset":
        return Node("set")
    if name == "{":
        return _set(parser)
    if name in _CLOSING:
        closing, function = _CLOSING[name]
        inside = parser.sum()
        parser.need("command", closing)
        return Node("fn", (inside,), function)
    if name == "langle":
        items = [parser.relation()]
        while parser.takes("op", ","):
            items.append(parser.relation())
        parser.need("command", "rangle")
        return Node("tuple", tuple(items), "()")
    if name.startswith("begin "):
        return _environment(parser, name.removeprefix("begin "))
    if name == "boxed":
        return parser.argument()
    if name == "Gamma" and parser.next.text == "(":
        raise Opaque(name)
    if name in FUNCTIONS:
        return _function(parser, name)
    if name in GREEK_NAMES:
        return Node("sym", name="\\pi") if name == "pi" else parser.symbol("\\" + name)
    if name in _ORNAMENTS:
        return parser.symbol(f"{name} {parser.raw_argument()}")
    if name in _NAMES:
        follows = parser.take().text if parser.next.kind == "symbol" else ""
        while follows and parser.next.kind == "symbol" and not parser.next.after_space:
            follows += parser.take().text
        return parser.symbol(f"\\{name} {follows}".strip())
    if name in OPAQUE:
        raise Opaque(name)
    raise Unreadable(f"macro {name}")


def _root(parser: Any) -> Node:
    degree = number(2)
    if parser.takes("op", "["):
        degree = parser.sum()
        parser.need("op", "]")
    return Node("root", (parser.primary(), degree))


def _set(parser: Any) -> Node:
    bars, parser.bars = parser.bars, 1
    if parser.takes("command", "}"):
        return Node("set")
    items = [parser.relation()]
    builder = None
    while not parser.takes("command", "}"):
        if parser.takes("op", "|", ":"):
            builder = parser.listing()
        elif parser.takes("op", ",", ";"):
            if not (parser.next.kind == "op" and parser.next.text == "..."):
                items.append(parser.relation())
            else:
                raise Opaque("a set that goes on")
        else:
            raise Unreadable("a set that does not close")
    parser.bars = bars
    if builder is not None:
        return Node("builder", (items[0], builder))
    return Node("set", tuple(items))


def _environment(parser: Any, name: str) -> Node:
    if name not in _MATRICES and name not in ("cases", "aligned", "align"):
        raise Unreadable(f"environment {name}")
    rows: list[list[Node]] = [[]]
    while not parser.takes("command", f"end {name}"):
        if parser.takes("op", "&"):
            continue
        if parser.takes("command", "\\"):
            rows.append([])
            continue
        if name == "cases":
            rows[-1].append(_case(parser))
        else:
            rows[-1].append(parser.relation())
            parser.takes("op", ",")
    filled = [Node("row", tuple(row)) for row in rows if row]
    if name in ("aligned", "align"):
        return Node("list", tuple(item for row in filled for item in row.args), "and")
    return Node({"cases": "cases", "vmatrix": "det", "Vmatrix": "det"}.get(name, "matrix"), tuple(filled))


def _case(parser: Any) -> Node:
    """A value or a condition of a piecewise definition, without the words and commas around it."""
    while parser.takes("op", ",", ".") or parser.takes("word", "if", "for", "when", "If", "For"):
        continue
    if parser.next.kind == "word":
        return parser.prose()
    item: Node = parser.relation()
    while parser.takes("op", ",", ".", ";"):
        continue
    return item


def _function(parser: Any, name: str) -> Node:
    subscript = power = None
    while parser.next.kind == "op" and parser.next.text in "_^":
        if parser.take().text == "_":
            subscript = parser.argument()
        else:
            power = parser.exponent()
    argument = _argument(parser)
    if subscript is not None and name != "log":
        raise Unreadable("an index on a function")
    if name == "cbrt":
        node = Node("root", (argument, number(3)))
    elif name == "exp":
        node = Node("pow", (Node("sym", name="e"), argument))
    elif name == "abs":
        node = Node("abs", (argument,))
    elif name == "log" and subscript is not None:
        node = Node("div", (Node("fn", (argument,), "ln"), Node("fn", (subscript,), "ln")))
    else:
        arguments = argument.args if argument.kind in ("tuple", "list") else (argument,)
        node = Node("fn", arguments, name)
    if power is None:
        return node
    if power.kind == "neg" and power.args[0] == number(1) and name in ("sin", "cos", "tan", "cot", "sec", "csc"):
        return Node("fn", node.args, "arc" + name)
    return Node("pow", (node, power))


def _argument(parser: Any) -> Node:
    """What a function is applied to: a bracket, or the product behind it up to the next function or sign."""
    if parser.next.kind == "op" and parser.next.text in "([{|":
        node: Node = parser.primary()
        return node
    node = parser.power()
    while parser.begins_factor() and parser.next.kind != "number" and parser.next.text not in FUNCTIONS - {"sqrt"}:
        if parser.next.kind == "op" and parser.next.text == "(":
            break
        node = Node("mul", (node, parser.power()))
    return node


def unit_behind(parser: Any, currency: str) -> str:
    """The words behind a quantity, joined by spaces, with powers and quotients; `currency` is the sign before it.

    Raises Unreadable for words that change what is said: "5 more than x", "5 not".
    """
    words: list[str] = []
    if not currency and parser.next.kind == "op" and parser.next.text in CURRENCY:
        return CURRENCY[parser.take().text]
    while True:
        token = parser.next
        if token.kind == "word" and token.text.lower() not in ("and", "or", "if"):
            words.append(token.text)
        elif words and token.kind == "op" and token.text in "/^-*{}" and parser.peek().kind != "end":
            words += [token.text] if token.text not in "{}" else []
        elif words and token.kind == "number" and words[-1] in ("^", "-"):
            words.append(token.text)
        elif words and token.kind == "command" and token.text in ("cdot", "times"):
            words.append("*")
        elif words and token.kind == "symbol":
            words.append(token.text)
        elif not (words and token.text == "}" and "^" in words):
            break
        parser.take()
    if len(words) > 8 or "per cent" in " ".join(words).lower() or any(word.lower() in _NO_UNIT for word in words):
        raise Unreadable("words that are no unit")
    if currency and words and words[0].lower().removesuffix("s") in (currency, "usd", "eur"):
        words = words[1:]
    return " ".join([currency, *words] if currency else words)
