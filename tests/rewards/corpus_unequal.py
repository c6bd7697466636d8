r"""Pairs of answers that are not equal, made by rule; each kind is one thing that must count."""

from __future__ import annotations

import random
from collections.abc import Iterator

Pair = tuple[str, str, str]  # kind, reference, answer


def unequal_pairs() -> Iterator[Pair]:
    """Every pair of every kind."""
    for rule in (
        _near_numbers,
        _signs,
        _constants,
        _cut_decimals,
        _case,
        _letters,
        _words,
        _left_sides,
        _bases,
        _units,
    ):
        yield from rule()
    for rule in (
        _percent,
        _brackets,
        _order,
        _counts,
        _intervals,
        _powers,
        _polynomials,
        _functions,
        _large,
        _guesses,
        _words_behind,
    ):
        yield from rule()
    yield from _named()


def _both(kind: str, one: str, other: str) -> Iterator[Pair]:
    yield kind, one, other
    yield kind, other, one


def _near_numbers() -> Iterator[Pair]:
    source = random.Random(11)
    for _ in range(20):
        n = source.randint(10, 10**9)
        yield "near number", str(n), str(n + source.choice([-1, 1]))
        yield "near number", str(n), f"{n}0"
        yield "near number", str(n), f"{n}.01"
        a, b = source.randint(1, 50), source.randint(2, 50)
        yield "near number", rf"\frac{{{a}}}{{{b}}}", rf"\frac{{{a + 1}}}{{{b}}}"
        yield "near number", f"{a}/{b}", f"{a}/{b + 1}"
        yield from _both("near number", f"{a}.{b}", f"{a},{b}")
    yield from _both("near number", "1", "1.0000001")
    yield from _both("near number", "1000000", "1000001")
    yield "near number", "42", "4 2"
    yield "near number", r"2\frac{1}{2}", "1"
    yield "near number", "1 1/2", "11/2"


def _signs() -> Iterator[Pair]:
    for text in ("42", r"\frac{1}{2}", r"\sqrt{3}", "x+1", "(1,2)", "2+3i"):
        yield from _both(
            "sign", text, f"-{text}" if text[0] not in "x2(" else {"x": "-x-1", "2": "2-3i"}.get(text[0], "(-1,2)")
        )
    yield "sign", r"\pm 2", "2"
    yield "sign", "2", r"\pm 2"
    yield "sign", "|x|", "x"


def _constants() -> Iterator[Pair]:
    tiny = ("1.6e-19", "9.1e-31", "6.626e-34", "1.38e-23", "8.85e-12", "1e-9", "0", r"6.67\times 10^{-11}")
    for place, one in enumerate(tiny):
        for other in tiny[place + 1 :]:
            yield from _both("small constant", one, other)
    yield from _both("small constant", "e^{-100}", "0")
    yield from _both("small constant", "e^{-100}", "e^{-101}")
    yield from _both("small constant", "6.02e23", "6.03e23")
    yield from _both("small constant", r"10^{-20}\pi", r"10^{-20}e")


def _cut_decimals() -> Iterator[Pair]:
    rows = ((r"\pi", "3.14"), (r"\pi", "3.1416"), (r"\sqrt{2}", "1.41"), (r"\frac{1}{3}", "0.33"), ("e", "2.718"))
    for value, text in (*rows, (r"\frac{2}{3}", "0.667"), (r"\sqrt{3}", "1.732"), (r"\frac{1}{7}", "0.1429")):
        yield from _both("cut decimal", value, text)
    yield from _both("cut decimal", r"\pi", r"\frac{22}{7}")
    yield from _both("cut decimal", r"\pi", r"\frac{355}{113}")
    yield from _both("cut decimal", r"0.\overline{3}", "0.3")
    yield from _both("cut decimal", r"0.\overline{36}", r"0.3\overline{6}")
    yield from _both("cut decimal", r"\sqrt{2}", "1.414215")
    yield from _both("cut decimal", r"\sqrt{2}+\sqrt{3}", r"\sqrt{9.9}")


