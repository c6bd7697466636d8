r"""Pairs of answers that are equal, made by rule: each kind is one reason why two spellings are one answer.

The values come from a fixed seed and are computed here with whole numbers and fractions, not by the code under test.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from fractions import Fraction
from math import comb, factorial

from tests.rewards.corpus_structures import structured_pairs, table

Pair = tuple[str, str, str]  # kind, reference, answer


def equal_pairs() -> Iterator[Pair]:
    """Every pair of every kind."""
    for rule in (_numbers, _locales, _decimals, _scientific, _mixed, _signs, _roots, _powers, _polynomials, _rational):
        yield from rule()
    for rule in (_functions, _complex, _factorials):
        yield from rule()
    yield from structured_pairs()
    yield from _units_behind()
    yield from _layout()
    yield from _zeros()


def _numbers() -> Iterator[Pair]:
    source = random.Random(1)
    for _ in range(20):
        n = source.randint(2, 99_999)
        yield "integer", str(n), f"{n}.0"
        yield "integer", str(n), f"+{n}" if n % 2 else f"{{{n}}}"
    for _ in range(25):
        a, b = source.randint(1, 40), source.randint(2, 40)
        k = source.randint(2, 9)
        yield "fraction", rf"\frac{{{a}}}{{{b}}}", f"{a}/{b}"
        yield "fraction", f"{a}/{b}", rf"\dfrac{{{a * k}}}{{{b * k}}}"
    for a, b in ((1, 2), (3, 4), (7, 8), (1, 9), (5, 6)):
        yield "fraction", rf"\frac{{{a}}}{{{b}}}", rf"\frac{a}{b}"
        yield "fraction", rf"\tfrac{{{a}}}{{{b}}}", rf"\cfrac{{{a}}}{{{b}}}"
        yield "fraction", rf"-\frac{{{a}}}{{{b}}}", rf"\frac{{-{a}}}{{{b}}}"
        yield "fraction", f"-{a}/{b}", rf"\frac{{{a}}}{{-{b}}}"


def _locales() -> Iterator[Pair]:
    source = random.Random(2)
    for size in (4, 5, 6, 7, 8, 9):
        n = source.randint(10 ** (size - 1), 10**size - 1)
        grouped = f"{n:,}"
        for mark in (",", r"\,", "{,}", r"\ ", " ", "'", "\u202f", "\u00a0", r"\!,".replace(",", ",\\!")[2:]):
            yield "thousands", str(n), grouped.replace(",", mark)
        if size > 6:
            yield "thousands", str(n), grouped.replace(",", ".")
            yield "thousands", f"{n}.25", grouped.replace(",", ".") + ",25"
        yield "thousands", f"{n}.5", f"{grouped}.5"
    yield "thousands", "1234567", "12,34,567"
    yield "thousands", "3.5", "3{,}5"


def _decimals() -> Iterator[Pair]:
    source = random.Random(3)
    for _ in range(15):
        places = source.randint(1, 4)
        n = source.randint(1, 10 ** (places + 2))
        value = Fraction(n, 10**places)
        text = f"{n / 10**places:.{places}f}"
        yield "decimal", text, rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
        yield "decimal", f"{value.numerator}/{value.denominator}", text + "0"
    for text in ("0.5", "0.25", "0.125", "0.75"):
        yield "decimal", text, text[1:]
    for digits in ("3", "6", "12", "142857", "09", "045"):
        value = Fraction(int(digits), 10 ** len(digits) - 1)
        spelled = f"{value.numerator}/{value.denominator}"
        for form in (rf"0.\overline{{{digits}}}", rf"0.\bar{{{digits}}}", f"0.({digits})", f"0.{digits * 3}..."):
            yield "repeating decimal", spelled, form
    yield "repeating decimal", r"\frac{1}{6}", r"0.1\overline{6}"
    yield "repeating decimal", r"\frac{7}{12}", r"0.58\overline{3}"
    yield "repeating decimal", "1", r"0.\overline{9}"
    for value, text in ((r"\pi", "3.14159265"), (r"\sqrt{2}", "1.41421356"), (r"\frac{1}{3}", "0.333333")):
        yield "long rounding", value, text
    for value, text in (("e", "2.718281828"), (r"\ln 2", "0.693147"), (r"\frac{22}{7}", "3.142857")):
        yield "long rounding", value, text


def _scientific() -> Iterator[Pair]:
    source = random.Random(4)
    for _ in range(12):
        tenths, power = source.randint(11, 99), source.choice([-31, -19, -9, -4, 3, 5, 12, 23])
        mantissa = f"{tenths // 10}.{tenths % 10}"
        written = rf"{mantissa}\times10^{{{power}}}"
        for form in (f"{mantissa}e{power}", f"{mantissa}E{power:+d}", f"{mantissa}×10^{power}"):
            yield "scientific", written, form
        yield "scientific", written, rf"{mantissa} \cdot 10^{{{power}}}"
        yield "scientific", written, rf"0.{tenths}\times 10^{{{power + 1}}}"
    yield "scientific", "1000", "1e3"
    yield "scientific", "1200", r"1.2 * 10^3"
    yield "scientific", "10^{-3}", "0.001"


def _mixed() -> Iterator[Pair]:
    source = random.Random(5)
    for _ in range(8):
        whole, below = source.randint(1, 20), source.randint(2, 12)
        above = source.randint(1, below - 1)
        improper = rf"\frac{{{whole * below + above}}}{{{below}}}"
        yield "mixed number", improper, rf"{whole}\frac{{{above}}}{{{below}}}"
        yield "mixed number", improper, f"{whole} {above}/{below}"
        yield "mixed number", "-" + improper, rf"-{whole}\tfrac{{{above}}}{{{below}}}"
    for sign, value in (("½", "1/2"), ("¼", "0.25"), ("¾", "3/4"), ("⅓", "1/3"), ("⅝", "0.625")):
        yield "mixed number", value, sign
    yield "mixed number", "1.5", "1½"
    yield "mixed number", "11/4", "2¾"


def _signs() -> Iterator[Pair]:
    for n in (1, 7, 42, 360):
        for minus in ("−", "–", "－"):
            yield "minus", str(-n), f"{minus}{n}"
        yield "minus", f"-{n}", f"- {n}"
        yield "minus", f"{n}", f"-(-{n})"
        yield "minus", f"{n}", f"|-{n}|"


def _roots() -> Iterator[Pair]:
    for n in (2, 3, 5, 7, 11):
        yield "root", rf"\sqrt{{{n}}}", f"√{n}"
        yield "root", rf"\sqrt{{{n}}}", f"sqrt({n})"
        yield "root", rf"\sqrt{{{n}}}", f"{n}^{{1/2}}"
        yield "root", rf"\sqrt{n}", f"{n}^{{0.5}}"
        yield "root", rf"\frac{{1}}{{\sqrt{{{n}}}}}", rf"\frac{{\sqrt{{{n}}}}}{{{n}}}"
        yield "root", rf"{2}\sqrt{{{n}}}", rf"\sqrt{{{4 * n}}}"
        yield "root", rf"\sqrt[3]{{{n}}}", f"{n}^{{1/3}}"
        yield "root", rf"\sqrt[3]{{-{n**3}}}", f"-{n}"
        yield "root", rf"\frac{{1}}{{\sqrt{{{n + 1}}}-\sqrt{{{n}}}}}", rf"\sqrt{{{n + 1}}}+\sqrt{{{n}}}"
    for a, b in ((2, 3), (5, 2), (7, 3)):
        yield "root", rf"\sqrt{{{a}}}+\sqrt{{{b}}}", rf"\sqrt{{{a + b}+2\sqrt{{{a * b}}}}}"
        yield "root", rf"\sqrt{{{a}}}\cdot\sqrt{{{b}}}", rf"\sqrt{{{a * b}}}"


def _powers() -> Iterator[Pair]:
    for a, b in ((2, 10), (3, 7), (5, 4), (10, 6), (7, 3)):
        yield "power", f"{a}^{{{b}}}", str(a**b)
        yield "power", str(a**b), f"{a}**{b}"
        yield "power", f"{a}^{{-{b}}}", rf"\frac{{1}}{{{a**b}}}"
    yield "power", r"2^{100}\cdot3^{101}", r"3\cdot6^{100}"
    yield "power", "2^{1000}", r"4^{500}"
    yield "power", r"\frac{3^{50}-1}{2}", r"\frac{1}{2}(3^{50}-1)"
    yield "power", "2^{2^{3}}", "256"
    yield "power", r"10^{100}", r"10^{50}\times 10^{50}"


def _polynomials() -> Iterator[Pair]:
    source = random.Random(6)
    for variable in "xynt":
        for _ in range(5):
            a, b, c = (source.randint(1, 9) for _ in range(3))
            v = variable
            yield "polynomial", f"({v}+{a})({v}-{b})", f"{v}^2+{a - b}{v}-{a * b}".replace("+-", "-")
            yield "polynomial", f"{a}{v}^2+{b}{v}+{c}", f"{c}+{b}{v}+{a}{v}^2"
            yield "polynomial", f"({a}{v}+{b})^2", f"{a * a}{v}^2+{2 * a * b}{v}+{b * b}"
            yield "polynomial", f"{a}({v}+{b})", rf"{a}\cdot {v} + {a * b}"
    yield "polynomial", "(x+1)^{20}", "(1+x)^{20}"
    yield "polynomial", "(a+b+c)^2", "a^2+b^2+c^2+2ab+2bc+2ca"
    yield "polynomial", "(a-b)(a^2+ab+b^2)", "a^3-b^3"
    yield "polynomial", "ab", "ba"
    yield "polynomial", r"4\pi r^2", r"\pi(2r)^2"
    yield "polynomial", r"x_1+x_2", r"x_{2} + x_{1}"
    yield "polynomial", r"\alpha\beta", r"\beta \alpha"


def _rational() -> Iterator[Pair]:
    for a in (1, 2, 3, 5):
        yield "rational function", f"x+{a}", rf"\frac{{x^2-{a * a}}}{{x-{a}}}"
        yield "rational function", rf"\frac{{1}}{{x}}+\frac{{1}}{{{a}}}", rf"\frac{{x+{a}}}{{{a}x}}"
        yield "rational function", rf"\frac{{{a}}}{{x^2}}", f"{a}x^{{-2}}"
        yield "rational function", f"{a}x/2", rf"\frac{{{a}}}{{2}}x"
    yield "rational function", r"\frac{n(n+1)}{2}", r"\frac{n^2+n}{2}"
    yield "rational function", r"\frac{n(n+1)(2n+1)}{6}", r"\frac{2n^3+3n^2+n}{6}"
    yield "rational function", r"\frac{a}{b-c}", r"-\frac{a}{c-b}"
    yield "rational function", r"\frac{mv^2}{2}", r"\frac12 m v^2"


def _functions() -> Iterator[Pair]:
    rows = r"""
    \sin^2 x + \cos^2 x ; 1
    \sin 2x ; 2\sin x\cos x
    \cos(2x) ; 1-2\sin^2(x)
    \tan x ; \frac{\sin x}{\cos x}
    \sec^2\theta ; 1+\tan^2\theta
    \ln 8 ; 3\ln 2
    \log_2 8 ; 3
    \log_{10} 1000 ; 3
    \frac{\ln 3}{\ln 2} ; \log_2 3
    e^{x+1} ; e\cdot e^x
    \exp(x) ; e^{x}
    \arctan 1 ; \frac{\pi}{4}
    \tan^{-1} x ; \arctan x
    \sin\frac{\pi}{3} ; \frac{\sqrt{3}}{2}
    \cos 60^\circ ; \frac{1}{2}
    \sin(30°) ; 0.5
    |x-1| ; |1-x|
    \lfloor 7/2 \rfloor ; 3
    \lceil 2.1 \rceil ; 3
    \max(3,5) ; 5
    \gcd(12,18) ; 6
    2^{x+3} ; 8\cdot2^x
    \sqrt{x^2} ; |x|
    \cosh x ; \frac{e^x+e^{-x}}{2}
    \ln(x^3) ; 3\ln x
    f(x+1) ; f(1+x)
    C e^{-kt} ; \frac{C}{e^{kt}}
    x\ln x - x + C ; x(\ln x-1)+C
    \pi e ; e \pi
    \frac{\sin x}{x} ; x^{-1}\sin(x)
    """
    for reference, given in table(rows):
        yield "function", reference, given


def _complex() -> Iterator[Pair]:
    for a, b in ((2, 3), (1, 1), (5, 12), (7, 4)):
        yield "complex", f"{a}+{b}i", rf"{a}+{b}\mathrm{{i}}"
        yield "complex", f"{a}+{b}i", f"{b}i + {a}"
        yield "complex", f"({a}+{b}i)({a}-{b}i)", str(a * a + b * b)
        yield "complex", rf"\frac{{1}}{{{a}+{b}i}}", rf"\frac{{{a}-{b}i}}{{{a * a + b * b}}}"
    yield "complex", r"e^{i\pi}", "-1"
    yield "complex", r"\sqrt{-4}", "2i"
    yield "complex", r"e^{i\pi/2}", "i"


def _factorials() -> Iterator[Pair]:
    for n in (3, 5, 8, 10, 20):
        yield "factorial", f"{n}!", str(factorial(n))
        yield "factorial", f"{n}!", rf"{n}\cdot {n - 1}!"
        for k in (1, 2):
            yield "factorial", rf"\binom{{{n}}}{{{k}}}", str(comb(n, k))
            yield "factorial", rf"\dbinom{{{n}}}{{{k}}}", rf"\frac{{{n}!}}{{{k}!{n - k}!}}"
    yield "factorial", "n!", "n(n-1)!"
    yield "factorial", "100!", r"100\cdot 99!"
    yield "factorial", r"\frac{10!}{5!5!}", "252"
    yield "factorial", "7!!", "105"


def _units_behind() -> Iterator[Pair]:
    for unit in "dollars per day|apples|red apples|years old|cm|m^2|people|square units|cups|C|seconds".split("|"):
        yield "unit behind", "18", f"18 \\text{{ {unit}}}"
    yield "unit behind", "1", r"1 \text{ apple}"
    yield "unit behind", r"\frac34", r"\frac34 \text{ cup}"
    yield "unit behind", "3 \\text{ widget}", r"3 \text{ widget}"
    yield "unit behind", "42", "£42"


def _layout() -> Iterator[Pair]:
    for written in (r"\bf 42", r"\large 42", r"\textcolor{red}{42}", r"\underline{42}", r"\fbox{42}", r"42\ ", "𝟒𝟐"):
        yield "layout", "42", written
    yield "layout", r"\frac13", r"0.\dot3"
    yield "layout", r"\frac13", r"33\frac13\%"
    yield "layout", r"\binom{100}{50}", r"{100 \choose 50}"
    yield "layout", "2516_8", "(2516)_8"
    yield "layout", r"(-\infty,-8)\cup(8,\infty)", r"(-\infty,-8)\bigcup(8,\infty)"
    yield "layout", r"\mathbb{R}", r"\text{all real numbers}"
    for choice in ("C)", r"\text{Option C}", "(C)", r"\text{C)}"):
        yield "layout", r"\text{(C)}", choice


def _zeros() -> Iterator[Pair]:
    zeros = (r"\sin\pi", r"\cos\frac{\pi}{2}", r"e^{i\pi}+1", r"\tan\pi", r"x\sin\pi", r"\sqrt2\sqrt2-2", r"\ln e-1")
    for written in zeros:
        yield "zero", "0", written
    yield "zero", r"\sin\pi", "0"
