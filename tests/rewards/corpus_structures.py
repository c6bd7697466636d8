r"""Pairs of equal answers that are more than one number: units, points, intervals, sets, equations, words; by rule."""

from __future__ import annotations

import random
from collections.abc import Iterator

Pair = tuple[str, str, str]  # kind, reference, answer


def structured_pairs() -> Iterator[Pair]:
    """Every pair of every kind."""
    for rule in (_units, _money, _angles, _percent, _points, _intervals, _unions, _sets, _lists, _plus_minus):
        yield from rule()
    for rule in (_equations, _matrices, _cases, _words, _choices, _bases, _unicode, _layout):
        yield from rule()


def _units() -> Iterator[Pair]:
    rows = r"""
    5 ; 5\text{ cm}
    5\text{ cm} ; 5 cm
    5\text{ cm} ; 5\,\mathrm{cm}
    5\text{ cm} ; 5
    9.8\text{ m/s}^2 ; 9.8 m/s^2
    60\text{ km/h} ; 60 km/h
    60\text{ miles per hour} ; 60 mph
    100\text{ cm} ; 1\text{ m}
    2\text{ hours} ; 120 minutes
    1.5\text{ kg} ; 1500 g
    12\text{ square units} ; 12
    12\text{ cm}^2 ; 12 \text{ square cm}
    12\pi\text{ cm}^3 ; 12\pi \text{ cubic cm}
    36\pi ; 36\pi\text{ square inches}
    3\text{ apples} ; 3 apples
    3 ; 3 apples
    24\text{ hours} ; 24 hours
    7\text{ days} ; 7
    \frac{3}{4}\text{ inch} ; 0.75 inches
    15\text{ mph} ; 15
    8\text{ ways} ; 8
    1000 ; 1000 people
    """
    for reference, given in table(rows):
        yield "unit", reference, given


def _money() -> Iterator[Pair]:
    for n in ("5", "12.50", "1,250", "0.75"):
        plain = n.replace(",", "")
        for form in (rf"\${n}", f"${n}", f"€{n}", f"£{n}", f"{n} dollars", rf"{n}\text{{ dollars}}", f"{n} USD"):
            yield "money", plain, form
        yield "money", rf"\${n}", f"{plain} dollars"
    yield "money", r"\$0.50", "50 cents"
    yield "money", "-5", "-$5"


def _angles() -> Iterator[Pair]:
    for n in (30, 45, 60, 135):
        for form in (f"{n}°", rf"{n}^\circ", rf"{n}^{{\circ}}", f"{n} degrees", rf"{n}\text{{ degrees}}"):
            yield "angle", str(n), form
            yield "angle", rf"{n}^\circ", form


def _percent() -> Iterator[Pair]:
    for n in (5, 20, 50, 75, 150):
        yield "percent", rf"{n}\%", f"{n}%"
        yield "percent", rf"{n}\%", f"{n} percent"
        yield "percent", rf"{n}\%", str(n / 100)
        yield "percent", rf"\frac{{{n}}}{{100}}", f"{n}%"


def _points() -> Iterator[Pair]:
    source = random.Random(7)
    for _ in range(8):
        a, b, c = (source.randint(-9, 9) for _ in range(3))
        yield "point", f"({a},{b})", rf"\left({a}, {b}\right)"
        yield "point", f"({a},{b},{c})", f"( {a} , {b} , {c} )"
        yield "point", rf"(\frac{{{a}}}{{2}},{b})", f"({a / 2},{b})"
        yield "point", f"({a},{b})", f"(x,y)=({a},{b})"
    yield "point", r"(3,\frac{\pi}{2})", r"\left( 3, \pi/2 \right)"


def _intervals() -> Iterator[Pair]:
    for a, b in ((-1, 4), (0, 1), (2, 7)):
        yield "interval", f"({a},{b})", f"{a}<x<{b}"
        yield "interval", f"[{a},{b})", rf"{a}\le x<{b}"
        yield "interval", f"[{a},{b}]", rf"x \in [{a},{b}]"
        yield "interval", f"({a},{b}]", rf"\left({a},{b}\right]"
        yield "interval", f"({a},{b})", rf"{{x | {a}<x<{b}}}".replace("{x", r"\{x").replace(f"{b}}}", rf"{b}\}}")
        yield "interval", rf"[{a},\infty)", rf"x\geq {a}"
        yield "interval", rf"(-\infty,{b})", f"x<{b}"
        yield "interval", rf"(-\infty,{b}]", f"x ≤ {b}"
        yield "interval", f"x>{a}", f"{a}<x"
        yield "interval", f"{a}<x<{b}", f"{b}>x>{a}"
        yield "interval", f"{a}<x<{b}", f"x>{a} and x<{b}"
        yield "interval", f"({a},{b})", f"]{a},{b}["
    yield "interval", r"(-\infty,\infty)", r"\mathbb{R}"
    yield "interval", r"\mathbb{R}", "ℝ"