def _case() -> Iterator[Pair]:
    yield from _both("case", "R-r", "0")
    yield from _both("case", r"\frac{R}{r}", "1")
    for one, other in (("x", "X"), ("2a+B", "2A+b"), ("n", "N"), ("(a)", "(A)"), ("a", "A"), (r"\Omega", r"\omega")):
        yield from _both("case", one, other)
    for one, other in ((r"\pi R^2", r"\pi r^2"), ("x_a", "x_A"), ("f(x)", "F(x)"), (r"\phi", r"\Phi"), ("V/v", "v/V")):
        yield from _both("case", one, other)


def _letters() -> Iterator[Pair]:
    names = ("BAC", "CAB", "ABC", "ACB", "BCA", "CBA")
    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            yield "letters", one, other
    for one, other in (("AB", "BA"), (r"\angle ABC", r"\angle ACB"), ("x", "y"), ("a+b", "a+c"), ("xy", "xz")):
        yield from _both("letters", one, other)
    for one, other in (("A", "B"), ("(A)", "(C)"), (r"\textbf{(D)}", "E"), (r"\alpha", r"\beta"), ("x_1", "x_2")):
        yield from _both("letters", one, other)
    yield from _both("letters", r"\triangle ABC", r"\triangle DEF")
    yield from _both("letters", "x'", "x")


def _words() -> Iterator[Pair]:
    for one, other in (("no solution", "solution no"), ("east", "seat"), ("Monday", "Tuesday"), ("yes", "no")):
        yield from _both("words", one, other)
    for one, other in (("listen", "silent"), ("odd", "even"), ("true", "false"), ("no", "on"), ("north", "thorn")):
        yield from _both("words", rf"\text{{{one}}}", other)
    yield from _both("words", "no solution", "0")
    yield from _both("words", r"\text{infinitely many}", r"\infty")
    yield from _both("words", "Alice", "Bob")
    yield from _both("words", "undefined", "0")
    yield from _both("words", "none", r"\{0\}")
    yield from _both("words", "red green blue", "blue green red")


def _left_sides() -> Iterator[Pair]:
    for n in (2, 7, 42):
        for left in ("x^2", f"{n + 1}", "2x", "x+1", "-x", r"\sqrt{x}", r"\sin x", "3y", "1"):
            yield from _both("left side", str(n), f"{left}={n}")
        yield from _both("left side", f"x={n}", f"y={n}")
        yield from _both("left side", f"x={n}", f"x^2={n}")
        yield from _both("left side", f"x<{n}", f"y<{n}")
        yield from _both("left side", f"x={n}", f"x>{n}")
        yield from _both("left side", f"x^2+y^2={n}", f"x^2-y^2={n}")
    yield from _both("left side", "f(x)=x^2", "g(x)=x^2")
    yield from _both("left side", "y=2x+1", "x=2y+1")


def _named() -> Iterator[Pair]:
    for a, b in ((1, 2), (3, -5), (0, 7)):
        yield from _both("named", f"a={a}, b={b}", f"{b},{a}")
        yield from _both("named", f"a={a}, b={b}", f"a={b}, b={a}")
        yield from _both("named", f"a={a}, b={b}", f"a={a}, c={b}")
        yield from _both("named", f"a={a}, b={b}", f"a={a}")
        yield from _both("named", f"x={a}, y={b}", f"({b},{a})")


def _bases() -> Iterator[Pair]:
    for digits in ("2021", "1011", "110"):
        yield from _both("base", f"{digits}_5", f"{digits}_7")
        yield from _both("base", f"{digits}_{{3}}", f"{digits}_{{12}}")
        yield from _both("base", f"{digits}_5", digits)
        yield from _both("base", f"{digits}_5", f"{digits}0_5")


def _units() -> Iterator[Pair]:
    for n in (5, 12):
        for one, other in (("cm", "m"), ("cm", "cm^2"), ("kg", "g"), ("hours", "minutes"), ("apples", "pears")):
            yield from _both("unit", rf"{n}\text{{ {one}}}", rf"{n}\text{{ {other}}}")
        yield from _both("unit", rf"{n}\text{{ km/h}}", rf"{n}\text{{ m/s}}")
        yield from _both("unit", f"{n} cm", f"{n + 1} cm")
        yield from _both("unit", f"${n}", f"€{n}")
        yield from _both("unit", rf"\${n}", f"{n} cents")
        yield from _both("unit", f"{n}°", rf"{n}\text{{ radians}}")
        yield from _both("unit", str(n), f"{n + 1} cm")
    yield from _both("unit", r"60^\circ", r"61^\circ")


