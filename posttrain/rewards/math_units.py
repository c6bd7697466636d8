"""Units behind a number: which are the same, and what one is worth in another."""

from __future__ import annotations

import re
from fractions import Fraction

# Name -> (worth, unit it is a multiple of). Temperatures have no worth in each other.
_WORTH: dict[str, tuple[Fraction, str]] = {}
for _base, _entries in {
    "m": "km 1000 kilometer 1000 kilometre 1000 m 1 meter 1 metre 1 dm 1/10 cm 1/100 centimeter 1/100 centimetre "
    "1/100 mm 1/1000 millimeter 1/1000 millimetre 1/1000 μm 1/1000000 nm 1/1000000000",
    "g": "kg 1000 kilogram 1000 g 1 gram 1 mg 1/1000 milligram 1/1000 t 1000000 tonne 1000000",
    "s": "s 1 sec 1 second 1 min 60 minute 60 h 3600 hr 3600 hour 3600 ms 1/1000 millisecond 1/1000 day 86400 week "
    "604800",
    "l": "L 1 l 1 liter 1 litre 1 mL 1/1000 ml 1/1000 milliliter 1/1000 millilitre 1/1000",
    "foot": "ft 1 foot 1 feet 1 in 1/12 inch 1/12 inche 1/12 yd 3 yard 3 mi 5280 mile 5280",
    "pound": "lb 1 lbs 1 oz 1/16 ounce 1/16",
    "dollar": "dollar 1 USD 1 usd 1 buck 1 cent 1/100 ¢ 1/100 penny 1/100",
    "euro": "euro 1 EUR 1",
    "year": "yr 1 year 1 month 1/12",
    "degree": "degree 1 deg 1",
    "radian": "rad 1 radian 1",
    "joule": "J 1 joule 1 kJ 1000 kilojoule 1000",
    "newton": "N 1 newton 1 kN 1000",
    "watt": "W 1 watt 1 kW 1000 kilowatt 1000 MW 1000000",
    "hertz": "Hz 1 hertz 1 kHz 1000 MHz 1000000",
    "pascal": "Pa 1 pascal 1 kPa 1000",
    "volt": "V 1 volt 1",
    "ampere": "A 1 amp 1 ampere 1",
}.items():
    _words = _entries.split()
    _WORTH |= {name: (Fraction(worth), _base) for name, worth in zip(_words[::2], _words[1::2], strict=True)}
_COMPOUND = {"mph": "mi / h", "kph": "km / h", "kmh": "km / h", "fps": "ft / s"}
_GENERIC = frozenset({"unit"})
_FILLERS = frozenset({"of", "the", "total", "exactly", "approximately"})

# Quantities that need no worth, and what is counted without an s; of a word on its own nothing else is a unit.
_COUNTED = frozenset(
    "unit sq cup pint quart gallon acre hectare mile ton calorie kcal cal coulomb kelvin mole byte bit kilobyte "
    "megabyte gigabyte KB MB GB kb mb gb kWh lumen decibel mol eV keV MeV Ω ohm tesla weber henry farad candela "
    "C F T Wb turn revolution rev rpm people men women children feet fish sheep mice geese deer teeth dice data "
    "yen rupee peso pound yuan won krona pence percent".split()
)
_PLURAL = re.compile(r"[a-z]{2,}[^s\W\d_]s", re.IGNORECASE)


def is_unit(name: str, *, said: frozenset[str] = frozenset(), is_one: bool = False) -> bool:
    """Whether words behind a number say what is counted, and do not make another number of it.

    There must be a unit that is known, a currency or a plural among them ("42 red apples", "18 dollars per day"); "42
    squared", "42 ish" and "42 false" are none.

    Args:
        name: the words as the parser joined them.
        said: words that the reference has behind its own numbers, which say the same here.
        is_one: whether the number is 1, of which one thing is counted.
    """
    words = [word for word in name.split() if word[0].isalpha()]
    return any(
        word in said
        or word in _WORTH
        or word in _COMPOUND
        or word in _COUNTED
        or _PLURAL.fullmatch(word) is not None
        or (len(word) > 2 and (is_one or word.lower() in _WORTH or word.lower() in _COUNTED))
        for word in words
    )


_PLAIN = "|".join(
    "km cm mm dm nm kg mg ml mL min hrs hr mph kmh ft in lb lbs oz Hz kHz MHz rad mol kPa Pa kJ kW sec yd mi USD EUR "
    "m s g h L N J W V".split()
)
_ONE = rf"(?:{_PLAIN})(?:\s*\^\s*(?:\{{-?\d\}}|-?\d))?"
_BEHIND = re.compile(rf"(?<=[\d}})])(\s*)({_ONE}(?:\s*(?:/|\*|\\cdot)\s*{_ONE}|\s+{_ONE})*)\s*$")


def with_units_as_words(text: str) -> str | None:
    r"""The text with unit letters at its end as \text{...}, another reading of "5 km/h"; None without any."""
    match = _BEHIND.search(text)
    if match is None or (not match[1] and len(re.split(r"[\s/^*]", match[2])[0]) == 1):
        return None
    unit = match[2].replace("\\cdot", "*").replace("{", "").replace("}", "")
    return f"{text[: match.start()]} \\text{{{unit}}}"


def unit_of(written: str) -> tuple[Fraction, frozenset[tuple[str, int]]] | None:
    """(worth, base units with powers) of a unit as the parser joined it; None for "units", which says nothing."""
    worth, powers = Fraction(1), dict[str, int]()
    sign, next_power = 1, 1
    words = " ".join(_COMPOUND.get(word, word) for word in written.split()).split()
    place = 0
    while place < len(words):
        word = words[place]
        place += 1
        if word in ("/", "per"):
            sign = -1
        elif word in ("square", "sq", "Square"):
            next_power = 2
        elif word in ("cubic", "Cubic", "cubed"):
            next_power = 3
        elif word in ("squared",) and powers:
            powers[list(powers)[-1]] *= 2
        elif word in ("*", "-") or word.lower() in _FILLERS or not word[0].isalpha():
            continue
        elif word == "in" and words[place : place + 1] and words[place][0].isalpha():
            continue  # "apples in total"
        else:
            power = sign * next_power
            if words[place : place + 1] == ["^"]:
                digits = [piece for piece in words[place + 1 : place + 3] if piece == "-" or piece.isdigit()]
                text = "".join(digits[:2] if digits[:1] == ["-"] else digits[:1]) or "1"
                power, place = power * max(-9, min(9, int(text))), place + 1 + len(digits[:2] if "-" in text else "1")
            factor, base = _base_of(word)
            worth *= factor**power
            powers[base] = powers.get(base, 0) + power
            next_power = 1
    known = frozenset((base, power) for base, power in powers.items() if power and base not in _GENERIC)
    return (worth, known) if known else None


def _base_of(word: str) -> tuple[Fraction, str]:
    for name in (word, word.lower(), word.lower().removesuffix("s")):
        if name in _WORTH:
            return _WORTH[name]
    lower = word.lower()
    return Fraction(1), lower.removesuffix("s") if len(lower) > 3 else lower
