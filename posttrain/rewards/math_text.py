r"""The text of an answer as tokens: one spelling for what LaTeX, Unicode and plain text write differently.

Nothing is computed here and nothing is guessed about meaning beyond spelling: numbers with their separators and
repeating decimals, macros of layout, letters, words, operators. Words stay words; they never become products.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

MAX_DIGITS = 1000
_MAX_EXPONENT = 9999

_CHARACTERS = {
    **dict.fromkeys("−–—‐‑‒﹣－", "-"),
    **dict.fromkeys("×✕", r"\times "),
    **dict.fromkeys("·⋅∙•", r"\cdot "),
    **dict.fromkeys("∅⌀", r"\emptyset "),
    **dict.fromkeys("\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000", " "),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u200e\u200f\u2061\u2062", ""),
    **dict.fromkeys("‘’ʼ`", "'"),
    **dict.fromkeys("“”", '"'),
    "÷": "/", "⁄": "/", "∕": "/", "∗": "*", "±": r"\pm ", "∓": r"\mp ", "√": r"\sqrt ", "∛": r"\sqrt[3] ",
    "∜": r"\sqrt[4] ", "∞": r"\infty ", "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ",
    "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∖": r"\setminus ", "≡": r"\equiv ", "≈": r"\approx ", "°": r"^\circ ",
    "º": r"^\circ ", "′": "'", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℚ": r"\mathbb{Q}", "ℕ": r"\mathbb{N}",
    "ℂ": r"\mathbb{C}", "⟨": r"\langle ", "⟩": r"\rangle ", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ",
    "⌉": r"\rceil ", "∑": r"\sum ", "∏": r"\prod ", "∫": r"\int ", "→": r"\to ", "∠": r"\angle ", "△": r"\triangle ",
    "…": "...", "∣": "|", "ｉ": "i", "\t": " ", "\n": " ", "\r": " ", "％": "%",
}  # fmt: skip
_GREEK = {
    letter: f"\\{name} "
    for letter, name in zip(
        "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩϕϵϑ",
        "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi "
        "psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega phi epsilon theta".split(),
        strict=True,
    )
}
_SUPER = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ", "0123456789+-ni", strict=True))
_SUB = dict(zip("₀₁₂₃₄₅₆₇₈₉ₙ", "0123456789n", strict=True))

_SPACES = re.compile(r"(?<!\\)\\(?:[,;:!> ]|quad(?![A-Za-z])|qquad(?![A-Za-z])|hspace\*?\{[^{}]*\})|~")
_LAYOUT = re.compile(
    r"\\(?:left|right|bigl|bigr|Bigl|Bigr|biggl|biggr|big|Big|bigg|Bigg|middle)(?![A-Za-z])\.?"
    r"|\\(?:displaystyle|textstyle|limits|nolimits|boldsymbol|bm|(?:text)?color\{\w+\}|phantom\{[^{}]*\}|underline|fbox"
    r"|large|Large|LARGE|huge|Huge|small|normalsize|(?:bf|rm|it)(?!\s*\{))(?![A-Za-z])"
)
_REPEATING = r"(?<=[\d.])\\(?:overline|bar|dot)\s*"
_SPELLINGS = [
    (re.compile(written), plain)
    for written, plain in (
        (r"(?<!\^)(?<!\^\{)\\degree(?![A-Za-z])", r"^\\circ "),
        (r"\\\\\s*\[-?[\d.]+\s*[a-z]{2}\]", r"\\\\ "),  # a row's extra height
        (r"\(\s*(\d+)\s*\)(?=_)", r"\1"),  # (2021)_5
        (_REPEATING + r"(\d)", r"\\bar{\1}"),
        (_REPEATING + r"\{(\d)\}(\d*)\\dot\s*(?:\{(\d)\}|(\d))", r"\\bar{\1\2\3\4}"),  # the first and last of a period
        (r"(?<=\d)\s*\\[lc]?dots(?![A-Za-z])", "..."),
        (r"\{\s*([^{}\\]+?)\s*\\choose\s*([^{}\\]+?)\s*\}", r"\\binom{\1}{\2}"),
        (r"&\s*(?=[=<>]|\\(?:leq?|geq?|lt|gt|ne)(?![A-Za-z]))|(?<==)\s*&", " "),  # where lines are aligned
    )
]
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|textnormal|textsf|texttt|mbox|hbox|emph)\s*\{([^{}]*)\}")
_ROMAN = re.compile(r"\\(?:mathrm|mathbf|mathit|mathsf|rm|bf|operatorname\*?|operatornamewithlimits)\s*\{([^{}]*)\}")
_SAME = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom", "leq": "le", "geq": "ge",
    "leqslant": "le", "geqslant": "ge", "neq": "ne", "lt": "<", "gt": ">", "ast": "*", "div": "/", "varnothing":
    "emptyset", "lbrace": "{", "rbrace": "}", "varphi": "phi", "varepsilon": "epsilon", "vartheta": "theta",
    "lvert": "|", "rvert": "|", "vert": "|", "mid": "|", "colon": ":", "backslash": "setminus", "degree": "circ",
    "ldots": "...", "dots": "...", "cdots": "...", "dotsc": "...",
    "wedge": "land", "vee": "lor",
    "bigcup": "cup", "bigcap": "cap",
    "infin": "infty", "exponentialE": "e", "imaginaryI": "i", "lbrack": "[", "rbrack": "]", "lparen": "(",
    "rparen": ")", "smallsetminus": "setminus", "arctan2": "arctan", "arcsinh": "arsinh",
}  # fmt: skip
FUNCTIONS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh coth sech csch arsinh arcosh "
    "artanh ln log lg exp max min gcd lcm sqrt cbrt floor ceil abs Re Im det".split()
)
_NAMES = {
    "asin": "arcsin", "acos": "arccos", "atan": "arctan", "infinity": "infty", "Infinity": "infty", "inf": "infty",
    "oo": "infty", "ceiling": "ceil", "union": "cup", "pm": "pm",
}  # fmt: skip
GREEK_NAMES = frozenset(name.strip("\\ ") for name in _GREEK.values())
_PLAIN_GREEK = frozenset("pi theta alpha beta gamma delta lambda sigma omega phi".split())
_NUMBER = re.compile(
    r"(?P<whole>\d*)(?:\.(?P<part>\d*))?(?:\\(?:overline|bar|dot)\s*\{(?P<period>\d+)\}|\((?P<round>\d+)\)(?!\s*\d))?"
    r"(?P<dots>\s*\.\.\.)?"
)
_EXPONENT = re.compile(r"[eE]([+-]?\d+)(?![\d.])")
_NO_PRODUCT = re.compile(r"[aeiou]")

Kind = Literal["number", "symbol", "command", "word", "op", "end"]


@dataclass(frozen=True)
class Token:
    """A piece of an answer. `value` is set for numbers; `decimals` where they were written with a point."""

    kind: Kind
    text: str
    value: Fraction = Fraction(0)
    decimals: int | None = None  # digits behind the point; None = written as a whole number or repeating
    after_space: bool = False


class Unreadable(Exception):
    """The text is not an answer this grammar knows."""


def clean(text: str) -> str:
    """One spelling of characters, layout and separators. Lossless for meaning: case, order and brackets stay."""
    pieces: list[str] = []
    for character in text:
        if character in _SUPER or character in _SUB:
            table, mark = (_SUPER, "^") if character in _SUPER else (_SUB, "_")
            if len(pieces) >= 1 and pieces[-1].startswith(mark + "{") and len(pieces[-1]) > 2:
                pieces[-1] = pieces[-1][:-1] + table[character] + "}"
            else:
                pieces.append(f"{mark}{{{table[character]}}}")
            continue
        known = _CHARACTERS.get(character) or _GREEK.get(character)
        if known is None and character not in _CHARACTERS and ord(character) > 127:
            known = _from_unicode(character)
        pieces.append(_CHARACTERS.get(character, character) if known is None else known)
    out = "".join(pieces)
    out = re.sub(r"(?<=\d)\\[,;:! ](?=\d{3}(?!\d))", ",", out)
    out = re.sub(r"(?<=\d)\{,\}(?=\d{3}(?!\d))", ",", out)
    out = re.sub(r"(?<=\d)\{[,.]\}(?=\d)", ".", out)
    out = out.replace("\\left\\{", "\\{").replace("\\right\\}", "\\}").replace("\\tiny", "").replace("\\!", "")
    out = _LAYOUT.sub(" ", _SPACES.sub(" ", out))
    out = re.sub(r"\\(?:overset|underset)\{[^{}]*\}|\\mathop(?![A-Za-z])", "", out)
    for written, plain in _SPELLINGS:
        out = written.sub(plain, out)
    return _separators(out).strip()


def _from_unicode(character: str) -> str | None:
    """ASCII spelling of a vulgar fraction, a full-width or mathematical letter or digit; None for others."""
    plain = unicodedata.normalize("NFKC", character)
    if unicodedata.name(character, "").startswith("VULGAR FRACTION") and "⁄" in plain:
        above, below = plain.split("⁄")
        return f"\\frac{{{above}}}{{{below or 1}}}"
    if unicodedata.name(character, "").startswith(("FULLWIDTH", "MATHEMATICAL")):
        return _GREEK.get(plain, plain)
    return None


def _separators(text: str) -> str:
    """Numbers of several locales with the digits joined: 1,000 1 000 1'000 1.000.000 1.234,56 1,00,000."""
    text = re.sub(r"(?<![\d.,])(\d{1,3}(?:\.\d{3})+),(\d+)(?![\d.,])", _point, text)
    text = re.sub(r"(?<![\d.,])\d{1,3}(?:\.\d{3}){2,}(?![\d.,]*\d)", lambda m: m[0].replace(".", ""), text)
    text = re.sub(r"(?<![\d.,'])\d{1,3}(?:'\d{3})+(?![\d'])", lambda m: m[0].replace("'", ""), text)
    text = re.sub(r"(?<![\d.,/ ])(?<!\d )\d{1,3}(?: \d{3})+(?! *\d|/)", lambda m: m[0].replace(" ", ""), text)
    grouped = re.compile(r"(?<![\d.,])(?:\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,\d{3})(?!,?\d)")
    out, end = [], 0
    for match in grouped.finditer(text):
        depth = sum(text.count(c, 0, match.start()) for c in "([") + text.count("\\{", 0, match.start())
        depth -= sum(text.count(c, 0, match.start()) for c in ")]") + text.count("\\}", 0, match.start())
        # In brackets 1,234 may be two entries; nobody writes an entry as 034.
        joined = depth <= 0 or any(group.startswith("0") for group in match[0].split(",")[1:])
        out += [text[end : match.start()], match[0].replace(",", "") if joined else match[0]]
        end = match.end()
    return "".join([*out, text[end:]])