def _percent() -> Iterator[Pair]:
    for n in (5, 20, 50, 100):
        for form in (rf"{n}\%", f"{n}%", f"{n} percent"):
            yield from _both("percent", str(n), form)
        yield from _both("percent", rf"{n}\%", rf"{n + 1}\%")
        yield from _both("percent", rf"0.{n}\%", f"0.{n}")


def _brackets() -> Iterator[Pair]:
    for a, b in ((1, 2), (-3, 4), (0, 5)):
        forms = (f"({a},{b})", f"[{a},{b}]", f"({a},{b}]", f"[{a},{b})", rf"\{{{a},{b}\}}")
        for place, one in enumerate(forms):
            for other in forms[place + 1 :]:
                yield from _both("brackets", one, other)
        yield from _both("brackets", forms[0], rf"\begin{{vmatrix}}{a}&{b}\end{{vmatrix}}")
        yield from _both("brackets", forms[0], str(a))


def _order() -> Iterator[Pair]:
    for a, b, c in ((1, 2, 3), (4, -5, 6)):
        yield from _both("order", f"({a},{b})", f"({b},{a})")
        yield from _both("order", f"({a},{b},{c})", f"({c},{b},{a})")
        yield from _both("order", f"{a}:{b}", f"{b}:{a}")
        yield from _both("order", f"{a}/{b}", f"{b}/{a}")
        yield from _both("order", f"x-{a}", f"{a}-x")
        rows = rf"\begin{{pmatrix}}{a}&{b}\\{b}&{c}\end{{pmatrix}}"
        yield from _both("order", rows, rf"\begin{{pmatrix}}{b}&{a}\\{c}&{b}\end{{pmatrix}}")
        column = rf"\begin{{pmatrix}}{a}\\{b}\end{{pmatrix}}"
        yield from _both("order", column, rf"\begin{{pmatrix}}{a}&{b}\end{{pmatrix}}")
    yield from _both("order", "10:30", "1:3")


def _counts() -> Iterator[Pair]:
    for a, b, c in ((1, 2, 3), (4, 5, 6)):
        yield from _both("count", str(a), f"{a}, {b}")
        yield from _both("count", str(a), f"{a} or {b}")
        yield from _both("count", f"{a},{b}", f"{a},{b},{c}")
        yield from _both("count", rf"\{{{a},{b}\}}", rf"\{{{a},{b},{c}\}}")
        yield from _both("count", f"({a},{b})", f"({a},{b},{c})")
        yield from _both("count", f"x={a}", f"x={a} or x={b}")
        yield from _both("count", rf"\{{{a}\}}", r"\emptyset")
        yield from _both("count", f"{a}, {a}", f"{a}, {b}")


def _intervals() -> Iterator[Pair]:
    for a, b in ((1, 4), (-2, 0)):
        yield from _both("interval", f"x<{b}", rf"x\le {b}")
        yield from _both("interval", f"x<{b}", f"x>{b}")
        yield from _both("interval", f"({a},{b})", f"({a},{b + 1})")
        yield from _both("interval", rf"({a},\infty)", rf"[{a},\infty)")
        yield from _both("interval", rf"(-\infty,{a})\cup({b},\infty)", rf"(-\infty,{b})\cup({a},\infty)")
        yield from _both("interval", rf"(-\infty,{a})\cup({b},\infty)", rf"(-\infty,{a}]\cup({b},\infty)")
        yield from _both("interval", f"{a}<x<{b}", f"x<{a} or x>{b}")
        yield from _both("interval", rf"x\ne {a}", f"x={a}")
        yield from _both("interval", rf"\mathbb{{R}}\setminus\{{{a}\}}", r"\mathbb{R}")
        yield from _both("interval", rf"({a},\infty)", rf"({a},-\infty)")
    yield from _both("interval", r"\mathbb{R}", r"\mathbb{Z}")
    yield from _both("interval", r"\infty", r"-\infty")


def _powers() -> Iterator[Pair]:
    for one, other in (("2^{10}", "10^2"), ("2^{-3}", "-8"), ("x^2", "2x"), ("x^2", "x^3"), (r"\sqrt{2}", "2^{2}")):
        yield from _both("power", one, other)
    for one, other in ((r"\sqrt[3]{2}", r"\sqrt{3}"), ("x^{12}", "x^12y"), ("2^{2^3}", "(2^2)^3"), ("-2^2", "(-2)^2")):
        yield from _both("power", one, other)
    for one, other in ((r"\sqrt{x^2}", "x"), (r"\sqrt{x+y}", r"\sqrt{x}+\sqrt{y}"), ("5!", "5"), ("5!!", "120")):
        yield from _both("power", one, other)