def _unions() -> Iterator[Pair]:
    for a, b in ((-1, 4), (0, 1), (2, 7)):
        union = rf"(-\infty,{a})\cup({b},\infty)"
        yield "union", union, rf"({b},\infty)\cup(-\infty,{a})"
        yield "union", union, f"x<{a} or x>{b}"
        yield "union", union, rf"x<{a} \text{{ or }} x>{b}"
        yield "union", union, f"(-∞,{a})∪({b},∞)"
        yield "union", rf"(-\infty,{a}]\cup[{b},\infty)", rf"x\le {a} or x\ge {b}"
        yield "union", rf"(-\infty,{a})\cup({a},\infty)", rf"x \neq {a}"
        yield "union", rf"(-\infty,{a})\cup({a},\infty)", rf"\mathbb{{R}}\setminus\{{{a}\}}"


def _sets() -> Iterator[Pair]:
    source = random.Random(8)
    for _ in range(6):
        a, b, c = source.sample(range(1, 30), 3)
        yield "set", rf"\{{{a},{b},{c}\}}", rf"\{{{c},{a},{b}\}}"
        yield "set", rf"\{{{a},{b}\}}", rf"\left\{{{b}, {a}\right\}}"
        yield "set", rf"\{{{a},{b}\}}", f"{a}, {b}"
        yield "set", rf"\{{{a},{b}\}}", rf"x\in\{{{b},{a}\}}"
    yield "set", r"\emptyset", r"\varnothing"
    yield "set", r"\emptyset", r"\{\}"
    yield "set", r"\{(1,2),(3,4)\}", r"\{(3,4),(1,2)\}"


def _lists() -> Iterator[Pair]:
    source = random.Random(9)
    for _ in range(6):
        a, b, c = source.sample(range(1, 30), 3)
        yield "list", f"{a}, {b}, {c}", f"{c},{b},{a}"
        yield "list", f"{a}, {b}", f"{a} and {b}"
        yield "list", f"{a}, {b}", rf"{b} \text{{ or }} {a}"
        yield "list", f"{a}, {b}, {c}", f"{a}, {b}, and {c}"
        yield "list", f"{a}, {b}", f"x={a} or x={b}"
        yield "list", f"{a}, {b}", f"x = {b}, {a}"


def _plus_minus() -> Iterator[Pair]:
    for a, b in ((1, 2), (3, 5), (-2, 7)):
        yield "plus-minus", rf"{a}\pm\sqrt{{{b}}}", rf"{a}-\sqrt{{{b}}}, {a}+\sqrt{{{b}}}"
        yield "plus-minus", rf"\pm {b}", f"{b}, -{b}"
        yield "plus-minus", rf"x=\pm {b}", f"x={b} or x=-{b}"
        yield "plus-minus", f"±{b}", rf"\{{-{b},{b}\}}"
        yield "plus-minus", rf"\frac{{{a}\pm\sqrt{{{b}}}}}{{2}}", rf"\frac{{{a}}}{{2}}\pm\frac{{\sqrt{{{b}}}}}{{2}}"


def _equations() -> Iterator[Pair]:
    rows = r"""
    5 ; x=5
    x = 5 ; 5
    2x+1 ; y = 2x+1
    y = 2x+1 ; 2x-y+1=0
    y = 2x+1 ; f(x) = 2x+1
    x^2+y^2=25 ; 25 = y^2 + x^2
    x^2+y^2=25 ; 2x^2+2y^2=50
    a=1, b=2 ; b = 2, a = 1
    x=1, y=2 ; x = 1 and y = 2
    f(x)=x^2 ; x^2
    5 ; 2+3=5
    0.5 ; x = \frac{1}{2} = 0.5
    \sqrt{2} ; x=\sqrt{2}\approx 1.414
    x+2y<3 ; 3 > 2y+x
    y \ge 2x ; 2x \le y
    A = \pi r^2 ; \pi r^2
    """
    for reference, given in table(rows):
        if (reference, given) != ("y = 2x+1", "f(x) = 2x+1"):  # two names: not decided to be one
            yield "equation", reference, given