def _point(match: re.Match[str]) -> str:
    return match[1].replace(".", "") + "." + match[2]


def tokens_of(text: str) -> list[Token]:
    """Tokens of a cleaned text. Raises Unreadable for characters that no answer holds, and numbers too long."""
    found: list[Token] = []
    place = 0
    while place < len(text):
        spaced = place > 0 and text[place - 1].isspace()
        character = text[place]
        if character.isspace():
            place += 1
            continue
        if character.isascii() and (
            character.isdigit() or (character == "." and text[place + 1 : place + 2].isdigit())
        ):
            token, place = _number(text, place, spaced)
            found.append(token)
        elif character == "\\":
            place = _command(text, place, spaced, found)
        elif character.isalpha():
            end = place
            while end < len(text) and text[end].isalpha():
                end += 1
            found += [
                Token(t.kind, t.text, after_space=spaced and i == 0) for i, t in enumerate(_run(text[place:end]))
            ]
            place = end
        elif text.startswith("**", place):
            found.append(Token("op", "^"))
            place += 2
        elif text.startswith("...", place):
            found.append(Token("op", "..."))
            place += 3
        elif (text[place : place + 2]) in ("<=", ">=", "!=", "=="):
            found.append(Token("op", {"<=": "le", ">=": "ge", "!=": "ne", "==": "="}[text[place : place + 2]]))
            place += 2
        elif character in "+-*/^_()[]{}|=<>,;:!'%&.?\"€£¥₹$#@":
            found.append(Token("op", character, after_space=spaced))
            place += 1
        else:
            raise Unreadable(f"character {character!r}")
    return found