def _polynomials() -> Iterator[Pair]:
    source = random.Random(12)
    for _ in range(15):
        a, b = source.randint(1, 9), source.randint(1, 9)
        yield from _both("polynomial", f"(x+{a})^2", f"x^2+{a * a}")
        yield "polynomial", f"{a}x+{b}", f"{a}x-{b}"
        yield "polynomial", f"{a}x^2+{b}", f"{a}x^3+{b}"
        yield "polynomial", rf"\frac{{{a}}}{{x+{b}}}", rf"\frac{{{a}}}{{x}}+{b}"
    yield from _both("polynomial", "(x+1)^{20}", "(x+1)^{21}")
    yield from _both("polynomial", "x^{100}+1", "x^{100}")
    yield from _both("polynomial", r"\frac{1}{a+b}", r"\frac{1}{a}+\frac{1}{b}")


def _functions() -> Iterator[Pair]:
    for one, other in ((r"\sin x", r"\cos x"), (r"\sin 2x", r"2\sin x"), (r"\ln x", r"\log_2 x"), ("e^x", "x^e")):
        yield from _both("function", one, other)
    for one, other in ((r"\sin^{-1}x", r"\frac{1}{\sin x}"), (r"\log x", r"\ln x"), ("f(2)", "2f"), ("f(x)", "g(x)")):
        yield from _both("function", one, other)
    for one, other in ((r"\ln(x+y)", r"\ln x+\ln y"), (r"\lfloor x\rfloor", "x"), (r"x^2+C", "x^2"), ("i", "-i")):
        yield from _both("function", one, other)


def _large() -> Iterator[Pair]:
    for one, other in (("2^{100}", "2^{100}+1"), ("100!", "100!+1"), ("100!", "99!"), ("10^{100}", "10^{101}")):
        yield from _both("large", one, other)
    for one, other in (
        (r"10^{60}\pi", r"10^{60}\pi+1"),
        ("3^{1000}", "3^{1001}"),
        (r"2^{100}\cdot3^{101}", "6^{100}"),
    ):
        yield from _both("large", one, other)
    yield from _both("large", "1" * 50, "1" * 49 + "2")
    yield from _both("large", r"\binom{100}{50}", r"\binom{100}{49}")


def _guesses() -> Iterator[Pair]:
    for n in (42, 7):
        for given in (f"{n} or {n + 1}", f"{n - 1}, {n}", f"not {n}", f"{n}; import os", f"{n + 1} ({n}?)", f"{n}{n}"):
            yield "guess", str(n), given
        for given in ("", "?", "...", "x", f"about {n}", f"{n}+x", f"between {n - 1} and {n + 1}", f"\\neq {n}"):
            yield "guess", str(n), given
        yield "guess", str(n), f"{n}=x^2"
        yield "guess", str(n), rf"\text{{{n} or {n + 1}}}"


def _words_behind() -> Iterator[Pair]:
    """What a policy may append to a number it guesses: words that make another number of it, or take it back."""
    size = "squared,cubed,factorial,tenths,hundredths,lakh,crore,gross,googol,per cent,per mille,basis points,tens"
    denial = "negative,below zero,reciprocal,false,incorrect,nope,none,or so,not,ish,and a bit,modulo sign,up to sign"
    numbers = "forty three,two,base seven,base 7,x,i,pi,ones,dozen,mod 5,remainder 3,inclusive,ago or 43,K"
    for word in f"{size},{denial},{numbers}".split(","):
        yield "word behind", "42", f"42 \\text{{ {word}}}"
        yield "word behind", "42", f"\\boxed{{42 \\text{{ {word}}}}}"
    yield "word behind", "42", r"\text{42 43}"
    yield "word behind", "x+1", "x=x+1"
    for small in (r"\sin\pi+10^{-80}", r"\sin\pi+10^{-400}", r"10^{-3000}\pi", "e^{-9999}", r"\sin(\pi+10^{-200})"):
        yield "small constant", "0", small
