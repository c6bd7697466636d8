"""Values that `${env:NAME}` brought into a recipe: this process uses them, and nothing that it writes holds them."""

from __future__ import annotations

import re
from pathlib import Path

HIDDEN = "<hidden>"
# Characters: alone, and as part of a longer text, where short ones would blank out ordinary words.
_LEAST, _LEAST_PART = 4, 8
_PLAIN = re.compile(r"[-+]?[\d_.]+(?:[eE][-+]?\d+)?|true|false|yes|no|on|off|null|none|~|", re.IGNORECASE)
_VALUES: set[str] = set()


def remember(value: str, *, is_secret: bool) -> None:
    """Hide this value from now on.

    Args:
        value: of an environment variable.
        is_secret: whether its name says that it is one. Of others, numbers, truth values and paths of what is there
            are no secrets, and words of fewer than 8 characters may be any setting.
    """
    is_setting = len(value) < _LEAST_PART or _PLAIN.fullmatch(value) or _is_place(value)
    if (is_secret and len(value) >= _LEAST) or not is_setting:
        _VALUES.add(value)


def hide(text: str) -> str:
    """The text without remembered values."""
    if text in _VALUES:
        return HIDDEN
    for value in sorted(_VALUES, key=len, reverse=True):
        if len(value) >= _LEAST_PART:
            text = text.replace(value, HIDDEN)
    return text


def is_hidden(value: object) -> bool:
    """Whether a number is one of the remembered values."""
    return str(value) in _VALUES


def _is_place(value: str) -> bool:
    """Whether it is a path whose beginning exists."""
    parts = Path(value).expanduser().parts
    try:
        return len(parts) > 1 and Path(*parts[:2]).exists()
    except OSError:
        return False