def _number(text: str, place: int, spaced: bool) -> tuple[Token, int]:
    match = _NUMBER.match(text, place)
    assert match is not None
    whole, part, period = match["whole"], match["part"], match["period"] or match["round"]
    end = match.end()
    if part is None and (period or match["dots"]):
        period, end = None, match.end("whole")
    if match["dots"] and part is not None and period is None:
        tail = re.search(r"(\d{1,6}?)\1+$", part)
        if tail is None or len(tail[0]) < 3:
            raise Unreadable("digits that go on")
        period, part = tail[1], part[: -len(tail[0])]
    if len(whole or "") + len(part or "") + len(period or "") > MAX_DIGITS:
        raise Unreadable("number too long")
    value = Fraction(int(whole or "0"))
    decimals = None
    if part is not None:
        value += Fraction(int(part or "0"), 10 ** len(part))
        decimals = len(part) if not period else None
        if period:
            value += Fraction(int(period), 10 ** len(part) * (10 ** len(period) - 1))
        if not part and not period and not whole:
            raise Unreadable("a lone point")
        if not part and not period:  # "5." is a whole number with a full stop
            decimals = None
    exponent = _EXPONENT.match(text, end)
    if exponent and abs(int(exponent[1][:6])) <= _MAX_EXPONENT and not period:
        value *= Fraction(10) ** int(exponent[1])
        decimals, end = max(0, (decimals or 0) - int(exponent[1])), exponent.end()
    return Token("number", text[place:end], value, decimals, spaced), end