def _matrices() -> Iterator[Pair]:
    for a, b, c, d in ((1, 2, 3, 4), (0, -1, 1, 0)):
        rows = rf"{a} & {b} \\ {c} & {d}"
        yield "matrix", rf"\begin{{pmatrix}}{rows}\end{{pmatrix}}", rf"\begin{{bmatrix}} {rows} \end{{bmatrix}}"
        yield (
            "matrix",
            rf"\begin{{pmatrix}}{rows}\end{{pmatrix}}",
            rf"\begin{{pmatrix}}{rows.replace(' ', '')}\end{{pmatrix}}",
        )
        yield (
            "matrix",
            rf"\begin{{pmatrix}}{a}\\{b}\end{{pmatrix}}",
            rf"\begin{{pmatrix}}{2 * a}/2\\{b}.0\end{{pmatrix}}",
        )
        yield (
            "matrix",
            rf"\begin{{pmatrix}}{a}&{b}\end{{pmatrix}}",
            rf"\left[\begin{{array}}{{cc}}{a} & {b}\end{{array}}\right]",
        )


def _cases() -> Iterator[Pair]:
    one = r"\begin{cases} x & x\ge 0 \\ -x & x<0 \end{cases}"
    yield "piecewise", one, r"\begin{cases} -x & \text{if } x<0 \\ x & \text{if } x\geq0 \end{cases}"
    yield "piecewise", one, r"\begin{cases} x, & x\ge 0, \\ -x, & x<0. \end{cases}"
    yield "piecewise", "f(x)=" + one, one


def _words() -> Iterator[Pair]:
    for word in ("Monday", "east", "no solution", "yes", "parallel", "infinitely many", "Alice", "odd", "hyperbola"):
        yield "words", rf"\text{{{word}}}", word
        yield "words", word, word.capitalize()
        yield "words", word, rf"\textbf{{{word}}}"
        yield "words", word, f"{word}."


def _choices() -> Iterator[Pair]:
    for letter in "ABCDE":
        yield "choice", letter, f"({letter})"
        yield "choice", rf"\text{{({letter})}}", letter
        yield "choice", rf"\textbf{{({letter})}}", f"({letter})"
        yield "choice", letter, rf"\text{{{letter}}}"
        yield "choice", f"({letter})", rf"\mathrm{{{letter}}}"


def _bases() -> Iterator[Pair]:
    for digits, base in (("2021", 5), ("1011", 2), ("777", 8)):
        yield "base", f"{digits}_{base}", f"{digits}_{{{base}}}"
        yield "base", rf"{digits}_{{{base}}}", rf"{digits}_{{\text{{{ {2: 'two', 5: 'five', 8: 'eight'}[base] }}}}}"
    yield "base", "2021", "2021_{10}"


def _unicode() -> Iterator[Pair]:
    rows = r"""
    x^2 ; x²
    x^{10}+y^3 ; x¹⁰+y³
    2\pi ; 2π
    3\cdot 4 ; 3·4
    12 ; ３×４
    \frac{1}{2} ; 1⁄2
    \sqrt{3}/2 ; √3/2
    \theta ; θ
    a_1 ; a₁
    (-\infty, 2] ; (−∞, 2]
    \alpha+\beta ; α+β
    6 ÷ 4 ; 1.5
    42 ; ４２
    42 ; 42​
    \sqrt{x+1} ; √(x+1)
    """
    for reference, given in table(rows):
        yield "unicode", reference, given


def _layout() -> Iterator[Pair]:
    for n in ("42", r"\frac{3}{4}", "x+1", "(1,2)"):
        for form in (
            f"${n}$",
            f"$${n}$$",
            rf"\({n}\)",
            rf"\[{n}\]",
            f"{n}.",
            f" {n} ",
            f"**{n}**",
            rf"{n}\!",
            rf"{n}\,",
        ):
            yield "layout", n, form
        yield "layout", n, rf"\displaystyle {n}"
        yield "layout", n, rf"\boxed{{{n}}}"
        yield "layout", rf"\boxed{{{n}}}", n


def table(rows: str) -> Iterator[tuple[str, str]]:
    for row in rows.strip().splitlines():
        reference, given = row.split(" ; ")
        yield reference.strip(), given.strip()
