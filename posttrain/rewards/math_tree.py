r"""Answers as trees, by a recursive-descent parser of our own: text is never handed to an evaluator of Python code.

The tree keeps what computer algebra forgets: brackets, order, names, case, units, bases, both sides of a relation.
"""

from __future__ import annotations

from fractions import Fraction

from posttrain.rewards.math_macros import read, unit_behind
from posttrain.rewards.math_nodes import CURRENCY, Node, Opaque, number
from posttrain.rewards.math_text import FUNCTIONS, GREEK_NAMES, Token, Unreadable, tokens_of

MAX_DEPTH = 30
MAX_TOKENS = 1200
RELATIONS = dict(zip("= < > le ge ne in approx equiv".split(), "= < > <= >= != in ~ ==".split(), strict=True))
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_OPENING = {"vec", "hat", "widehat", "overrightarrow", "overline", "bar", "lfloor", "lceil", "langle"}
_CALLED = frozenset("fgh")


def parse(text: str) -> Node:
    """Tree of a cleaned answer. Raises Unreadable, or Opaque."""
    tokens = tokens_of(text)
    if not tokens or len(tokens) > MAX_TOKENS:
        raise Unreadable("nothing, or too much")
    parser = _Parser(tokens)
    tree = parser.listing()
    parser.end()
    return tree