def _command(text: str, place: int, spaced: bool, found: list[Token]) -> int:
    """Append the tokens of what begins with a backslash; the place behind it."""
    for pattern, as_words in ((_TEXT, True), (_ROMAN, False)):
        match = pattern.match(text, place)
        if match:
            found += _words(match[1], spaced) if as_words else _roman(match[1], spaced)
            return match.end()
    match = re.compile(r"\\([A-Za-z]+|.)", re.DOTALL).match(text, place)
    if match is None:
        raise Unreadable("a backslash at the end")
    name = _SAME.get(match[1], match[1])
    if name in ("begin", "end"):
        block = re.compile(r"\s*\{([a-z]+\*?)\}(?:\{[|lcr ]*\})?").match(text, match.end())
        if block is None:
            raise Unreadable("an environment without a name")
        found.append(Token("command", f"{name} {block[1].rstrip('*')}"))
        return block.end()
    if name == "mathbb":
        block = re.compile(r"\s*\{?([A-Z])\}?").match(text, match.end())
        if block is None:
            raise Unreadable("a set without a name")
        found.append(Token("symbol", f"set {block[1]}"))
        return block.end()
    if name in "{}":
        found.append(Token("command", name))
    elif len(name) == 1 and name in "<>|*/:[]()%$e i":
        found.append(Token("op" if name not in "ei" else "symbol", name))
    elif name in ("and", "or"):
        found.append(Token("word", name))
    elif name == "...":
        found.append(Token("op", "..."))
    elif name in ("#", "&", "_"):
        raise Unreadable("an escaped mark")
    else:
        found.append(Token("command", name, after_space=spaced))
    return match.end()


def _words(text: str, spaced: bool) -> list[Token]:
    r"""What stands in \text{...}: words, and whatever is no letter."""
    if not text.strip():
        return []
    out: list[Token] = []
    for match in re.finditer(r"[^\W\d_]+|\S", re.sub(r"\$", "", text)):
        piece = match[0]
        if piece[0].isalpha():
            out.append(Token("word", piece, after_space=True))
        elif piece.isdigit():
            out.append(Token("number", piece, Fraction(int(piece)), after_space=spaced))
        else:
            out += tokens_of(piece)
    if len(out) > 1 and all(token.kind == "number" for token in out):
        token, end = _number(text.strip(), 0, spaced)
        if end < len(text.strip()):
            raise Unreadable("several numbers in one text")
        return [token]
    return out


def _roman(text: str, spaced: bool) -> list[Token]:
    text = text.strip()
    if text in FUNCTIONS or text in _NAMES:
        return [Token("command", _NAMES.get(text, text), after_space=spaced)]
    if len(text) > 1 and text.isalpha():
        return [Token("word", text, after_space=True)]
    return tokens_of(text)


def _run(letters: str) -> list[Token]:
    """A run of letters: a function, a name in capitals, a word, or a product of single letters."""
    if letters in FUNCTIONS or letters in _NAMES or letters in _PLAIN_GREEK:
        return [Token("command", _NAMES.get(letters, letters))]
    if len(letters) == 1:
        return [Token("symbol", letters)]
    if letters in ("and", "or", "if"):
        return [Token("word", letters)]
    if letters.isupper():
        return [Token("symbol", letters)] if len(letters) <= 3 else [Token("word", letters)]
    for name in ("sin", "cos", "tan", "ln", "log", "sqrt"):
        if letters.startswith(name) and len(letters) == len(name) + 1:
            return [Token("command", name), Token("symbol", letters[-1])]
    if letters.endswith("pi") and len(letters) <= 4 and not _NO_PRODUCT.search(letters[:-2]):
        return [*_run(letters[:-2]), Token("command", "pi")]
    is_product = len(letters) == 2 or not _NO_PRODUCT.search(letters) or set(letters) <= set("abcdxyz")
    if len(letters) > 2 and letters[0].isupper() and letters[1:].islower():
        is_product = False
    if is_product and len(letters) <= 8:
        return [Token("symbol", letter) for letter in letters]
    return [Token("word", letters)]