class _Parser:
    def __init__(self, tokens: list[Token]):
        self.tokens, self.place, self.depth, self.bars = tokens, 0, 0, 0

    # --- looking and taking ---

    @property
    def next(self) -> Token:
        return self.tokens[self.place] if self.place < len(self.tokens) else Token("end", "")

    def peek(self, ahead: int = 1) -> Token:
        place = self.place + ahead
        return self.tokens[place] if place < len(self.tokens) else Token("end", "")

    def take(self) -> Token:
        token = self.next
        self.place += 1
        return token

    def takes(self, kind: str, *texts: str) -> Token | None:
        return self.take() if self.next.kind == kind and self.next.text in texts else None

    def need(self, kind: str, text: str) -> None:
        if not self.takes(kind, text):
            raise Unreadable(f"{text!r} is missing before {self.next.text!r}")

    def end(self) -> None:
        while self.next.kind == "op" and self.next.text in ".;,":
            self.take()
        if self.next.kind != "end":
            raise Unreadable(f"{self.next.text!r} is left over")

    def deeper(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("nested too deeply")

    # --- lists and relations ---

    def listing(self) -> Node:
        """Items with commas, semicolons, "and", "or" between them; one item stands for itself."""
        items, marks = [self.relation()], set()
        while True:
            logical = self.takes("command", "land", "lor")
            mark = logical or self.takes("op", ",", ";") or self.takes("word", "and", "or")
            if not mark:
                break
            if mark.text in ",;":
                extra = self.takes("word", "and", "or")
                mark = extra or mark
            if self.next.kind == "end" or self.next.text in ("}", ")"):
                break
            marks.add(mark.text.replace("lor", "or"))
            items.append(self.relation())
            if logical and not all(item.kind == "rel" for item in items):
                raise Opaque("a statement of logic")
        if len(items) == 1:
            return items[0]
        return Node("list", tuple(items), "or" if "or" in marks else "and")

    def relation(self) -> Node:
        self.takes("command", "approx")  # "about 3.1" states 3.1
        sides, signs = [self.union()], []
        while self.next.kind in ("op", "command") and self.next.text in RELATIONS:
            signs.append(RELATIONS[self.take().text])
            sides.append(self.union())
        if self.next.kind == "command" and self.next.text in ("pmod", "bmod", "mod"):
            self.take()
            sides[-1] = Node("mod", (sides[-1], self.argument()))
        if self.next.kind == "op" and self.next.text == ":" and self.bars == 0:
            parts = [sides[-1]]
            while self.takes("op", ":"):
                parts.append(self.union())
            sides[-1] = Node("ratio", tuple(parts))
        return Node("rel", tuple(sides), " ".join(signs)) if signs else sides[0]

    def union(self) -> Node:
        left = self.quantity()
        while self.next.kind == "command" and self.next.text in ("cup", "cap", "setminus"):
            name = self.take().text
            left = Node("setop", (left, self.quantity()), name)
        return left

    def quantity(self) -> Node:
        """A sum with a unit before or behind it."""
        sign = 1
        if self.next.text in ("-", "+") and self.peek().text in CURRENCY:
            sign = -1 if self.take().text == "-" else 1
        currency = self.takes("op", *CURRENCY)
        if self.next.text == "US" and self.peek().text == "$":
            self.place += 2
            currency = Token("op", "$")
        if self.next.kind == "word":
            return self.prose()
        value = self.sum()
        value = value if sign == 1 else Node("neg", (value,))
        while self.next.kind == "word" and self.next.text.lower() in _SCALES:
            value = Node("mul", (value, number(_SCALES[self.take().text.lower()])))
        unit = unit_behind(self, CURRENCY[currency.text] if currency else "")
        return Node("unit", (value,), unit) if unit else value

    def prose(self) -> Node:
        words: list[str] = []
        single, after = self.next, self.peek()
        is_name = len(single.text) == 1 or (single.text.isupper() and len(single.text) <= 3)
        if is_name and (after.kind in ("end", "op") or after.text in ("and", "or")):
            self.take()
            self.tokens[self.place - 1] = Token("symbol", single.text)
            self.place -= 1
            return self.sum()
        while self.next.kind in ("word", "symbol") and self.next.text not in ("and", "or"):
            words.append(self.take().text)
        if not words:
            raise Unreadable("a list without an item")
        return Node("text", name=" ".join(words))

    # --- arithmetic ---

    def sum(self) -> Node:
        self.deeper()
        parts = [self.signed()]
        while True:
            if self.takes("op", "+"):
                parts.append(self.signed())
            elif self.takes("op", "-"):
                parts.append(Node("neg", (self.signed(),)))
            elif mark := self.takes("command", "pm", "mp"):
                parts.append(Node("pm", (self.signed(),), mark.text))
            else:
                break
        self.depth -= 1
        return parts[0] if len(parts) == 1 else Node("add", tuple(parts))

    def signed(self) -> Node:
        if self.takes("op", "-"):
            return Node("neg", (self.signed(),))
        if self.takes("op", "+"):
            return self.signed()
        if mark := self.takes("command", "pm", "mp"):
            return Node("pm", (self.signed(),), mark.text)
        return self.product()

    def product(self) -> Node:
        left = self.mixed()
        while True:
            if self.takes("op", "*") or self.takes("command", "cdot", "times"):
                left = Node("mul", (left, self.after_sign()))
            elif self.takes("op", "/"):
                left = Node("div", (left, self.after_sign()))
            elif self.begins_factor() and (self.next.kind != "number" or self.peek(-1).text in ("!", ")")):
                left = Node("mul", (left, self.power()))
            else:
                return left

    def after_sign(self) -> Node:
        if self.takes("op", "-"):
            return Node("neg", (self.after_sign(),))
        return self.power()

    def mixed(self) -> Node:
        """A power, or a whole number and a fraction behind it that belong together."""
        first = self.next
        is_whole = first.kind == "number" and first.decimals is None and first.value.denominator == 1
        after = [self.peek(ahead) for ahead in range(1, 5)]
        pair = (after[0], after[2])
        is_plain = [token.kind for token in pair] == ["number"] * 2 and after[1].text == "/" and after[0].after_space
        if is_whole and is_plain and after[3].text not in ("/", "^", "!"):
            if any(token.value.denominator != 1 for token in pair) or not 0 < pair[0].value < pair[1].value:
                raise Unreadable("two numbers side by side")
            self.place += 4
            return number(first.value + pair[0].value / pair[1].value)
        if is_whole and after[0].text == "frac":
            self.take()
            whole_fraction = self.power()
            around = whole_fraction.kind if whole_fraction.kind in ("pct", "deg") else ""
            fraction = whole_fraction.args[0] if around else whole_fraction
            values = [part.value for part in fraction.args if part.kind == "num" and part.value.denominator == 1]
            if fraction.kind == "div" and len(values) == 2 and 0 < values[0] < values[1]:
                mixed = number(first.value + values[0] / values[1])
                return Node(around, (mixed,)) if around else mixed
            return Node("mul", (number(first.value), whole_fraction))
        return self.power()

    def begins_factor(self) -> bool:
        token = self.next
        if token.kind in ("number", "symbol"):
            return True
        if token.kind == "op":
            return token.text in "({" or (token.text == "|" and self.bars == 0)
        known = FUNCTIONS | GREEK_NAMES | _OPENING
        return token.kind == "command" and (
            token.text in known or token.text in ("frac", "binom", "infty", "{", "angle", "triangle", "ell", "hbar")
        )

    def power(self) -> Node:
        base = self.postfix(self.primary())
        while self.next.kind == "op" and self.next.text == "^":
            after = self.peek()
            closed = after.text == "{" and self.peek(2).text == "circ" and self.peek(3).text == "}"
            if after.text == "circ" or closed:
                self.place += 4 if closed else 2
                base = self.postfix(self.degrees(base))
                continue
            self.take()
            base = self.postfix(Node("pow", (base, self.exponent())))
        return base

    def degrees(self, value: Node) -> Node:
        scale = self.next
        if scale.text in ("C", "F") and scale.kind in ("symbol", "word"):
            self.take()
            return Node("unit", (value,), f"degree {scale.text}")
        return Node("deg", (value,))

    def exponent(self) -> Node:
        if self.takes("op", "-"):
            return Node("neg", (self.exponent(),))
        if self.takes("op", "+"):
            return self.exponent()
        base = self.primary()
        if self.next.text == "^" and self.next.kind == "op":  # a tower is read from above
            self.take()
            return Node("pow", (base, self.exponent()))
        return self.postfix(base)

    def postfix(self, node: Node) -> Node:
        while True:
            if self.takes("op", "!"):
                node = Node("fact2" if self.takes("op", "!") else "fact", (node,))
            elif self.takes("op", "%"):
                node = Node("pct", (node,))
            elif self.next.kind == "word" and self.next.text.lower() == "percent":
                self.take()
                node = Node("pct", (node,))
            else:
                return node

    # --- what is not divided further ---

    def primary(self) -> Node:
        self.deeper()
        token = self.take()
        if token.kind == "number":
            node = self.digits(token)
        elif token.kind == "symbol":
            node = self.symbol(token.text)
        elif token.kind == "op" and token.text in "([{]":
            node = self.bracket(token.text)
        elif token.kind == "op" and token.text == "|":
            self.bars += 1
            node = Node("abs", (self.sum(),))
            self.need("op", "|")
            self.bars -= 1
        elif token.kind == "command":
            node = self.command(token.text)
        else:
            raise Unreadable(f"{token.text!r} where a value should be")
        self.depth -= 1
        return node

    def digits(self, token: Token) -> Node:
        if self.next.text == "_" and token.decimals is None and token.value.denominator == 1:
            self.take()
            return Node("base", name=token.text, args=(self.argument(),))
        return Node("num", value=token.value, decimals=token.decimals)

    def symbol(self, name: str) -> Node:
        while self.next.kind == "op" and self.next.text in "_'":
            if self.take().text == "'":
                name += "'"
            else:
                name += "_" + self.raw_argument()
        is_probability = name == "P" and self.peek().text.isupper() and self.peek(2).text in (")", "|", ",")
        if (name.rstrip("'") in _CALLED or is_probability) and self.next.text == "(" and self.next.kind == "op":
            self.take()
            inside = self.listing()
            self.need("op", ")")
            return Node("call", inside.args if inside.kind == "list" else (inside,), name)
        return Node("sym", name=name)

    def bracket(self, opening: str) -> Node:
        bars, self.bars = self.bars, 0
        if opening == "{":
            inside = self.listing()
            self.need("op", "}")
            self.bars = bars
            return Node("set", inside.args) if inside.kind == "list" else inside
        items = [self.relation()]
        while self.takes("op", ",", ";"):
            items.append(self.relation())
        closing = self.take()
        self.bars = bars
        if closing.kind != "op" or closing.text not in ")][":
            raise Unreadable("a bracket that does not close")
        if len(items) == 1 and opening + closing.text in ("()", "[]"):
            return items[0]
        if len(items) == 1:
            raise Unreadable("brackets that do not match")
        # ]a, b[ is the open interval (a, b) of some countries.
        pair = ("(" if opening == "]" else opening) + (")" if closing.text == "[" else closing.text)
        return Node("tuple", tuple(items), pair)

    def argument(self) -> Node:
        """What a macro takes: a group, or one token; of a number behind a macro its first digit."""
        if self.takes("op", "{"):
            inside = self.listing()
            self.need("op", "}")
            return inside
        token = self.next
        if token.kind == "number" and token.text.isdigit() and len(token.text) > 1:
            rest = token.text[1:]
            self.tokens[self.place] = Token("number", rest, Fraction(int(rest)))
            return number(int(token.text[0]))
        return self.primary()

    def raw_argument(self) -> str:
        if not self.takes("op", "{"):
            return self.take().text
        depth, parts = 1, []
        while depth:
            token = self.take()
            if token.kind == "end":
                raise Unreadable("a subscript that does not close")
            depth += {"{": 1, "}": -1}.get(token.text, 0) if token.kind == "op" else 0
            parts.append(token.text if depth else "")
        return "".join(parts)

    def command(self, name: str) -> Node:
        return read(self, name)
